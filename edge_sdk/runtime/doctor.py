"""What may be wrong with the machine that a device runs on, found without changing anything.

Checks that hold for every machine stand here; those of a kind of board come with its plug-in.
"""

from __future__ import annotations

import getpass
import grp
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from edge_sdk.core import machine as machines
from edge_sdk.core.boards import Board, Finding
from edge_sdk.core.machine import Machine, Probe
from edge_sdk.core.sysfs import Tree

OURS = ("edge_sdk", "coordinator", "sensors", "export", "jetson")
CLOCK_MARKS = (
    "run/systemd/timesync/synchronized", "run/chrony/chronyd.pid", "run/chronyd.pid", "run/ntpd.pid",
)  # fmt: skip
PORTS = {  # device files → the group that may open them
    "dev/ttyTHS*": "dialout", "dev/ttyUSB*": "dialout", "dev/ttyACM*": "dialout", "dev/i2c-*": "i2c",
    "dev/video*": "video", "dev/snd/pcm*": "audio",
}  # fmt: skip

_LEAST_DISK_MB, _LOW_DISK_MB = 200.0, 2000.0

Check = Callable[[Machine], Finding]


def this_machine(state_dir: Path, probe: Probe | None = None) -> Machine:
    """Returns the machine that we run on."""
    places = [Path(entry or ".") for entry in sys.path]
    place = state_dir.absolute()
    while not place.exists():
        place = place.parent
    return Machine(
        tree=Tree(),
        python=platform.python_version(),
        arch=platform.machine(),
        venv=sys.prefix if sys.prefix != sys.base_prefix else "",
        user=_user(),
        groups=frozenset(_groups()),
        state_dir=str(state_dir),
        disk_free_mb=shutil.disk_usage(place).free / 1e6,
        writable=os.access(place, os.W_OK),
        packages=machines.packages(dict.fromkeys(path.absolute() for path in places if path.is_dir())),
        kernel=platform.release(),
        torch_cuda=machines.torch_cuda(places),
        probe=probe or Probe(),
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _groups() -> list[str]:
    names = []
    for number in {*os.getgroups(), os.getegid()}:
        try:
            names.append(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return names


def examine(machine: Machine, board: Board) -> list[Finding]:
    """Returns everything looked at: what fails first, then what is doubtful.

    Where a board says something of what is looked at everywhere, it knows better.
    """
    by_name = {finding.name: finding for finding in [*(check(machine) for check in CHECKS), *board.checks(machine)]}
    order = {"fail": 0, "warn": 1, "ok": 2}
    return sorted(by_name.values(), key=lambda finding: order[finding.state])


def python(machine: Machine) -> Finding:
    """Looks at the interpreter."""
    told = f"{machine.python} on {machine.arch}"
    known = tuple(int(part) for part in machine.python.split(".")[:2] if part.isdecimal())
    if known and known < (3, 10):
        return Finding("python", "fail", f"{told}; 3.10 is needed", "uv venv --python 3.10 /opt/edge-sdk/venv")
    return Finding("python", "ok", told)


def venv(machine: Machine) -> Finding:
    """Looks whether we live in an environment of our own."""
    if machine.venv:
        return Finding("venv", "ok", machine.venv)
    fix = "python3 -m venv --system-site-packages /opt/edge-sdk/venv, and install edge-sdk there"
    return Finding("venv", "warn", "none; other packages may shadow ours", fix)


def shadows(machine: Machine) -> Finding:
    """Looks for distributions that install packages under our import names."""
    rivals = {
        package.name: sorted(package.imports & set(OURS))
        for package in machine.packages
        if package.name != "edge-sdk" and package.imports & set(OURS)
    }
    if rivals:
        told = "; ".join(f"{name} installs {', '.join(names)} too" for name, names in sorted(rivals.items()))
        return Finding("packages", "fail", told, f"{machine.pip} uninstall -y {' '.join(sorted(rivals))}")
    ours = machine.package("edge-sdk")
    if ours is None:
        return Finding("packages", "fail", "edge-sdk is not installed", f"{machine.pip} install edge-sdk")
    return Finding("packages", "ok", f"edge-sdk {ours.version}, shadowed by nothing")


def onnxruntime(machine: Machine) -> Finding:
    """Looks for ONNX Runtime; two of its distributions overwrite one another."""
    both = [p for p in machine.packages if p.name in ("onnxruntime", "onnxruntime-gpu")]
    if len({p.name for p in both}) == 2:
        pip = machine.pip
        fix = (
            f"{pip} uninstall -y onnxruntime onnxruntime-gpu && {pip} install onnxruntime-gpu=={_gpu_version(machine)}"
        )
        return Finding("onnxruntime", "fail", "onnxruntime and onnxruntime-gpu overwrite one another", fix)
    if not both:
        return Finding(
            "onnxruntime", "warn", "not installed; nothing is predicted", f"{machine.pip} install onnxruntime"
        )
    told = ", ".join(machine.probe.providers) if machine.probe.providers else "not tried"
    return Finding("onnxruntime", "ok", f"{both[0].name} {both[0].version}: {told}")


def _gpu_version(machine: Machine) -> str:
    package = machine.package("onnxruntime-gpu")
    return package.version if package else ""


def torch(machine: Machine) -> Finding:
    """Looks for torch."""
    package = machine.package("torch")
    if package is None:
        fix = f"{machine.pip} install 'edge-sdk[train]', where this device shall train"
        return Finding("torch", "warn", "not installed; this device predicts and does not train", fix)
    return Finding("torch", "ok", package.version)


def clock(machine: Machine) -> Finding:
    """Looks whether the time of day is kept right; labels from elsewhere are placed by it."""
    for mark in CLOCK_MARKS:
        if machine.tree.exists(mark):
            return Finding("clock", "ok", f"/{mark}")
    told = "no sign of synchronisation; labels from other machines may be misplaced"
    return Finding("clock", "warn", told, "sudo timedatectl set-ntp true")


def disk(machine: Machine) -> Finding:
    """Looks at the room for the device's state."""
    if not machine.writable:
        fix = f"sudo chown -R {machine.user} {machine.state_dir}, or set device.state_dir"
        return Finding("disk", "fail", f"{machine.user} may not write to {machine.state_dir}", fix)
    free = machine.disk_free_mb
    if free is None:
        return Finding("disk", "warn", "not told", "df -h")
    told, fix = (
        f"{free:.0f} MB free for {machine.state_dir}",
        "sudo apt-get clean && sudo journalctl --vacuum-size=100M",
    )
    if free < _LEAST_DISK_MB:
        return Finding("disk", "fail", f"{told}, at least {_LEAST_DISK_MB:.0f} MB are needed", fix)
    return Finding("disk", "warn" if free < _LOW_DISK_MB else "ok", told, fix if free < _LOW_DISK_MB else "")


def ports(machine: Machine) -> Finding:
    """Looks whether the user may open what sensors are connected to."""
    present = {group for pattern, group in PORTS.items() if machine.tree.find(pattern)}
    missing = sorted(present - machine.groups)
    if machine.user == "root" or not missing:
        return Finding("ports", "ok", f"{machine.user} may open them: {', '.join(sorted(present)) or 'none is there'}")
    fix = f"sudo usermod -aG {','.join(missing)} {machine.user}, then log in again"
    return Finding("ports", "warn", f"{machine.user} is not in {', '.join(missing)} and cannot open such ports", fix)


CHECKS: tuple[Check, ...] = (python, venv, shadows, onnxruntime, torch, clock, disk, ports)

__all__ = ["CHECKS", "OURS", "Check", "examine", "this_machine"]

"""Writes what the readers see of this machine into a folder, so that it can be looked at elsewhere.

No serial numbers, addresses or names of networks are among these files.
"""

from __future__ import annotations

import json
from pathlib import Path

from edge_sdk.core.errors import BoardError
from edge_sdk.core.machine import RECORD, Machine, as_record

FILES = (
    "etc/nv_tegra_release", "etc/nvpmodel.conf", "var/lib/nvpmodel/status", "usr/local/cuda/version.json",
    "usr/local/cuda/version.txt", "var/lib/dpkg/status", "proc/device-tree/model", "proc/device-tree/compatible",
    "proc/meminfo", "proc/buddyinfo", "proc/swaps", "run/systemd/timesync/synchronized",
    "etc/systemd/system/nvargus-daemon.service", "etc/systemd/system/*.wants/nvgetty.service",
    "sys/class/thermal/thermal_zone*/type", "sys/class/thermal/thermal_zone*/temp",
    "sys/class/thermal/thermal_zone*/trip_point_*", "sys/class/thermal/cooling_device*/type",
    "sys/class/thermal/cooling_device*/cur_state", "sys/class/power_supply/*/type", "sys/class/power_supply/*/capacity",
    "sys/class/power_supply/*/status", "sys/class/power_supply/*/online", "sys/class/power_supply/*/scope",
    "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/*_label", "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/*_input",
    "sys/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*", "sys/bus/i2c/drivers/ina3221x/*/iio:device*/*_input",
    "sys/devices/system/cpu/cpu[0-9]*/online", "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_*",
    "sys/class/devfreq/*/cur_freq", "sys/class/devfreq/*/max_freq", "sys/devices/platform/*gpu*/load",
)  # fmt: skip
NAMES_ONLY = ("dev/ttyTHS*", "dev/ttyUSB*", "dev/ttyACM*", "dev/i2c-*", "dev/video*", "dev/snd/pcm*")
_DPKG = ("nvidia-", "libnvinfer", "libcudnn", "cuda-")
_SITE = "opt/edge-sdk/venv/lib/python{}/site-packages"


def write(machine: Machine, folder: Path) -> int:
    """Writes the tree; returns the number of files.

    Raises:
        BoardError: the folder holds something already, or cannot be written.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise BoardError(f"{folder}: not empty; name a new folder for the recording")
        contents = {**_files(machine), **_packages(machine), RECORD: json.dumps(as_record(machine), indent=1).encode()}
        for name, content in contents.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    except OSError as error:
        raise BoardError(f"{folder}: cannot be written: {error.strerror}") from error
    return len(contents)


def _files(machine: Machine) -> dict[str, bytes]:
    tree = machine.tree
    found = {name: tree.bytes(name) for pattern in FILES for name in tree.find(pattern)}
    found |= {name: b"" for pattern in NAMES_ONLY for name in tree.find(pattern)}
    found |= {name: tree.bytes(name) for name in tree.find("proc/[0-9]*/comm") if tree.text(name) == "nvargus-daemon"}
    kept = {name: content for name, content in found.items() if content is not None}
    if "var/lib/dpkg/status" in kept:
        blocks = kept["var/lib/dpkg/status"].decode("utf-8", "replace").split("\n\n")
        ours = [block for block in blocks if block.strip().removeprefix("Package: ").startswith(_DPKG)]
        kept["var/lib/dpkg/status"] = "\n\n".join(ours).encode()
    return kept


def _packages(machine: Machine) -> dict[str, bytes]:
    """Writes the metadata of Python packages as if all lay in our environment."""
    site = _SITE.format(".".join(machine.python.split(".")[:2]))
    written = {}
    for package in reversed(machine.packages):  # of two by one name the first is imported
        info = f"{site}/{package.name.replace('-', '_')}.dist-info"
        head = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
        written[f"{info}/METADATA"] = head.encode()
        written[f"{info}/top_level.txt"] = "\n".join(sorted(package.imports)).encode()
    if machine.package("torch") is not None:
        cuda = repr(machine.torch_cuda) if machine.torch_cuda else "None"
        written[f"{site}/torch/version.py"] = f"cuda = {cuda}\n".encode()
    return written


__all__ = ["FILES", "NAMES_ONLY", "write"]

"""What may be wrong with a Jetson, each with the command that mends it; `edge-sdk doctor` shows it.

A check is a function of the machine and the board's facts, to a finding or None where it has nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable

from edge_sdk.core.boards import Facts, Finding
from edge_sdk.core.machine import Machine
from jetson import memory, power, stack, thermal
from jetson.board import installed

Check = Callable[[Machine, Facts], Finding | None]

_SMALL_MB = 9000.0  # boards up to 8 GB
_LEAST_BLOCK_MB = 2.0  # largest free block; below it GPU buffers begin to fail
_LEAST_MARGIN_C = 5.0
_TENSORRT, _CUDNN = "libnvinfer", "libcudnn"


def release(machine: Machine, facts: Facts) -> Finding:
    """An unknown board or release is no error: the tables are older than the newest board."""
    if facts.warnings:
        return Finding(
            "board", "warn", "; ".join(facts.warnings), f"{machine.pip} install --upgrade edge-sdk may know it"
        )
    return Finding("board", "ok", f"{facts.name}, {facts.system}, {facts.release}")


def libraries(machine: Machine, facts: Facts) -> Finding | None:
    """Images without the whole of JetPack lack TensorRT and cuDNN."""
    names = installed(machine.tree)
    if not names:  # no Debian, or a container that does not show it
        return None
    missing = [
        title
        for title, start in (("TensorRT", _TENSORRT), ("cuDNN", _CUDNN))
        if not any(name.startswith(start) for name in names)
    ]
    if missing:
        return Finding("libraries", "warn", f"{' and '.join(missing)} not installed", "sudo apt install nvidia-jetpack")
    return Finding("libraries", "ok", f"TensorRT {facts.tensorrt}, cuDNN {facts.cudnn}")


def argus(machine: Machine, facts: Facts) -> Finding | None:
    """The camera daemon stops working after a program that used it was killed."""
    tree = machine.tree
    if not tree.find("etc/systemd/system/nvargus-daemon.service") or not tree.find("dev/video*"):
        return None
    if "nvargus-daemon" in (tree.text(name) for name in tree.find("proc/[0-9]*/comm")):
        return Finding("nvargus-daemon", "ok", "running")
    fix = "sudo systemctl restart nvargus-daemon"
    return Finding("nvargus-daemon", "warn", "not running; CSI cameras do not open", fix)


def console(machine: Machine, facts: Facts) -> Finding | None:
    """A login prompt on the header's serial port answers a sensor's bytes."""
    tree = machine.tree
    if not tree.find("etc/systemd/system/*.wants/nvgetty.service") or not tree.find("dev/ttyTHS*"):
        return None
    fix = "sudo systemctl disable --now nvgetty"
    return Finding("serial console", "warn", "nvgetty holds the serial port of the 40-pin header", fix)


def swap(machine: Machine, facts: Facts) -> Finding | None:
    """Training needs room that a small board has only on a disk."""
    found = memory.read(machine.tree)
    total_mb = facts.memory_mb or 0.0
    make = (
        "sudo fallocate -l 8G /var/swapfile && sudo chmod 600 /var/swapfile && sudo mkswap /var/swapfile && "
        "sudo swapon /var/swapfile && echo '/var/swapfile none swap sw 0 0' | sudo tee -a /etc/fstab"
    )
    told = ", ".join(f"{s.name} {s.total_mb / 1000:.1f} GB" for s in found.swaps if not s.in_memory)
    if told:
        return Finding("swap", "ok", told)
    if total_mb > _SMALL_MB:
        return Finding("swap", "ok", "zram" if found.swaps else "none, and not needed with so much memory")
    if found.swaps:
        return Finding("swap", "warn", "zram only, which takes from the memory that it relieves", make)
    return Finding("swap", "warn", "none; training may be killed when memory runs out", make)


def fragments(machine: Machine, facts: Facts) -> Finding | None:
    """Free memory in small pieces is of no use to the GPU."""
    largest_mb = memory.read(machine.tree).largest_mb
    if largest_mb is None:
        return None
    if largest_mb < _LEAST_BLOCK_MB:
        found = f"the largest free block is {largest_mb:.1f} MB; GPU buffers may fail although memory is free"
        return Finding("free memory", "warn", found, "sudo reboot")
    return Finding("free memory", "ok", f"largest free block {largest_mb:.1f} MB")


def heat(machine: Machine, facts: Facts) -> Finding | None:
    """A board that is slowed down does not do what was measured on it."""
    found = thermal.read(machine.tree)
    if found.junction is None:
        return None
    told = f"{found.junction.name} {found.junction.temp_c:.0f} °C"
    if found.margin_c is not None and found.margin_c < _LEAST_MARGIN_C:
        fix = "cool the board, or take a lower power mode: sudo nvpmodel -m N (cat /etc/nvpmodel.conf)"
        return Finding("temperature", "warn", f"{told}, within {_LEAST_MARGIN_C:g} °C of being slowed down", fix)
    return Finding("temperature", "ok", told)


def mode(machine: Machine, facts: Facts) -> Finding | None:
    """Which power mode is set; which one is right is the user's to say."""
    found = power.modes(machine.tree)
    if not found.known:
        return None
    names = ", ".join(m.name for m in found.known)
    if found.current is None:
        return Finding("power mode", "warn", f"not among those of this board: {names}", "sudo nvpmodel -q")
    return Finding("power mode", "ok", f"{found.current.name} (number {found.current.id} on this board) of {names}")


CHECKS: tuple[Check, ...] = (
    release, stack.python, stack.onnxruntime, stack.no_torch, stack.torch, stack.kernel, stack.numpy, stack.providers,
    libraries, stack.opencv, argus, console, swap, fragments, heat, mode,
)  # fmt: skip


def run(machine: Machine, facts: Facts) -> list[Finding]:
    """Returns what every check found."""
    found = (check(machine, facts) for check in CHECKS)
    return [finding for finding in found if finding is not None]


__all__ = ["CHECKS", "Check", "run"]

"""What the Linux kernel says of the machine, read from plain files under a root, so that a recorded tree is a machine.

Kept here and not beside the boards because every machine is asked the same way: the budget of a workstation and the
page of a Jetson read the same zones. Nothing raises: a file that is absent, unreadable or nonsense is None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_MOST_BYTES = 1 << 20  # of one file; nothing read here is longer
_LEAST_C, _MOST_C = -50.0, 200.0  # outside: a zone that is powered down (−256 °C) or broken


@dataclass(frozen=True, slots=True)
class Zone:
    """One thermal zone."""

    name: str  # as the kernel calls it: "tj-thermal", "CPU-therm"
    temp_c: float
    passive_c: float | None  # where the kernel begins to throttle; None: it does not say


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of the whole machine, MB (10⁶ bytes)."""

    total_mb: float
    available_mb: float  # without swapping
    swap_total_mb: float
    swap_free_mb: float


@dataclass(frozen=True, slots=True)
class Battery:
    """What the machine runs on."""

    percent: float | None  # of the fullest battery; None: there is none
    mains: bool  # True where a charger is connected, or nothing says otherwise


class Tree:
    """A file system below a folder; names are written without a leading slash.

    Args:
        root: "/" for this machine, or a recorded tree.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def bytes(self, name: str) -> bytes | None:
        """Returns the first mebibyte of a file."""
        try:
            with (self.root / name).open("rb") as file:
                return file.read(_MOST_BYTES)
        except OSError:
            return None

    def text(self, name: str) -> str | None:
        """Returns a file's text without the NUL and white space at its ends."""
        raw = self.bytes(name)
        return None if raw is None else raw.decode("utf-8", "replace").strip("\0 \t\r\n")

    def strings(self, name: str) -> tuple[str, ...]:
        """Returns the NUL-separated strings of a property of the device tree."""
        raw = self.bytes(name) or b""
        return tuple(part.decode("utf-8", "replace").strip() for part in raw.split(b"\0") if part.strip())

    def number(self, name: str) -> float | None:
        """Returns the number that a file holds."""
        text = self.text(name)
        if text is None or not re.fullmatch(r"[+-]?\d{1,18}(\.\d{1,9})?", text):
            return None
        return float(text)

    def find(self, pattern: str) -> list[str]:
        """Returns the names that match a glob pattern, numbers in them in numeric order."""
        try:
            found = [path.relative_to(self.root).as_posix() for path in self.root.glob(pattern)]
        except OSError:
            return []
        return sorted(found, key=_natural)

    def exists(self, name: str) -> bool:
        """Says whether there is such a file or folder."""
        try:
            return (self.root / name).exists()
        except OSError:
            return False


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def zones(tree: Tree) -> list[Zone]:
    """Returns the thermal zones that can be read."""
    found = []
    for folder in tree.find("sys/class/thermal/thermal_zone*"):
        milli = tree.number(f"{folder}/temp")
        if milli is None or not _LEAST_C < milli / 1000.0 < _MOST_C:
            continue
        found.append(
            Zone(tree.text(f"{folder}/type") or folder.rpartition("/")[2], milli / 1000.0, _passive(tree, folder))
        )
    return found


def _passive(tree: Tree, folder: str) -> float | None:
    points = [
        tree.number(name.removesuffix("type") + "temp")
        for name in tree.find(f"{folder}/trip_point_*_type")
        if tree.text(name) == "passive"
    ]
    known = [milli / 1000.0 for milli in points if milli is not None and 0 < milli / 1000.0 < _MOST_C]
    return min(known, default=None)


def hottest(found: list[Zone]) -> Zone | None:
    """Returns the hottest zone, without that of a power chip, which only names a constant (`PMIC-Die`: 100 °C)."""
    return max((z for z in found if not z.name.startswith("PMIC")), key=lambda z: z.temp_c, default=None)


def memory(tree: Tree) -> Memory | None:
    """Returns the machine's memory; None where the kernel does not say."""
    values = {}
    for line in (tree.text("proc/meminfo") or "").splitlines():
        match = re.fullmatch(r"(\w+)(?:\([^)]*\))?:\s+(\d{1,15})(?: kB)?\s*", line)
        if match:
            values[match[1]] = int(match[2]) * 1.024e-3
    if "MemAvailable" not in values:
        return None
    return Memory(
        total_mb=values.get("MemTotal", values["MemAvailable"]),
        available_mb=values["MemAvailable"],
        swap_total_mb=values.get("SwapTotal", 0.0),
        swap_free_mb=values.get("SwapFree", 0.0),
    )


def battery(tree: Tree) -> Battery:
    """Returns what the machine runs on; one that has no battery hangs on the mains."""
    charges, online, discharging = [], [], False
    for folder in tree.find("sys/class/power_supply/*"):
        if tree.text(f"{folder}/type") == "Battery":
            if tree.text(f"{folder}/scope") == "Device":  # of a mouse or a headset
                continue
            percent = tree.number(f"{folder}/capacity")
            if percent is not None and 0 <= percent <= 100:
                charges.append(percent)
            discharging |= tree.text(f"{folder}/status") == "Discharging"
        else:
            online.append(tree.number(f"{folder}/online") == 1)
    if not charges:
        return Battery(None, mains=True)
    return Battery(max(charges), mains=not discharging and (any(online) or not online))


__all__ = ["Battery", "Memory", "Tree", "Zone", "battery", "hottest", "memory", "zones"]

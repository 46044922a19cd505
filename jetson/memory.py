"""Memory, which CPU and GPU share: what is free, in how big pieces, and what it swaps to.

A board can have gigabytes free and still fail to allocate a GPU buffer (`NvMapMemAllocInternalTagged … error 12`),
because nothing contiguous is left. `lfb` in tegrastats tells that; /proc/buddyinfo holds the same without root.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_sdk.core import sysfs
from edge_sdk.core.sysfs import Tree

_PAGE_MB = 4096 / 1e6


@dataclass(frozen=True, slots=True)
class Swap:
    """One place that is swapped to."""

    name: str  # "/dev/zram0", "/var/swapfile"
    total_mb: float

    @property
    def in_memory(self) -> bool:
        """True for zram, which compresses into the memory that it relieves."""
        return "/zram" in self.name


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """The board's memory."""

    system: sysfs.Memory | None
    largest_mb: float | None  # of the free blocks, the largest; None: not told
    largest_count: int  # how many blocks of that size
    swaps: tuple[Swap, ...]


def read(tree: Tree) -> SharedMemory:
    """Returns the board's memory."""
    size, count = largest_block(tree.text("proc/buddyinfo") or "")
    return SharedMemory(sysfs.memory(tree), size, count, tuple(swaps(tree.text("proc/swaps") or "")))


def largest_block(text: str) -> tuple[float | None, int]:
    """Returns size, MB, and number of the largest free blocks in /proc/buddyinfo; (None, 0) where it says nothing."""
    free: dict[int, int] = {}
    for line in text.splitlines():
        match = re.match(r"Node\s+\d+,\s+zone\s+\S+((?:\s+\d{1,12})+)\s*$", line)
        if match:
            for order, count in enumerate(map(int, match[1].split())):
                free[order] = free.get(order, 0) + count
    if not free:
        return None, 0
    best = max((order for order, count in free.items() if count), default=None)
    return (0.0, 0) if best is None else (_PAGE_MB * 2**best, free[best])


def swaps(text: str) -> list[Swap]:
    """Returns the places in /proc/swaps."""
    found = []
    for line in text.splitlines():
        match = re.match(r"(/\S+)\s+(?:partition|file)\s+(\d{1,15})\s", line)
        if match:
            found.append(Swap(match[1], int(match[2]) * 1.024e-3))
    return found


__all__ = ["SharedMemory", "Swap", "largest_block", "read", "swaps"]

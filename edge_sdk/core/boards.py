"""The seam between the SDK and the board it runs on: facts, readings, checks; plug-ins of `edge_sdk.boards`."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from edge_sdk.core import registry, sysfs
from edge_sdk.core.errors import PluginError
from edge_sdk.core.machine import Machine
from edge_sdk.core.sysfs import Tree

State = Literal["ok", "warn", "fail"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    found: str  # what is there
    fix: str = ""  # the command that mends it, or one sentence where no command can


@dataclass(frozen=True, slots=True)
class Facts:
    """What a board is. Everything but the name may be unknown: ""."""

    name: str  # "Jetson Orin Nano"
    soc: str = ""  # "tegra234"
    capability: str = ""  # compute capability of its GPU: "8.7"
    system: str = ""  # "L4T 36.4.3"
    release: str = ""  # "JetPack 6.2"
    cuda: str = ""
    tensorrt: str = ""
    cudnn: str = ""
    memory_mb: float | None = None
    warnings: tuple[str, ...] = ()  # what could not be told for sure


@dataclass(frozen=True, slots=True)
class Readings:
    """How the board is doing now; None: it does not say."""

    temp_c: float | None = None  # hottest zone
    throttle_c: float | None = None  # where that zone is slowed down by the kernel
    free_mb: float | None = None  # memory available without swapping
    largest_free_mb: float | None = None  # biggest contiguous block that is free
    power_mode: str | None = None  # "MAXN_SUPER"
    power_mw: float | None = None  # of the whole board
    battery_percent: float | None = None
    mains: bool = True


class Board(ABC):
    """A kind of board.

    Args:
        tree: the machine's file system, or a recorded one.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    @classmethod
    @abstractmethod
    def here(cls, tree: Tree) -> bool:
        """Says whether the machine is such a board."""

    @abstractmethod
    def facts(self) -> Facts:
        """Returns what the board is."""

    def readings(self) -> Readings:
        """Returns how it is doing now; reads files only, and needs no root."""
        hottest, memory = sysfs.hottest(sysfs.zones(self.tree)), sysfs.memory(self.tree)
        battery = sysfs.battery(self.tree)
        return Readings(
            temp_c=hottest.temp_c if hottest else None,
            throttle_c=hottest.passive_c if hottest else None,
            free_mb=memory.available_mb if memory else None,
            battery_percent=battery.percent,
            mains=battery.mains,
        )

    def checks(self, machine: Machine) -> list[Finding]:
        """Returns what is right and wrong with this kind of board."""
        return []


class Plain(Board):
    """A machine that no plug-in knows."""

    @classmethod
    def here(cls, tree: Tree) -> bool:
        return True

    def facts(self) -> Facts:
        memory = sysfs.memory(self.tree)
        name = self.tree.text("proc/device-tree/model") or self.tree.text("sys/class/dmi/id/product_name")
        return Facts(name or "this machine", memory_mb=memory.total_mb if memory else None)


def find(tree: Tree) -> Board:
    """Returns the board of a machine, from the first plug-in that knows it."""
    for name in registry.names("boards"):
        try:
            kind: type[Board] = registry.load("boards", name)
        except PluginError as error:
            log.warning("board %s: %s", name, error)
            continue
        if kind.here(tree):
            return kind(tree)
    return Plain(tree)


__all__ = ["Board", "Facts", "Finding", "Plain", "Readings", "State", "find"]

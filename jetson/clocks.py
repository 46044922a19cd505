"""Clocks and load: CPU cores, GPU and memory, from sysfs, or from what `jetson_clocks --show` printed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_sdk.core.sysfs import Tree


@dataclass(frozen=True, slots=True)
class Core:
    """One CPU core."""

    number: int
    online: bool
    governor: str  # "": not told
    mhz: float | None
    max_mhz: float | None


@dataclass(frozen=True, slots=True)
class Unit:
    """The GPU or the memory controller."""

    mhz: float | None
    max_mhz: float | None


@dataclass(frozen=True, slots=True)
class Clocks:
    """All clocks of the board."""

    cores: tuple[Core, ...]
    gpu: Unit | None
    memory: Unit | None
    gpu_load: float | None = None  # 0 … 1


def read(tree: Tree) -> Clocks:
    """Returns the clocks that everybody may read; the memory's are root's on most releases."""
    cores = tuple(_core(tree, folder) for folder in tree.find("sys/devices/system/cpu/cpu[0-9]*"))
    gpu = next((_unit(tree, f) for f in tree.find("sys/class/devfreq/*") if _is_gpu(f)), None)
    return Clocks(cores, gpu, None, _load(tree))


def _core(tree: Tree, folder: str) -> Core:
    online = tree.number(f"{folder}/online")  # the first core has none: it cannot be switched off
    khz, most = tree.number(f"{folder}/cpufreq/scaling_cur_freq"), tree.number(f"{folder}/cpufreq/scaling_max_freq")
    return Core(
        number=int(folder.rpartition("cpu")[2]),
        online=online is None or online == 1,
        governor=tree.text(f"{folder}/cpufreq/scaling_governor") or "",
        mhz=None if khz is None else khz / 1e3,
        max_mhz=None if most is None else most / 1e3,
    )


def _is_gpu(folder: str) -> bool:
    return re.search(r"gpu|gv11b|gp10b|gm20b|ga10b|gb10b", folder) is not None


def _unit(tree: Tree, folder: str) -> Unit:
    now, most = tree.number(f"{folder}/cur_freq"), tree.number(f"{folder}/max_freq")
    return Unit(None if now is None else now / 1e6, None if most is None else most / 1e6)


def _load(tree: Tree) -> float | None:
    """Returns the GPU's load; the kernel tells it in thousandths."""
    for pattern in ("sys/devices/platform/*gpu*/load", "sys/devices/*gpu*/load", "sys/devices/platform/*/*gpu*/load"):
        for name in tree.find(pattern):
            load = tree.number(name)
            if load is not None and 0 <= load <= 1000:
                return load / 1000.0
    return None


def parse_show(text: str) -> Clocks:
    """Returns the clocks that `jetson_clocks --show` printed, kHz for cores and Hz for the rest."""
    cores, units = [], {}
    for line in text.splitlines():
        head, _, rest = line.strip().partition(":" if line.startswith("cpu") else " ")
        keys = dict(re.findall(r"(\w+)=([\w-]+)", rest))
        if re.fullmatch(r"cpu\d{1,4}", head) and keys:
            cores.append(
                Core(
                    number=int(head[3:]),
                    online=keys.get("Online", "1") == "1",
                    governor=keys.get("Governor", ""),
                    mhz=_scaled(keys.get("CurrentFreq"), 1e3),
                    max_mhz=_scaled(keys.get("MaxFreq"), 1e3),
                )
            )
        elif head in ("GPU", "EMC") and keys:
            units[head] = Unit(_scaled(keys.get("CurrentFreq"), 1e6), _scaled(keys.get("MaxFreq"), 1e6))
    return Clocks(tuple(cores), units.get("GPU"), units.get("EMC"))


def _scaled(text: str | None, by: float) -> float | None:
    return int(text) / by if text is not None and re.fullmatch(r"\d{1,15}", text) else None


__all__ = ["Clocks", "Core", "Unit", "parse_show", "read"]

"""A line of tegrastats as a record.

Its form changes with board and release, so every part is looked for by itself and none is needed: a line that is cut
off, or of a release to come, gives what can be read of it. Memory is as printed (MB here means 2²⁰ bytes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_UNITS_MB = {"kB": 1 / 1024, "MB": 1.0, "GB": 1024.0}
_N = r"(\d{1,9})"
_RAM = re.compile(rf"\bRAM {_N}/{_N}MB(?: \(lfb {_N}x{_N}(kB|MB|GB)\))?")
_SWAP = re.compile(rf"\bSWAP {_N}/{_N}MB(?: \(cached {_N}MB\))?")
_CPU = re.compile(r"\bCPU \[([^\]]*)\]")
_CORE = re.compile(rf"{_N}%(?:@{_N})?$")
_EMC = re.compile(rf"\bEMC_FREQ (?:{_N}%)?(?:@{_N})?")
_GPU = re.compile(rf"\bGR3D_FREQ (?:{_N}%)?(?:@\[?({_N}(?:,{_N}){{0,15}})\]?)?")
_TEMP = re.compile(r"(?<!\S)([A-Za-z][\w-]*)@(-?\d{1,4}(?:\.\d{1,6})?)C\b")
_RAIL = re.compile(rf"(?<!\S)([A-Z][A-Z0-9_]*) {_N}(?:mW)?/{_N}(?:mW)?(?!\S)")
_ENGINE = re.compile(rf"(?<!\S)([A-Z][A-Z0-9_]*) (?:off|{_N}%(?:@{_N})?|{_N})(?!\S)")
_NOT_RAILS = ("RAM", "SWAP")
_NOT_ENGINES = ("CPU", "EMC_FREQ", "GR3D_FREQ", "RAM", "SWAP")
_POWERED_DOWN_C = -200.0


@dataclass(frozen=True, slots=True)
class CoreLoad:
    """One CPU core."""

    load: float  # 0 … 1
    mhz: int | None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """One engine (encoder, decoder, image compositor); both None: off."""

    load: float | None  # 0 … 1
    mhz: int | None


@dataclass(frozen=True, slots=True)
class Power:
    """One supply."""

    now_mw: int
    mean_mw: int  # since tegrastats began


@dataclass(frozen=True, slots=True)
class Stats:
    """What a line says; None or empty where it says nothing."""

    ram_used_mb: int | None
    ram_total_mb: int | None
    largest_free_mb: float | None  # lfb
    largest_free_count: int | None
    swap_used_mb: int | None
    swap_total_mb: int | None
    cores: tuple[CoreLoad | None, ...]  # None: off
    memory_load: float | None  # of the memory controller, 0 … 1
    gpu_load: float | None  # 0 … 1; Thor does not tell
    gpu_mhz: tuple[int, ...]  # one per cluster
    engines: Mapping[str, EngineLoad]
    temps_c: Mapping[str, float]  # zones that are powered up
    rails: Mapping[str, Power]  # "NC" (not connected) left out


def parse(line: str) -> Stats:
    """Returns what a line says; never raises, whatever the line holds."""
    ram, swap, emc, gpu = (_groups(pattern, line) for pattern in (_RAM, _SWAP, _EMC, _GPU))
    return Stats(
        ram_used_mb=_int(ram, 0),
        ram_total_mb=_int(ram, 1),
        largest_free_mb=_largest(ram),
        largest_free_count=_int(ram, 2),
        swap_used_mb=_int(swap, 0),
        swap_total_mb=_int(swap, 1),
        cores=_cores(line),
        memory_load=_fraction(_int(emc, 0)),
        gpu_load=_fraction(_int(gpu, 0)),
        gpu_mhz=tuple(map(int, gpu[1].split(","))) if len(gpu) > 1 and gpu[1] else (),
        engines=_engines(line),
        temps_c={name: float(value) for name, value in _TEMP.findall(line) if float(value) > _POWERED_DOWN_C},
        rails=_rails(line),
    )


def _groups(pattern: re.Pattern[str], line: str) -> tuple[str | None, ...]:
    match = pattern.search(line)
    return match.groups() if match else ()


def _int(groups: tuple[str | None, ...], at: int) -> int | None:
    text = groups[at] if at < len(groups) else None
    return None if text is None else int(text)


def _largest(ram: tuple[str | None, ...]) -> float | None:
    size, unit = ram[3:5] if len(ram) == 5 else (None, None)
    return None if size is None or unit is None else int(size) * _UNITS_MB[unit]


def _fraction(percent: int | None) -> float | None:
    return None if percent is None else percent / 100.0


def _cores(line: str) -> tuple[CoreLoad | None, ...]:
    match = _CPU.search(line)
    found: list[CoreLoad | None] = []
    for text in match[1].split(",") if match else ():
        core = _CORE.match(text.strip())
        found.append(CoreLoad(int(core[1]) / 100.0, _int(core.groups(), 1)) if core else None)
    return tuple(found)


def _engines(line: str) -> dict[str, EngineLoad]:
    """Reads "NVENC off", "VIC 36%@115" and "VIC_FREQ 729" alike."""
    return {
        name.removesuffix("_FREQ"): _engine(load, at or alone)
        for name, load, at, alone in _ENGINE.findall(line)
        if name not in _NOT_ENGINES
    }  # fmt: skip


def _engine(percent: str, mhz: str) -> EngineLoad:
    return EngineLoad(_fraction(int(percent)) if percent else None, int(mhz) if mhz else None)


def _rails(line: str) -> dict[str, Power]:
    return {
        name: Power(int(now), int(mean))
        for name, now, mean in _RAIL.findall(line)
        if name not in _NOT_RAILS and name != "NC"
    }


__all__ = ["CoreLoad", "EngineLoad", "Power", "Stats", "parse"]

"""May the device train now? Decided before each phase from temperature, free memory and what the device is for.

Plain files of the kernel, tolerant of every one that is absent: a board that does not tell its temperature is not
held to be too hot. Training runs niced in a child besides; this says only when it must not begin at all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_sdk.core.config import TrainerConfig

_HYSTERESIS_C = 5.0  # once too hot, training waits until it is so much cooler


def at_leisure() -> bool:
    """Says that the foreground keeps up: the default of those who cannot tell."""
    return False


class Budget:
    """Looks at the machine.

    Args:
        config: limits.
        root: where /proc and /sys are.
        behind: says whether predictions come later than they should, so that training has to yield.
    """

    def __init__(
        self, config: TrainerConfig, *, root: Path = Path("/"), behind: Callable[[], bool] = at_leisure
    ) -> None:  # fmt: skip
        self._config = config
        self._root = root
        self._behind = behind
        self._hot = False

    def __call__(self) -> str:
        """Returns "" or why training must wait."""
        return self._temperature() or self._memory() or ("predictions come late" if self._behind() else "")

    def _temperature(self) -> str:
        hottest = temperature_c(self._root)
        if hottest is None:
            return ""
        limit_c = self._config.max_temp_c - (_HYSTERESIS_C if self._hot else 0.0)
        self._hot = hottest >= limit_c
        return f"{hottest:g} °C, training begins below {limit_c:g} °C" if self._hot else ""

    def _memory(self) -> str:
        free = free_mb(self._root)
        if free is None or free >= self._config.min_free_mb:
            return ""
        return f"{free:.0f} MB of memory are free, training begins at {self._config.min_free_mb:g} MB"


def temperature_c(root: Path = Path("/")) -> float | None:
    """Returns the hottest thermal zone, °C; None where none can be read."""
    found = [_number(zone) for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))]
    known = [value / 1000.0 for value in found if value is not None]
    return max(known, default=None)


def free_mb(root: Path = Path("/")) -> float | None:
    """Returns the memory that is available without swapping, MB; None where it cannot be read."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0]) / 1000.0
    return None


def _number(path: Path) -> float | None:
    """A zone that is off gives an error or nonsense."""
    try:
        value = float(path.read_text())
    except (OSError, ValueError):
        return None
    return value if -50_000 < value < 200_000 else None


__all__ = ["Budget", "at_leisure", "free_mb", "temperature_c"]

"""What a bench says of its sensors: rate, jitter, loss, age, and the offset between their clocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.clock import NS
from edge_sdk.core.records import Array, Float32, Int64

_KNOCK_APART_S = 0.5  # closer together they would be one
_BEFORE_S = 0.4  # a knock begins within this before its strongest moment: a flash ends as strongly as it begins
_RISE = 0.4  # share of a knock's height at which it begins


@dataclass(frozen=True, slots=True)
class Heard:
    """What one sensor delivered."""

    rows: Int64  # (chunks, 7): t_ns, n, period_ns, t_err_ns, gap, flags, arrived ns
    times: Int64  # (n,) ns
    levels: Float32  # (n, channels); frames: their brightness
    picture: NDArray[np.uint8]  # (h, w, 3) the last frame, thinned out; empty for others

    @staticmethod
    def load(path: Path) -> Heard:
        with np.load(path) as file:
            return Heard(file["rows"], file["times"], file["levels"], file["picture"])


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of one sensor."""

    samples: int
    rate_hz: float  # of the sensor, whatever was lost
    jitter_ms: float  # 95 % of the intervals are no further from the period
    lost: int  # samples that would have fitted into the holes
    hole_s: float  # longest interval
    gaps: int  # chunks that say that something is missing before them
    age_ms: float  # of a chunk's newest sample when it reached the event loop, median
    err_ms: float  # what the driver says its times may be off, median

    @property
    def loss(self) -> float:
        """Share of the samples that never came."""
        return self.lost / max(1, self.samples + self.lost)


def measure(heard: Heard) -> Measured:
    """Returns the figures; ValueError for fewer than three samples."""
    if len(heard.times) < 3:
        raise ValueError(f"only {len(heard.times)} samples")
    steps = np.diff(heard.times).astype(np.float64)
    typical = float(np.median(steps))
    missed = np.maximum(np.rint(steps / typical), 1)  # periods that each interval covers
    period = float(steps.sum() / missed.sum())
    rows = heard.rows
    newest = heard.times[np.cumsum(rows[:, 1]) - 1]
    return Measured(
        samples=len(heard.times),
        rate_hz=NS / period,
        jitter_ms=float(np.quantile(np.abs(steps - missed * period), 0.95)) / 1e6,
        lost=int(missed.sum()) - len(steps),
        hole_s=float(steps.max()) / NS,
        gaps=int(rows[1:, 4].sum()),
        age_ms=float(np.median(rows[:, 6] - newest)) / 1e6,
        err_ms=float(np.median(rows[:, 3])) / 1e6,
    )


def activity(heard: Heard) -> Float32:
    """Returns how much each sample differs from the one before, 1 at the greatest: (n,)."""
    change: Array = np.abs(np.diff(heard.levels, axis=0, prepend=heard.levels[:1])).sum(axis=1)
    change = np.maximum(change - np.quantile(change, 0.9), 0)
    return (change / max(float(change.max()), 1e-12)).astype(np.float32)


def knocks(heard: Heard, count: int) -> Int64:
    """Returns when the strongest `count` events began, in order of time, ns; fewer where there were fewer."""
    left, times = activity(heard), heard.times
    strength, found = left.copy(), list[int]()
    while len(found) < count and left.max(initial=0.0) > _RISE / 2:
        peak = int(left.argmax())
        near = np.abs(times - times[peak]) < _KNOCK_APART_S * NS
        rise = near & (times <= times[peak]) & (times > times[peak] - _BEFORE_S * NS)
        found.append(int(times[np.flatnonzero(rise & (strength >= _RISE * strength[peak]))[0]]))
        left[near] = 0.0
    return np.array(sorted(found), np.int64)


def offset_ms(first: Int64, second: Int64) -> tuple[float, float]:
    """Returns how much later the second sensor's knocks are, median, and their spread (greatest − least), ms.

    Raises:
        ValueError: they did not notice the same number of knocks.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"one sensor noticed {len(first)} knocks, the other {len(second)}")
    apart = (second - first) / 1e6
    return float(np.median(apart)), float(np.ptp(apart))


__all__ = ["Heard", "Measured", "activity", "knocks", "measure", "offset_ms"]

"""From a sensor's own sample times to the federation's time grid.

`Timeline` gives every sample a time: exact where the driver knows it, else smoothed by a second-order loop that
follows the sensor's drift and averages the jitter of the time stamps away. `Aligner` resamples linearly to the
spec's rate. A run ends at `gap_before` and at holes too long for any window; nothing is interpolated across that
border. Shorter holes are bridged, and lower the measured share. A driver that loses a sample here and there but
knows the times of the others therefore leaves `gap_before` alone: a window lives with a few bridged samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.clock import NS
from edge_sdk.core.records import Array, Chunk, Float32, Int64
from edge_sdk.streams.counters import Counters, Drop

_PULL = 0.1  # share of a time stamp's error that is corrected per chunk
_DRIFT = _PULL**2 / 4  # and what of it goes into the sample period (critically damped)
_MAX_DRIFT = 0.02  # a sensor clock further off than this is configured wrongly
_MAX_STEP = 1.75  # neighbours further apart than this, in periods, have lost a sample between them


class Grid:
    """Points at whole multiples of 1/rate on the stream clock, in exact integer arithmetic."""

    def __init__(self, rate_hz: float) -> None:
        rate = Fraction(rate_hz).limit_denominator(1000)
        self._num, self._den = rate.numerator, rate.denominator * NS
        self.period_ns = self._den / self._num

    def time_ns(self, position: int) -> int:
        """Returns the time of a grid point."""
        return position * self._den // self._num

    def times_ns(self, start: int, count: int) -> Int64:
        """Returns the times of `count` grid points from `start` on: (count,)."""
        base, rest = divmod(start * self._den, self._num)
        return (np.arange(count, dtype=np.int64) * self._den + rest) // self._num + base

    def nearest(self, t_ns: int) -> int:
        """Returns the grid point nearest to a time."""
        return (2 * t_ns * self._num + self._den) // (2 * self._den)

    def at_or_after(self, t_ns: int) -> int:
        """Returns the first grid point that is not before a time."""
        return -(-t_ns * self._num // self._den)

    def at_or_before(self, t_ns: int) -> int:
        """Returns the last grid point that is not after a time."""
        return -(-(t_ns + 1) * self._num // self._den) - 1


class Timeline:
    """Sample times of one stream from the time stamps of its chunks."""

    def __init__(self) -> None:
        self._next_ns: float | None = None  # where the next sample is expected
        self._period_ns = 0.0  # estimated

    def place(self, chunk: Chunk) -> Int64:
        """Returns the time of each sample, (n,) ns; times that a driver states without uncertainty stay as they are."""
        n = len(chunk.data)
        if chunk.times_ns is not None:
            self._next_ns = None
            return chunk.times_ns
        if chunk.t_err_ns == 0 or chunk.period_ns == 0:
            self._next_ns = None
            times: Int64 = np.arange(n, dtype=np.int64) * chunk.period_ns + chunk.t_ns
            return times
        return self._smooth(chunk, n)

    def _smooth(self, chunk: Chunk, n: int) -> Int64:
        nominal = float(chunk.period_ns)
        expected = self._next_ns
        if expected is None or chunk.gap_before or abs(chunk.t_ns - expected) > self._tolerance_ns(chunk):
            expected, self._period_ns = float(chunk.t_ns), nominal
        error = chunk.t_ns - expected
        # Spread over the chunk, so that times never run backwards however uncertain the stamps are.
        step = self._period_ns + float(np.clip(_PULL * error / n, -0.45 * nominal, 0.45 * nominal))
        limit = _MAX_DRIFT * nominal
        self._period_ns = float(np.clip(self._period_ns + _DRIFT * error / n, nominal - limit, nominal + limit))
        self._next_ns = expected + n * step
        times: Int64 = np.rint(expected + np.arange(n) * step).astype(np.int64)
        return times

    @staticmethod
    def _tolerance_ns(chunk: Chunk) -> float:
        """A stamp further off than this is no jitter: samples were lost, or the sensor was silent."""
        return max(1.5 * chunk.period_ns, 4.0 * chunk.t_err_ns)


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive grid samples."""

    start: int  # grid position of the first
    values: Float32  # (C, n)
    measured: NDArray[np.bool_]  # (n,) False: bridged across a hole
    totals: Int64  # (n,) source samples of the stream up to and including each grid point
    before: int  # source samples of the stream before this block
    fresh: bool  # a new run begins: nothing in it may be mixed with what was before


class Aligner:
    """Resamples one stream to the grid of its modality.

    Args:
        rate_hz: rate of the grid.
        channels: channels per sample.
        max_hole_ns: holes up to this are bridged, longer ones end the run.
        counters: where dropped samples are counted.
        source_ns: period of the sensor, ns, where it is longer than the grid's; 0: it is not.
    """

    def __init__(
        self, rate_hz: float, channels: int, *, max_hole_ns: int, counters: Counters, source_ns: float = 0.0
    ) -> None:
        self.grid = Grid(rate_hz)
        self._longest_ns = max(self.grid.period_ns, source_ns) * _MAX_STEP
        self.total = 0  # source samples accepted so far
        self._channels = channels
        self._max_hole_ns = max(max_hole_ns, round(2.5 * max(self.grid.period_ns, source_ns)))
        self._reach_ns = int(self.grid.period_ns / 64)  # rounding of sample times must not cost a grid point
        self._counters = counters
        self._timeline = Timeline()
        self._last_ns: int | None = None  # newest sample accepted, of any run
        self._last: Array = np.zeros(channels, np.float32)
        self._cut = True  # the next sample begins a run
        self._next = -(2**62)  # first grid position not given out yet

    def push(self, chunk: Chunk) -> list[Block]:
        """Returns the grid samples that this chunk completes, one block per run (a block may be empty)."""
        n = len(chunk.data)
        if n == 0:
            self._cut |= chunk.gap_before
            return []
        data = chunk.data.reshape(n, -1)
        if data.shape[1] != self._channels or not timed(chunk):
            self._counters.drop(Drop.MALFORMED, n)
            return []
        self._cut |= chunk.gap_before
        times, data = self._increasing(self._timeline.place(chunk), data)
        times, data = self._finite(times, data)
        if not len(times):
            return []
        previous = times[0] if self._cut or self._last_ns is None else self._last_ns
        holes = np.flatnonzero(np.diff(times, prepend=previous) > self._max_hole_ns)
        borders = [0, *(int(i) for i in holes if i > 0), len(times)]
        self._cut |= bool(holes.size) and holes[0] == 0
        blocks = []
        for a, b in pairwise(borders):
            blocks.append(self._run(times[a:b], data[a:b]))
            self._cut = True
        self._cut = False
        return blocks

    def _increasing(self, times: Int64, data: Array) -> tuple[Int64, Array]:
        last = times[0] - 1 if self._last_ns is None else self._last_ns
        if times[0] > last and (np.diff(times) > 0).all():
            return times, data
        newest = np.maximum.accumulate(np.concatenate(([last], times)))[:-1]
        keep = times > newest
        self._counters.drop(Drop.OVERLAP, int((~keep).sum()))
        return times[keep], data[keep]

    def _finite(self, times: Int64, data: Array) -> tuple[Int64, Array]:
        if data.dtype.kind != "f" or np.isfinite(data).all():
            return times, data
        keep = np.isfinite(data).all(axis=1)
        self._counters.drop(Drop.NON_FINITE, int((~keep).sum()))
        return times[keep], data[keep]

    def _run(self, times: Int64, data: Array) -> Block:
        """Interpolates within one run; only the first piece of a chunk can continue the previous one."""
        fresh, before = self._cut, self.total
        if fresh:
            half = int(self.grid.period_ns / 2)
            self._next = max(self._next, self.grid.at_or_after(int(times[0]) - half))
        start = self._next
        stop = max(start, self.grid.at_or_before(int(times[-1]) + self._reach_ns) + 1)
        points = self.grid.times_ns(start, stop - start)
        values = self._values(points, times, data, fresh=fresh)
        measured = self._measured(points, times, fresh=fresh)
        totals = before + np.searchsorted(times, points + self._reach_ns, side="right")
        self.total += len(times)
        self._last_ns, self._last = int(times[-1]), data[-1].copy()
        self._next = stop
        return Block(start, values, measured, totals, before, fresh)

    def _values(self, points: Int64, times: Int64, data: Array, *, fresh: bool) -> Float32:
        if len(points) == len(times) and np.array_equal(points, times):
            return np.ascontiguousarray(data.T, np.float32)
        out = np.empty((self._channels, len(points)), np.float32)
        if len(points):
            if not fresh and self._last_ns is not None:
                times = np.concatenate(([self._last_ns], times))
                data = np.concatenate((self._last[None], data))
            origin = times[0]
            x, known = points - origin, times - origin
            for c in range(self._channels):
                out[c] = np.interp(x, known, data[:, c])
        return out

    def _measured(self, points: Int64, times: Int64, *, fresh: bool) -> NDArray[np.bool_]:
        if not fresh and self._last_ns is not None:
            times = np.concatenate(([self._last_ns], times))
        steps = np.diff(times)
        if not len(points) or not len(steps) or steps.max() <= self._longest_ns:
            return np.ones(len(points), np.bool_)
        right = np.clip(np.searchsorted(times, points), 1, len(times) - 1)
        nearest = np.minimum(np.abs(points - times[right]), np.abs(points - times[right - 1]))
        result: NDArray[np.bool_] = (steps[right - 1] <= self._longest_ns) | (nearest <= self.grid.period_ns / 4)
        return result


def timed(chunk: Chunk) -> bool:
    """Says whether every sample of the chunk has a time."""
    if chunk.times_ns is not None:
        return chunk.times_ns.shape == (len(chunk.data),)
    return len(chunk.data) == 1 or chunk.period_ns > 0


__all__ = ["Aligner", "Block", "Grid", "Timeline", "timed"]

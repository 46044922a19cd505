"""A ring of grid samples: fixed memory per stream, addressed by grid position, no per-sample Python work."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.records import Float32, Int64


class Ring:
    """The newest `capacity` grid samples of one uninterrupted run.

    Positions are numbers of points on the stream's time grid, so that a slice by position is a slice by time.

    Args:
        channels: channels per sample.
        capacity: grid samples held; memory is taken once, here.
    """

    def __init__(self, channels: int, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a ring holds at least 1 sample, found {capacity}")
        self.capacity = capacity
        self._values = np.zeros((channels, capacity), np.float32)
        self._measured = np.zeros(capacity, np.bool_)
        self._totals = np.zeros(capacity, np.int64)
        self._begin = 0  # first position of the run
        self._base = 0  # source samples before the run
        self.stop = 0  # position after the newest

    @property
    def start(self) -> int:
        """Oldest position still held."""
        return max(self._begin, self.stop - self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes taken; never changes."""
        return self._values.nbytes + self._measured.nbytes + self._totals.nbytes

    def restart(self, position: int, total: int) -> None:
        """Forgets everything; the next sample appended has this position, after `total` source samples."""
        self._begin = self.stop = position
        self._base = total

    def append(self, values: Float32, measured: NDArray[np.bool_], totals: Int64) -> None:
        """Adds samples after the newest one; the oldest make room.

        Args:
            values: (C, n); n may exceed the capacity, then only the end stays.
            measured: (n,) False where the value is interpolated across a hole.
            totals: (n,) source samples up to and including each grid point, from the start of the stream.
        """
        n = values.shape[1]
        skip = max(0, n - self.capacity)
        at = (self.stop + skip) % self.capacity
        head = min(n - skip, self.capacity - at)
        for target, source in ((self._values, values), (self._measured, measured), (self._totals, totals)):
            target[..., at : at + head] = source[..., skip : skip + head]
            target[..., : n - skip - head] = source[..., skip + head :]
        self.stop += n

    def values(self, start: int, stop: int) -> Float32:
        """Returns a copy of positions [start, stop): (C, stop − start)."""
        at, head = self._locate(start, stop)
        out = np.empty((self._values.shape[0], stop - start), np.float32)
        out[:, :head] = self._values[:, at : at + head]
        out[:, head:] = self._values[:, : stop - start - head]
        return out

    def quality(self, start: int, stop: int) -> float:
        """Returns the share of positions [start, stop) that were measured."""
        at, head = self._locate(start, stop)
        count = np.count_nonzero(self._measured[at : at + head])
        count += np.count_nonzero(self._measured[: stop - start - head])
        return float(count) / (stop - start)

    def total(self, position: int) -> int:
        """Returns how many source samples the stream had up to and including this position."""
        if position < self._begin:
            return self._base
        self._locate(position, position + 1)
        return int(self._totals[position % self.capacity])

    def _locate(self, start: int, stop: int) -> tuple[int, int]:
        """Returns where `start` lies, and how many samples follow before the ring wraps."""
        if not self.start <= start < stop <= self.stop:
            raise IndexError(f"positions [{start}, {stop}) are not held; held: [{self.start}, {self.stop})")
        at = start % self.capacity
        return at, min(stop - start, self.capacity - at)


__all__ = ["Ring"]

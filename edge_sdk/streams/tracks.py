"""One modality on its way into windows: time series on a grid, and samples of which the newest counts.

A track finishes each window index at most once, in order. That is what lets `window` stay small: nothing has to be
remembered about windows that are over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from edge_sdk.core.clock import NS
from edge_sdk.core.records import Array, Chunk, Float32, Int64
from edge_sdk.core.spec import ModalitySpec, WindowSpec
from edge_sdk.streams.align import Aligner, Block, Grid
from edge_sdk.streams.counters import Counters, Drop
from edge_sdk.streams.ring import Ring
from edge_sdk.streams.summary import Summary, of_images, of_series


@dataclass(frozen=True, slots=True)
class Times:
    """The federation's window grid in nanoseconds."""

    hop_ns: int
    length_ns: int
    deadline_ns: int  # after the end of a window
    horizon_ns: int  # after the deadline; parts that come later are dropped

    @staticmethod
    def of(window: WindowSpec, join_horizon_s: float) -> Times:
        """Returns the grid of a spec."""
        return Times(*(round(s * NS) for s in (window.hop_s, window.length_s, window.deadline_s, join_horizon_s)))

    def start(self, index: int) -> int:
        """Returns when a window begins."""
        return index * self.hop_ns

    def end(self, index: int) -> int:
        """Returns when a window ends (exclusive)."""
        return index * self.hop_ns + self.length_ns

    def deadline(self, index: int) -> int:
        """Returns when a window is given out at the latest."""
        return self.end(index) + self.deadline_ns

    def expired(self, index: int, now_ns: int) -> bool:
        """Says whether nobody joins a part to this window any more."""
        return now_ns > self.deadline(index) + self.horizon_ns


@dataclass(frozen=True, slots=True)
class Part:
    """One modality of one window."""

    index: int
    modality: str
    data: Float32  # the spec's shape
    quality: float  # share of samples measured, [0, 1]
    newest_ns: int  # time of the newest sample in it
    summary: Callable[[], Summary] | None = None  # tells what the raw samples look like; None: nothing can be told


class Track(ABC):
    """Turns the chunks of one modality into parts of windows."""

    def __init__(self, spec: ModalitySpec, times: Times, counters: Counters | None = None) -> None:
        self.spec = spec
        self.counters = counters or Counters()
        self._times = times

    def prepare(self) -> None:  # noqa: B027  most have nothing to load
        """Loads what the parts need (a tokenizer); may take seconds, so that it is called outside the event loop."""

    @abstractmethod
    def push(self, chunk: Chunk, now_ns: int) -> list[Part]:
        """Returns the parts that are complete with this chunk."""

    @property
    @abstractmethod
    def pending(self) -> int:
        """Samples that may still become part of a window."""

    def due(self, now_ns: int) -> list[Part]:
        """Returns the parts that are complete because their time is over."""
        return []

    @property
    def next_due_ns(self) -> int | None:
        """When `due` has something to say; None: not before the next chunk."""
        return None


class RunTrack(Track):
    """Base of tracks whose parts come from one uninterrupted run of samples."""

    def __init__(
        self, spec: ModalitySpec, times: Times, window: WindowSpec, counters: Counters | None = None
    ) -> None:  # fmt: skip
        super().__init__(spec, times, counters)
        # With a longer hole no window is good enough.
        self._hole_ns = int((1.0 - window.min_quality) * times.length_ns)
        self._min_quality = window.min_quality
        self._index = 0  # next window to finish
        self._settled = 0  # source samples whose fate is counted

    def _trouble(self, index: int, quality: float, now_ns: int) -> Drop | None:
        """Returns why a window cannot be given out."""
        if self._times.expired(index, now_ns):
            return Drop.TOO_LATE
        return Drop.LOW_QUALITY if quality < self._min_quality else None

    def _settle(self, total: int, reason: Drop | None) -> None:
        """Decides the fate of all source samples up to `total`; those decided before stay as they are."""
        count = total - self._settled
        if count <= 0:
            return
        if reason is None:
            self.counters.used += count
        else:
            self.counters.drop(reason, count)
        self._settled = total


class SeriesTrack(RunTrack):
    """A time series: a part needs every grid point of its window from one uninterrupted run.

    Args:
        spec: shape (channels, length), rate.
        times: the window grid.
        window: the least quality.
        factor: grid points per sample of the part; above 1 `extract` takes them back to its rate.
        source_ns: period of the sensor, ns; 0: not longer than the grid's.
        extract: makes the part of a window's grid points, (channels, factor · length).
        counters: where samples are counted; None: its own.
    """

    def __init__(
        self,
        spec: ModalitySpec,
        times: Times,
        window: WindowSpec,
        *,
        factor: int = 1,
        source_ns: float = 0.0,
        extract: Callable[[Float32], Float32] | None = None,
        counters: Counters | None = None,
    ) -> None:
        super().__init__(spec, times, window, counters)
        channels, self._length = spec.shape[0], factor * spec.shape[1]
        self._grid, self._factor = Grid(spec.rate_hz), factor
        self._extract = extract
        self._aligner = Aligner(
            factor * spec.rate_hz, channels, max_hole_ns=self._hole_ns, counters=self.counters, source_ns=source_ns
        )
        self._ring = Ring(channels, 2 * self._length + 1)

    @property
    def pending(self) -> int:
        return self._aligner.total - self._settled

    def push(self, chunk: Chunk, now_ns: int) -> list[Part]:
        parts: list[Part] = []
        for block in self._aligner.push(chunk):
            if block.fresh:
                self._settle(block.before, Drop.GAP)
                self._ring.restart(block.start, block.before)
                self._index = max(self._index, self._first_from(block.start))
            for at in range(0, len(block.totals), self._length):  # so much that the ring keeps what is not cut yet
                self._append(block, at)
                parts.extend(self._cut(now_ns))
        return parts

    def _append(self, block: Block, at: int) -> None:
        to = at + self._length
        self._ring.append(block.values[:, at:to], block.measured[at:to], block.totals[at:to])

    def _first_from(self, position: int) -> int:
        """Returns the first window that begins at or after a grid point."""
        index = self._aligner.grid.time_ns(position) // self._times.hop_ns
        return index if self._start(index) >= position else index + 1

    def _start(self, index: int) -> int:
        return self._factor * self._grid.nearest(self._times.start(index))

    def _cut(self, now_ns: int) -> list[Part]:
        parts = []
        while (stop := self._start(self._index) + self._length) <= self._ring.stop:
            part = self._finish(self._index, stop - self._length, now_ns)
            self._index += 1
            if part is not None:
                parts.append(part)
        return parts

    def _finish(self, index: int, start: int, now_ns: int) -> Part | None:
        stop = start + self._length
        self._settle(self._ring.total(start - 1), Drop.UNMATCHED)
        quality = self._ring.quality(start, stop)
        trouble = self._trouble(index, quality, now_ns)
        if trouble is not None:
            following = min(self._start(index + 1), stop)  # what the next window holds, it may still use
            self._settle(self._ring.total(following - 1), trouble)
            return None
        self._settle(self._ring.total(stop - 1), None)
        values = self._ring.values(start, stop)
        data = values if self._extract is None else self._extract(values)
        return Part(
            index, self.spec.name, data, quality, self._aligner.grid.time_ns(stop - 1), partial(of_series, values)
        )


@dataclass(slots=True)
class _Candidate:
    """The newest sample of a window so far."""

    t_ns: int
    sample: Array
    serial: int  # number of the sample in its stream, from 1
    due_ns: int  # when to wait no longer for a newer one
    expired: bool  # it came when nobody joined anything to its window any more


class NewestTrack(Track):
    """Feature vectors and images: a window takes the newest sample that lies in it."""

    def __init__(self, spec: ModalitySpec, times: Times) -> None:
        super().__init__(spec, times)
        self._candidates: dict[int, _Candidate] = {}
        self._index: int | None = None  # next window to finish
        self._total = 0
        self._settled = 0
        self._last_ns: int | None = None

    @property
    def pending(self) -> int:
        return self._total - self._settled

    @property
    def next_due_ns(self) -> int | None:
        return min((c.due_ns for c in self._candidates.values()), default=None)

    def push(self, chunk: Chunk, now_ns: int) -> list[Part]:
        times = checked_times(chunk, self.spec.shape, self._last_ns, self.counters)
        if times is None:
            return []
        first = (int(times[0]) - self._times.length_ns) // self._times.hop_ns + 1
        self._index = first if self._index is None else self._index
        for index in range(max(first, self._index), int(times[-1]) // self._times.hop_ns + 1):
            at = int(np.searchsorted(times, self._times.end(index))) - 1
            if at >= 0 and times[at] >= self._times.start(index):
                self._offer(index, int(times[at]), chunk.data[at], self._total + at + 1, now_ns)
        self._total += len(times)
        self._last_ns = int(times[-1])
        over = [i for i in self._candidates if self._times.end(i) <= self._last_ns]
        return self._finish(over)

    def due(self, now_ns: int) -> list[Part]:
        return self._finish([i for i, c in self._candidates.items() if c.due_ns <= now_ns])

    def _offer(self, index: int, t_ns: int, sample: Array, serial: int, now_ns: int) -> None:
        # A late sample waits as long for its successors as one that came in time.
        due_ns = max(self._times.deadline(index), now_ns + self._times.deadline_ns)
        if self._times.deadline(index) > now_ns:
            due_ns = self._times.deadline(index)
        self._candidates[index] = _Candidate(t_ns, sample, serial, due_ns, self._times.expired(index, now_ns))

    def _finish(self, indices: list[int]) -> list[Part]:
        parts = []
        for index in sorted(indices):
            best = self._candidates.pop(index)
            self._index = index + 1
            if best.expired:
                self._settle(best.serial, Drop.TOO_LATE)
                continue
            self._settle(best.serial, None)
            data = np.ascontiguousarray(best.sample, np.float32)
            summary = partial(of_images, data, 1) if data.ndim == 3 else partial(of_series, data.reshape(len(data), -1))
            parts.append(Part(index, self.spec.name, data, 1.0, best.t_ns, summary))
        return parts

    def _settle(self, serial: int, reason: Drop | None) -> None:
        if serial <= self._settled:
            return
        self.counters.drop(Drop.SUPERSEDED, serial - self._settled - 1)
        if reason is None:
            self.counters.used += 1
        else:
            self.counters.drop(reason, 1)
        self._settled = serial


def checked_times(
    chunk: Chunk, shape: tuple[int, ...] | None, last_ns: int | None, counters: Counters
) -> Int64 | None:  # fmt: skip
    """Returns the times of a chunk's samples, (n,) ns, or None when it cannot be used, which is counted then.

    Args:
        chunk: samples that are used one by one.
        shape: of one sample; None: any.
        last_ns: time of the newest sample before it.
        counters: of the stream.
    """
    n = len(chunk.data)
    times = chunk.times_ns
    if times is None:
        times = chunk.t_ns + np.arange(n, dtype=np.int64) * chunk.period_ns
    finite = chunk.data.dtype.kind != "f" or bool(np.isfinite(chunk.data).all())
    reason = None
    if (shape is not None and chunk.data.shape[1:] != shape) or times.shape != (n,):
        reason = Drop.MALFORMED
    elif not finite:
        reason = Drop.NON_FINITE
    elif n and ((last_ns is not None and times[0] <= last_ns) or (np.diff(times) <= 0).any()):
        reason = Drop.OVERLAP
    if reason is None and n:
        return times
    counters.drop(reason or Drop.MALFORMED, n)
    return None


__all__ = ["NewestTrack", "Part", "RunTrack", "SeriesTrack", "Times", "Track", "checked_times"]

"""Sound on its way into windows: spectrograms, every hop of the stream transformed once however windows overlap.

Samples are counted, not resampled: the times of the chunks say where in the count a window begins, so that a sound card
whose clock drifts costs nothing, and what an encoder sees is what the microphone delivered. Short holes are filled with
silence and lower the measured share; long ones, and `gap_before`, end the run.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial

import numpy as np

from edge_sdk.core.clock import NS
from edge_sdk.core.feature import LogSpectrogram
from edge_sdk.core.records import Array, Chunk
from edge_sdk.core.spec import ModalitySpec, WindowSpec
from edge_sdk.features import SpectrogramStream
from edge_sdk.streams.align import Timeline, timed
from edge_sdk.streams.counters import Drop
from edge_sdk.streams.summary import of_series
from edge_sdk.streams.tracks import Part, RunTrack, Times

log = logging.getLogger(__name__)

_RATE_TOLERANCE = 0.02  # a sound card further off than this is configured wrongly


class _Run:
    """One uninterrupted run: its samples by number, and when they were taken."""

    def __init__(self, stream: SpectrogramStream, base: int, t_ns: int) -> None:
        self.stream = stream
        self.t_ns = t_ns  # of the first sample
        self._base = base  # source samples before number 0, fills that were forgotten taken off
        self._anchors: deque[tuple[int, float, float]] = deque()  # (number, time ns, period ns) of chunks
        self._fills: list[tuple[int, int]] = []  # numbers that are silence put in

    @property
    def next_ns(self) -> float:
        """When the next sample is expected."""
        number, t_ns, period_ns = self._anchors[-1]
        return t_ns + (self.stream.position - number) * period_ns

    def anchor(self, t_ns: float, period_ns: float) -> None:
        """The next sample was taken at this time."""
        self._anchors.append((self.stream.position, t_ns, period_ns))

    def fill(self, count: int) -> None:
        """Puts silence in."""
        self._fills.append((self.stream.position, self.stream.position + count))
        self.stream.push(np.zeros(count))

    def number(self, t_ns: int) -> float:
        """Returns the number of the sample at a time, fractions included."""
        number, at_ns, period_ns = next((a for a in reversed(self._anchors) if a[1] <= t_ns), self._anchors[0])
        return number + (t_ns - at_ns) / period_ns

    def filled(self, start: int, stop: int) -> int:
        """Returns how many of these numbers are silence put in."""
        return sum(max(0, min(b, stop) - max(a, start)) for a, b in self._fills)

    def sources(self, number: int) -> int:
        """Returns how many samples the stream had before this number."""
        return self._base + number - self.filled(0, number)

    def forget(self, number: int) -> None:
        """Nobody asks for smaller numbers any more."""
        while len(self._anchors) > 1 and self._anchors[1][0] <= number:
            self._anchors.popleft()
        while self._fills and self._fills[0][1] <= number:
            a, b = self._fills.pop(0)
            self._base -= b - a


class SpectrogramTrack(RunTrack):
    """A waveform: a part is the spectrogram of its window, cut from one uninterrupted run.

    Args:
        spec: the modality.
        times: the window grid.
        window: the least quality.
        feature: sizes of the spectrogram.
    """

    def __init__(self, spec: ModalitySpec, times: Times, window: WindowSpec, feature: LogSpectrogram) -> None:
        super().__init__(spec, times, window)
        self._feature = feature
        self._samples = round(times.length_ns * feature.rate_hz / NS)  # of a window
        self._period_ns = NS / feature.rate_hz
        self._timeline = Timeline()
        self._run: _Run | None = None
        self._cut = True  # the next sample begins a run
        self._total = 0  # source samples accepted
        self._computed = 0  # frames of the runs before
        self._told = False

    @property
    def pending(self) -> int:
        return self._total - self._settled

    @property
    def computed(self) -> int:
        """Frames transformed so far."""
        return self._computed + (self._run.stream.computed if self._run is not None else 0)

    def push(self, chunk: Chunk, now_ns: int) -> list[Part]:
        n = len(chunk.data)
        self._cut |= chunk.gap_before
        if n == 0:
            return []
        wave = self._wave(chunk)
        if wave is None:
            return []
        times = self._timeline.place(chunk)
        period_ns = float(times[-1] - times[0]) / (n - 1) if n > 1 else self._period_ns
        skip = self._join(int(times[0]), chunk)
        self.counters.drop(Drop.OVERLAP, skip)
        if skip >= n or self._run is None:
            return []
        self._total += n - skip
        self._run.anchor(float(times[0]) + skip * period_ns, period_ns)
        parts: list[Part] = []
        step = max(1, self._samples // 2)
        for at in range(skip, n, step):  # so much that the stream keeps what is not cut yet
            self._run.stream.push(wave[at : at + step])
            parts.extend(self._finished(self._run, now_ns))
        return parts

    def _wave(self, chunk: Chunk) -> Array | None:
        """Returns the samples of a chunk, (n,), full scale ±1, or None when it cannot be used, which is counted."""
        n = len(chunk.data)
        data = chunk.data.reshape(n, -1)
        if data.shape[1] != 1 or not timed(chunk) or not self._fits(chunk):
            self.counters.drop(Drop.MALFORMED, n)
            return None
        wave: Array = data[:, 0]
        if wave.dtype.kind == "i":
            return wave / -float(np.iinfo(wave.dtype).min)
        if not np.isfinite(wave).all():
            self.counters.drop(Drop.NON_FINITE, n)
            return None
        return wave

    def _fits(self, chunk: Chunk) -> bool:
        """Says whether a chunk has the feature's rate; one that has not is said once."""
        n, times = len(chunk.data), chunk.times_ns
        period_ns = float(chunk.period_ns)
        if times is not None:
            period_ns = float(times[-1] - times[0]) / (n - 1) if n > 1 else self._period_ns
        if n == 1 or abs(period_ns - self._period_ns) <= _RATE_TOLERANCE * self._period_ns:
            return True
        if not self._told:
            log.warning(
                "modality %s: its sensor delivers %.0f Hz, its feature takes %d; set sensors.%s.options.rate_hz = %d",
                self.spec.name, NS / period_ns if period_ns else 0, self._feature.rate_hz, self.spec.name,
                self._feature.rate_hz,
            )  # fmt: skip
        self._told = True
        return False

    def _join(self, t_ns: int, chunk: Chunk) -> int:
        """Makes the run ready for samples from a time on; returns how many of them it has already."""
        if self._run is not None and not self._cut:
            # Less than a hop is not seen in a spectrogram; the anchors follow it.
            tolerance_ns = max(self._feature.hop * self._period_ns, 4.0 * chunk.t_err_ns)
            late_ns = t_ns - self._run.next_ns
            if abs(late_ns) <= tolerance_ns:
                return 0
            count = round(abs(late_ns) / self._period_ns)
            if late_ns < 0:
                return min(count, len(chunk.data))
            if late_ns <= self._hole_ns:
                self._run.fill(count)
                return 0
        self._settle(self._total, Drop.GAP)
        self._computed = self.computed
        keep_s = 2.0 * self._samples / self._feature.rate_hz + 1.0
        self._run = _Run(SpectrogramStream(self._feature, keep_s=keep_s), self._total, t_ns)
        half_ns = round(self._feature.hop * self._period_ns / 2)
        self._index = max(self._index, -(-(t_ns - half_ns) // self._times.hop_ns))
        self._cut = False
        return 0

    def _start(self, run: _Run, index: int) -> int:
        """Returns the number of a window's first sample, a whole number of hops."""
        hop = self._feature.hop
        return max(0, round(run.number(self._times.start(index)) / hop)) * hop

    def _finished(self, run: _Run, now_ns: int) -> list[Part]:
        parts = []
        while (start := self._start(run, self._index)) + self._samples <= run.stream.position:
            part = self._finish(run, start, now_ns)
            run.forget(start)
            self._index += 1
            if part is not None:
                parts.append(part)
        return parts

    def _finish(self, run: _Run, start: int, now_ns: int) -> Part | None:
        index, stop = self._index, start + self._samples
        self._settle(run.sources(start), Drop.UNMATCHED)
        quality = 1.0 - run.filled(start, stop) / self._samples
        trouble = self._trouble(index, quality, now_ns)
        if trouble is not None:
            following = min(self._start(run, index + 1), stop)  # what the next window holds, it may still use
            self._settle(run.sources(following), trouble)
            return None
        self._settle(run.sources(stop), None)
        data = run.stream.window(start, self._samples)
        assert data is not None, "the stream keeps two windows"
        heard = run.stream.samples(start, stop)[None].copy()  # the stream moves them when the next piece comes
        summary = partial(of_series, heard)
        return Part(index, self.spec.name, data, quality, self._times.end(index) - round(self._period_ns), summary)


__all__ = ["SpectrogramTrack"]

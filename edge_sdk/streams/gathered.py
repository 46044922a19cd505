"""Samples that a window gathers: frames of a clip, lines of text. Unlike a time series they may be few and uneven."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from edge_sdk import features
from edge_sdk.core.feature import Frames, Text
from edge_sdk.core.records import Array, Chunk, Float32
from edge_sdk.core.spec import ModalitySpec, WindowSpec
from edge_sdk.features.words import Tokenizer
from edge_sdk.streams.counters import Drop
from edge_sdk.streams.summary import Summary, of_images
from edge_sdk.streams.tracks import Part, Times, Track, checked_times


class Gathering(ABC):
    """What of one window's samples makes its part."""

    @abstractmethod
    def offer(self, t_ns: int, serial: int, sample: Array) -> None:
        """Takes a sample of the window."""

    @abstractmethod
    def serials(self) -> Iterator[int]:
        """Yields the numbers of the samples that are in the part."""

    @property
    @abstractmethod
    def quality(self) -> float:
        """Share of the part that was measured where it should be, [0, 1]."""

    @abstractmethod
    def data(self) -> Float32:
        """Returns the part's array."""

    def summary(self, data: Float32) -> Callable[[], Summary] | None:
        """Returns what tells how the part looks; None: nothing can be told."""
        return None


@dataclass(slots=True)
class Clip(Gathering):
    """The frames nearest to the middles of `count` equal parts of the window; memory for no others."""

    feature: Frames
    start_ns: int
    length_ns: int
    chosen: dict[int, tuple[int, int, Array]] = field(default_factory=dict)  # part → (time ns, serial, frame)

    def offer(self, t_ns: int, serial: int, sample: Array) -> None:
        for part in range(self.feature.count):
            middle_ns = self.start_ns + (2 * part + 1) * self.length_ns // (2 * self.feature.count)
            held = self.chosen.get(part)
            if held is None or abs(t_ns - middle_ns) < abs(held[0] - middle_ns):
                self.chosen[part] = (t_ns, serial, sample)

    def serials(self) -> Iterator[int]:
        return (serial for _, serial, _ in self.chosen.values())

    @property
    def quality(self) -> float:
        """Share of the parts that have a frame of their own."""
        count = self.feature.count
        own = sum((t - self.start_ns) * count // self.length_ns == part for part, (t, *_) in self.chosen.items())
        return own / count

    def data(self) -> Float32:
        # (channels, height, width), as drivers deliver -> (height, width, channels)
        images = [np.moveaxis(self.chosen[part][2], 0, 2) for part in range(self.feature.count)]
        return features.stack(images, self.feature.size)

    def summary(self, data: Float32) -> Callable[[], Summary] | None:
        return partial(of_images, data, self.feature.count)


@dataclass(slots=True)
class Lines(Gathering):
    """All lines of the window, oldest first."""

    feature: Text
    tokenizer: Callable[[], Tokenizer]
    lines: list[tuple[int, str]] = field(default_factory=list)  # (serial, line)

    def offer(self, t_ns: int, serial: int, sample: Array) -> None:
        self.lines.append((serial, features.from_byte_tokens(sample)))

    def serials(self) -> Iterator[int]:
        return (serial for serial, _ in self.lines)

    @property
    def quality(self) -> float:
        """1: a line is there or not."""
        return 1.0

    def data(self) -> Float32:
        return features.token_rows(self.tokenizer()("\n".join(line for _, line in self.lines)), self.feature.length)


@dataclass(slots=True)
class _Open:
    """A window that may get more samples."""

    gathering: Gathering
    newest_ns: int
    due_ns: int  # when to wait no longer for more
    expired: bool  # its newest sample came when nobody joined anything to it any more


class GatheredTrack(Track):
    """Samples that windows gather; a window is finished by a later sample, or at its deadline.

    Args:
        spec: the modality.
        times: the window grid.
        window: the least quality.
    """

    def __init__(self, spec: ModalitySpec, times: Times, window: WindowSpec) -> None:
        super().__init__(spec, times)
        self._min_quality = window.min_quality
        self._open: dict[int, _Open] = {}
        self._index: int | None = None  # next window to finish
        self._total = 0
        self._last_ns: int | None = None
        self._undecided: deque[tuple[int, int]] = deque()  # (time ns, serial) of samples that may still be used
        self._chosen: set[int] = set()  # serials of them that a part has

    @abstractmethod
    def _usable(self, chunk: Chunk) -> bool:
        """Says whether the samples have the shape and type that the feature takes."""

    @abstractmethod
    def _gathering(self, index: int) -> Gathering:
        """Returns an empty gathering for a window."""

    @property
    def pending(self) -> int:
        return len(self._undecided)

    @property
    def next_due_ns(self) -> int | None:
        return min((window.due_ns for window in self._open.values()), default=None)

    def push(self, chunk: Chunk, now_ns: int) -> list[Part]:
        if not self._usable(chunk):
            self.counters.drop(Drop.MALFORMED, len(chunk.data))
            return []
        times = checked_times(chunk, None, self._last_ns, self.counters)
        parts: list[Part] = []
        for t_ns, sample in zip([] if times is None else times.tolist(), chunk.data, strict=False):
            parts += self._finish([i for i in self._open if self._times.end(i) <= t_ns])
            self._sample(t_ns, sample, now_ns)
        return parts

    def due(self, now_ns: int) -> list[Part]:
        return self._finish([i for i, window in self._open.items() if window.due_ns <= now_ns])

    def _sample(self, t_ns: int, sample: Array, now_ns: int) -> None:
        self._total += 1
        self._last_ns = t_ns
        self._undecided.append((t_ns, self._total))
        first = (t_ns - self._times.length_ns) // self._times.hop_ns + 1
        self._index = first if self._index is None else self._index
        for index in range(max(first, self._index), t_ns // self._times.hop_ns + 1):
            if t_ns >= self._times.end(index):  # between two windows
                continue
            deadline_ns = self._times.deadline(index)
            # A late sample waits as long for its successors as one that came in time.
            due_ns = deadline_ns if deadline_ns > now_ns else now_ns + self._times.deadline_ns
            window = self._open.get(index) or _Open(self._gathering(index), t_ns, due_ns, expired=False)
            window.gathering.offer(t_ns, self._total, sample)
            window.newest_ns, window.due_ns = t_ns, due_ns
            window.expired = self._times.expired(index, now_ns)
            self._open[index] = window

    def _finish(self, indices: list[int]) -> list[Part]:
        parts = []
        for index in sorted(indices):
            window = self._open.pop(index)
            self._index = index + 1
            trouble = Drop.LOW_QUALITY if window.gathering.quality < self._min_quality else None
            trouble = Drop.TOO_LATE if window.expired else trouble
            if trouble is None:
                self._chosen.update(window.gathering.serials())
                data, quality = window.gathering.data(), window.gathering.quality
                summary = window.gathering.summary(data)
                parts.append(Part(index, self.spec.name, data, quality, window.newest_ns, summary))
            self._decide(index, trouble)
        return parts

    def _decide(self, index: int, trouble: Drop | None) -> None:
        """Counts the samples that no window after this one holds."""
        while self._undecided and self._undecided[0][0] < self._times.start(index + 1):
            t_ns, serial = self._undecided.popleft()
            inside = self._times.start(index) <= t_ns < self._times.end(index)
            if serial in self._chosen:
                self._chosen.discard(serial)
                self.counters.used += 1
            else:
                self.counters.drop((trouble or Drop.SUPERSEDED) if inside else Drop.UNMATCHED, 1)


class ClipTrack(GatheredTrack):
    """Images as cameras deliver them, uint8 (channels, height, width) of any size."""

    def __init__(self, spec: ModalitySpec, times: Times, window: WindowSpec, feature: Frames) -> None:
        super().__init__(spec, times, window)
        self._feature = feature

    def _usable(self, chunk: Chunk) -> bool:
        data = chunk.data
        return data.ndim == 4 and data.dtype == np.uint8 and data.shape[1] == self.spec.shape[0] and bool(data.size)

    def _gathering(self, index: int) -> Gathering:
        return Clip(self._feature, self._times.start(index), self._times.length_ns)


class TextTrack(GatheredTrack):
    """Lines as text sensors deliver them: byte tokens, integers (length,), 0 where the line is shorter."""

    def __init__(self, spec: ModalitySpec, times: Times, window: WindowSpec, feature: Text) -> None:
        super().__init__(spec, times, window)
        self._feature = feature
        self._tokenizer: Tokenizer | None = None

    def prepare(self) -> None:
        self._loaded()

    def _loaded(self) -> Tokenizer:
        if self._tokenizer is None:
            where = f"modality {self.spec.name}: feature.tokenizer"
            self._tokenizer = features.load_tokenizer(self._feature.tokenizer, where, self._feature.length)
        return self._tokenizer

    def _usable(self, chunk: Chunk) -> bool:
        return chunk.data.ndim == 2 and chunk.data.dtype.kind in "iu"

    def _gathering(self, index: int) -> Gathering:
        return Lines(self._feature, self._loaded)


__all__ = ["Clip", "ClipTrack", "GatheredTrack", "Gathering", "Lines", "TextTrack"]

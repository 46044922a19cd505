"""Windows on the federation's time grid: at the deadline, or at once when every modality is complete.

Pure and synchronous: chunks and the time go in, windows come out. What is complete only after the deadline becomes a
`LatePart`, also where no window was given out because nothing had arrived. Late streams cost no memory: a modality
that comes a minute after the others finishes its own windows, whatever has become of theirs.

Whether a sensor looks as learned is asked after the prediction, by `assessed`: predictions do not need it, and with a
small model it would take half as long as they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from edge_sdk.core.clock import NS
from edge_sdk.core.config import HealthConfig
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.records import Chunk, LatePart, Window
from edge_sdk.core.spec import FederationSpec
from edge_sdk.streams.counters import Counters, Drop
from edge_sdk.streams.kinds import make_track
from edge_sdk.streams.lateness import Lateness
from edge_sdk.streams.summary import Summary
from edge_sdk.streams.tracks import Part, Times
from edge_sdk.streams.watch import Watches

Item = TypeVar("Item", Window, LatePart)
Look = Callable[[], Summary] | None  # tells what a part looks like; None: nothing can be told


class Windower:
    """Cuts the streams of one device into windows.

    Args:
        spec: shapes, rates and windowing.
        modalities: those that this device has; None: all of the spec.
        join_horizon_s: parts that come later than this after their deadline are dropped.
        buffer_s: chunks further ahead of the clock than this are dropped.
        watches: what `assessed` asks; None: nothing is watched.

    Raises:
        ConfigError: a modality is not in the spec, or its shape does not fit its rate and the window length.
    """

    def __init__(
        self,
        spec: FederationSpec,
        *,
        modalities: tuple[str, ...] | None = None,
        join_horizon_s: float = 900.0,
        buffer_s: float = 30.0,
        watches: Watches | None = None,
    ) -> None:
        names = spec.modality_names if modalities is None else modalities
        unknown = sorted(set(names) - set(spec.modality_names))
        if unknown or not names:
            raise ConfigError(
                f"federation {spec.name!r} has the modalities {', '.join(spec.modality_names)}; "
                f"this device offers {', '.join(names) or 'none'}"
            )
        self._times = Times.of(spec.window, join_horizon_s)
        self._tracks = {n: make_track(spec.modality(n), spec.window, self._times) for n in names}
        self._order = {n: i for i, n in enumerate(spec.modality_names)}
        self._buffer_ns = round(buffer_s * NS)
        self.lateness = {n: Lateness(n, spec.window.deadline_s) for n in names}
        self.watches = watches or Watches(HealthConfig(enabled=False))
        self._waiting: dict[int, dict[str, Part]] = {}  # windows not given out yet
        self._complete: set[int] = set()  # those of them that have every modality
        self._late: list[tuple[LatePart, Look]] = []
        self._looks: dict[tuple[int, str], Look] = {}  # of what the last advance() gave out, by index and modality
        self._now_ns: int | None = None  # time of the last advance()
        self.windows = 0  # given out so far
        self.late_parts = 0  # given out so far
        self.unknown_chunks = 0  # chunks of streams that the spec does not have

    def prepare(self) -> None:
        """Loads what features need; may take seconds, so that it is called outside the event loop.

        Raises:
            ConfigError: something that the spec names is not there.
            PluginError: a library is not installed.
        """
        for track in self._tracks.values():
            track.prepare()

    @property
    def counters(self) -> Mapping[str, Counters]:
        """Samples per modality: received = used + dropped + pending."""
        return {name: track.counters for name, track in self._tracks.items()}

    def pending(self, modality: str) -> int:
        """Returns how many samples may still become part of a window."""
        return self._tracks[modality].pending

    @property
    def next_deadline_ns(self) -> int | None:
        """When advance() gives something out next, as things stand; None: not before the next chunk."""
        if self._complete or self._late:
            return self._now_ns or 0
        times = [t for t in (track.next_due_ns for track in self._tracks.values()) if t is not None]
        if self._waiting:
            times.append(self._times.deadline(min(self._waiting)))
        return min(times, default=None)

    def push(self, chunk: Chunk) -> None:
        """Takes a chunk; what it completes comes out of the next advance()."""
        track = self._tracks.get(chunk.stream)
        if track is None:
            self.unknown_chunks += 1
            return
        track.counters.chunks += 1
        track.counters.samples += len(chunk.data)
        if self._now_ns is not None and chunk.t_ns > self._now_ns + self._buffer_ns:
            track.counters.drop(Drop.FUTURE, len(chunk.data))
            return
        for part in track.push(chunk, self._now_ns or 0):
            self._take(part)

    def advance(self, now_ns: int) -> list[Window | LatePart]:
        """Moves the time on; returns the windows due by now in order of index, then the late parts."""
        for track in self._tracks.values():
            for part in track.due(now_ns):
                self._take(part)
        self._now_ns = now_ns
        due = {i for i in self._waiting if self._times.deadline(i) <= now_ns} | self._complete
        self._looks = {}
        items: list[Window | LatePart] = [self._window(i, self._waiting.pop(i)) for i in sorted(due)]
        self._complete.clear()
        self.windows += len(items)
        self.late_parts += len(self._late)
        for late, look in self._late:
            self.lateness[late.modality].take(max((now_ns - self._times.deadline(late.index)) / NS, 1e-9))
            self._looks[late.index, late.modality] = look
            items.append(late)
        self._late = []
        return items

    def assessed(self, item: Item) -> Item:
        """Returns an item of the last advance() with its quality times the share of channels that look as learned."""
        if isinstance(item, LatePart):
            trust = self._trust(item.index, item.modality)
            return item if trust == 1.0 else replace(item, quality=item.quality * trust)
        trusts = {m: self._trust(item.index, m) for m in item.data}
        if all(trust == 1.0 for trust in trusts.values()):
            return item
        return replace(item, quality={m: quality * trusts[m] for m, quality in item.quality.items()})

    def _trust(self, index: int, modality: str) -> float:
        return self.watches.assess(modality, self._looks.pop((index, modality), None))

    def _take(self, part: Part) -> None:
        """Puts a part into its window, if that is still here to come."""
        if self._now_ns is not None and self._times.deadline(part.index) <= self._now_ns:
            start_ns = self._times.start(part.index)
            late = LatePart(part.index, start_ns, part.modality, part.data, part.quality)
            self._late.append((late, part.summary))
            return
        self.lateness[part.modality].take(0.0)
        parts = self._waiting.setdefault(part.index, {})
        parts[part.modality] = part
        if len(parts) == len(self._tracks):
            self._complete.add(part.index)

    def _window(self, index: int, parts: Mapping[str, Part]) -> Window:
        deadline_ns = self._times.deadline(index)
        ordered = sorted(parts.values(), key=lambda part: self._order[part.modality])
        self._looks.update({(index, part.modality): part.summary for part in ordered})
        return Window(
            index=index,
            t_ns=self._times.start(index),
            length_ns=self._times.length_ns,
            data={p.modality: p.data for p in ordered},
            age_s={p.modality: (deadline_ns - p.newest_ns) / NS for p in ordered},
            quality={p.modality: p.quality for p in ordered},
        )


__all__ = ["Windower"]

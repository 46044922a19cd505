"""Labels: where they come from, and which windows they belong to.

A label belongs to a window that it covers by at least half. Where two different ones do, the longer wins and the
conflict is counted. Labels may come long after their windows; the joiner then tells their indices late.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pydantic import Field

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.config import parse
from edge_sdk.core.held import Held
from edge_sdk.core.interfaces import LabelSource
from edge_sdk.core.messages import LabelMessage
from edge_sdk.core.records import Label
from edge_sdk.core.spec import Model, WindowSpec
from edge_sdk.recording import Reader, ReplayOptions, ReplayTime
from edge_sdk.runtime.timebase import StreamTime

_MAX_SPAN_S = 24 * 3600.0  # a label that claims more than a day is a mistake


class Refusal(str, Enum):
    """Why a label was not used."""

    UNKNOWN_CLASS = "unknown_class"
    CONFLICT = "conflict"  # another label covers the same window; the longer one counts
    UNPLACED = "unplaced"  # its time is too uncertain
    SPAN = "span"  # it ends before it starts, or lasts longer than a day
    TOO_OLD = "too_old"  # no window of its time is left


@dataclass(slots=True)
class LabelCounters:
    """What happened to labels so far."""

    received: int = 0
    refused: dict[Refusal, int] = field(default_factory=dict)

    def refuse(self, reason: Refusal) -> None:
        """Counts one."""
        self.refused[reason] = self.refused.get(reason, 0) + 1


class LabelJoiner:
    """Finds the windows that labels belong to; pure.

    Args:
        window: the federation's grid.
        classes: class names; the position is the class number.
        horizon_s: how long pieces of labels are remembered.
    """

    def __init__(self, window: WindowSpec, classes: tuple[str, ...], *, horizon_s: float = 900.0) -> None:
        self.counters = LabelCounters()
        self._hop_ns = round(window.hop_s * NS)
        self._length_ns = round(window.length_s * NS)
        self._numbers = {name: number for number, name in enumerate(classes)}
        self._horizon = int(horizon_s / window.hop_s) + 1
        self._spans: dict[int, dict[int, list[tuple[int, int]]]] = {}  # index → class → spans in the window, apart
        self._given: dict[int, int] = {}  # index → class told

    def add(self, label: Label) -> list[tuple[int, int]]:
        """Returns (window index, class number) for every window that this label decides, or decides differently."""
        self.counters.received += 1
        number = self._numbers.get(label.name)
        if number is None:
            self.counters.refuse(Refusal.UNKNOWN_CLASS)
            return []
        if not 0 < label.end_ns - label.start_ns <= _MAX_SPAN_S * NS:
            self.counters.refuse(Refusal.SPAN)
            return []
        first = (label.start_ns - self._length_ns) // self._hop_ns + 1
        last = (label.end_ns - 1) // self._hop_ns
        decided = [pair for index in range(first, last + 1) for pair in self._cover(index, number, label)]
        self._forget()
        return decided

    def _cover(self, index: int, number: int, label: Label) -> list[tuple[int, int]]:
        start_ns = index * self._hop_ns
        spans = self._spans.setdefault(index, {})
        piece = (max(label.start_ns, start_ns), min(label.end_ns, start_ns + self._length_ns))
        spans[number] = _united([*spans.get(number, []), piece])
        covered = {n: sum(end - start for start, end in s) for n, s in spans.items()}
        if 2 * covered[number] < self._length_ns or self._given.get(index) == number:
            return []
        rival = self._given.get(index)
        if rival is not None:
            self.counters.refuse(Refusal.CONFLICT)
            if covered[number] <= covered[rival]:
                return []
        self._given[index] = number
        return [(index, number)]

    def _forget(self) -> None:
        while len(self._spans) > self._horizon:
            oldest = min(self._spans)
            del self._spans[oldest]
            self._given.pop(oldest, None)


def _united(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the union of spans, as spans that neither overlap nor touch."""
    union: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union


class FileLabels(LabelSource):
    """The labels of a recording, each when its span is over, on the time base of the replay.

    Args:
        options: `path`, `loop`, `align_s`, `start_s`, `epoch_ns` as for the replayed sensors.
        clock: the stream clock.
        epoch_ns: the device's epoch, the same that its sensors have (`Streams.epoch_ns`).
    """

    def __init__(self, options: Mapping[str, Any], clock: Clock, *, epoch_ns: int | None = None) -> None:
        self._options = parse(options, ReplayOptions, "labels.options")
        self._clock = clock
        self._epoch_ns = clock.now_ns() if epoch_ns is None else epoch_ns

    async def labels(self) -> AsyncIterator[Label]:
        """Yields the labels in order; ends with the recording unless it loops."""
        recording = Reader(self._options.path)
        time = ReplayTime.of(self._options, recording, self._epoch_ns)
        known = [label for label in recording.labels() if label[1] > time.first_ns]
        past = (self._clock.now_ns() - time.base_ns) // time.lap_ns
        lap = max(0, past) if self._options.loop else 0
        while known:
            for start_ns, end_ns, name in known:
                label = Label(time.at(max(start_ns, time.first_ns), lap), time.at(end_ns, lap), name)
                await self._clock.sleep_until(label.end_ns)
                yield label
            if not self._options.loop:
                return
            lap += 1


class _FedOptions(Model):
    """Keys of a label source that is fed from outside."""

    max_err_s: float = Field(default=0.5, gt=0)  # on the stream clock; labels that are more uncertain are refused
    clock_err_s: float = Field(default=0.05, ge=0)  # how wrong this device's time of day may be
    max_age_s: float = Field(default=900.0, gt=0)  # on the stream clock; labels that ended earlier are refused
    queue: int = Field(default=1024, ge=1)  # labels that wait to be read


class MqttLabels(LabelSource):
    """Labels that arrive as messages; the device feeds them.

    Args:
        options: `max_err_s`, `clock_err_s`, `max_age_s`, `queue`.
        clock: the stream clock; not used.
        epoch_ns: not used.
    """

    def __init__(self, options: Mapping[str, Any], clock: Clock, *, epoch_ns: int | None = None) -> None:
        self.counters = LabelCounters()
        self._options = parse(options, _FedOptions, "labels.options")
        self._queue: asyncio.Queue[Label] = asyncio.Queue(self._options.queue)

    def feed(self, message: LabelMessage, time: StreamTime) -> Refusal | None:
        """Takes a message and places it on the stream clock; why it cannot be placed is returned and counted."""
        self.counters.received += 1
        reason = self._refusal(message, time)
        if reason is not None:
            self.counters.refuse(reason)
            return reason
        start_ns, end_ns = (time.stream(utc_ns)[0] for utc_ns in (message.start_utc_ns, message.end_utc_ns))
        if self._queue.full():
            self._queue.get_nowait()
            self.counters.refuse(Refusal.TOO_OLD)
        self._queue.put_nowait(Label(start_ns, end_ns, message.label))
        return None

    def _refusal(self, message: LabelMessage, time: StreamTime) -> Refusal | None:
        if not 0 < message.end_utc_ns - message.start_utc_ns <= _MAX_SPAN_S * NS:
            return Refusal.SPAN
        end_ns, err_ns = time.stream(message.end_utc_ns)  # where streams are replayed faster, errors grow as well
        given_ns = message.utc_err_ns + self._options.clock_err_s * NS
        if message.utc_err_ns < 0 or given_ns * time.record.speed + err_ns > self._options.max_err_s * NS:
            return Refusal.UNPLACED
        age_ns = time.now_ns() - end_ns
        if age_ns > self._options.max_age_s * NS:
            return Refusal.TOO_OLD
        # From the future beyond all uncertainty: the sender's clock or ours is wrong, so the span is nowhere.
        return Refusal.UNPLACED if -age_ns > self._options.max_err_s * NS else None

    async def labels(self) -> AsyncIterator[Label]:
        """Yields labels as they are fed; waits for ever."""
        while True:
            yield await self._queue.get()


class KeyLabels(LabelSource):
    """Labels of the person who wears the device: one key begins a class, the next one ends it.

    Args:
        options: `piece_s`.
        clock: the stream clock.
        epoch_ns: not used.
    """

    class Options(Model):
        """Keys of the source."""

        piece_s: float = Field(default=5.0, gt=0)  # longest span told at once

    def __init__(self, options: Mapping[str, Any], clock: Clock, *, epoch_ns: int | None = None) -> None:
        self._held = Held(clock, parse(options, KeyLabels.Options, "labels.options").piece_s)

    def press(self, name: str | None) -> None:
        """The person does this from now on; None: nothing that has a name."""
        self._held.press(name)

    async def labels(self) -> AsyncIterator[Label]:
        """Yields a piece per change, and at least one every `piece_s` while a class lasts; waits for ever."""
        async for label in self._held.labels():
            yield label


__all__ = ["FileLabels", "KeyLabels", "LabelCounters", "LabelJoiner", "MqttLabels", "Refusal"]

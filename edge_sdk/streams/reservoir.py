"""The windows that a device trains on: bounded, joined by index, kept over restarts.

Late parts join for `join_horizon_s`, labels too; a window without a label is held for `label_wait_s`. A round set is
frozen per task, and tells when each modality has arrived for (nearly) all of it. In simulation the round set is the
client's data set instead: the simulator enters here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.config import ReservoirConfig
from edge_sdk.core.interfaces import RoundSet, RoundSource
from edge_sdk.core.records import Float32, LatePart, RoundData, Window
from edge_sdk.core.spec import FederationSpec
from edge_sdk.streams.journal import Journal
from edge_sdk.streams.rounds import LiveRoundSet, Row, gather


class Lost(str, Enum):
    """Why a window, a part or a label is not in the reservoir."""

    EVICTED = "evicted"  # made room for newer ones
    UNLABELLED = "unlabelled"  # no label within label_wait_s
    TOO_LATE = "too_late"  # part later than join_horizon_s
    DUPLICATE = "duplicate"  # part that was there already
    LABEL_UNMATCHED = "label_unmatched"  # label for a window that never came


@dataclass(slots=True)
class ReservoirCounters:
    """What happened to windows, parts and labels so far."""

    windows: int = 0  # rows made
    parts: int = 0  # modalities of rows
    late_parts: int = 0  # of them, joined later
    labels: int = 0  # labels that found their window
    restored: int = 0  # rows read back after a restart
    lost: dict[Lost, int] = field(default_factory=dict)

    def lose(self, reason: Lost) -> None:
        """Counts one."""
        self.lost[reason] = self.lost.get(reason, 0) + 1


class Reservoir(RoundSource):
    """Holds windows until they are trained on or have to make room.

    Args:
        spec: shapes, classes and window grid.
        config: sizes, waits and eviction.
        clock: the stream clock.
        path: folder for what survives a restart; None: memory only.
    """

    def __init__(self, spec: FederationSpec, config: ReservoirConfig, clock: Clock, path: Path | None) -> None:
        self.counters = ReservoirCounters()
        self._spec = spec
        self._config = config
        self._clock = clock
        self._length_ns = round(spec.window.length_s * NS)
        self._rows: dict[int, Row] = {}
        self._unlabelled: dict[int, None] = {}  # in the order in which they came
        self._labels: dict[int, int] = {}  # index → class number, for windows that may still come
        self._bytes = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self._journal: Journal | None = None
        if path is not None and config.persist:
            self._journal = Journal(path, spec, clock, disk_bytes=int(config.disk_mb * 1e6))
            self._restore(self._journal.load(limit_bytes=int(config.memory_mb * 1e6)))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def labelled(self) -> int:
        """Windows with a label."""
        return len(self._rows) - len(self._unlabelled)

    def add(self, window: Window) -> None:
        """Takes a window."""
        for modality, data in window.data.items():
            self._join(window.index, window.t_ns, modality, data, window.quality.get(modality, 1.0))
        self._tidy()

    def add_late(self, part: LatePart) -> bool:
        """Joins a late part to its window, or makes the window if nothing of it had come; says whether it was new."""
        joined = self._join(part.index, part.t_ns, part.modality, part.data, part.quality)
        self.counters.late_parts += joined
        self._tidy()
        return joined

    def parts(self, index: int) -> dict[str, Float32]:
        """Returns what has come of a window by now, modality → array; {} if it is not kept."""
        row = self._rows.get(index)
        return {} if row is None else dict(row.data)

    def label(self, index: int, class_number: int) -> None:
        """Labels a window, also one of which no data has come yet; a second label replaces the first."""
        if not 0 <= class_number < len(self._spec.classes):
            raise ValueError(f"class numbers are 0 … {len(self._spec.classes) - 1}, found {class_number}")
        row = self._rows.get(index)
        if row is None:
            self._labels[index] = class_number
            while len(self._labels) > self._config.max_windows:
                del self._labels[next(iter(self._labels))]
                self.counters.lose(Lost.LABEL_UNMATCHED)
            return
        self._label(row, class_number)
        self._tidy()

    def recent(self, n: int) -> RoundData:
        """Returns the newest windows, labelled or not, in order of index."""
        rows = [self._rows[index] for index in sorted(self._rows)[-n:]] if n > 0 else []
        return gather(rows, self._spec, self._spec.modality_names)

    def labelled_windows(self, n: int) -> RoundData:
        """Returns the newest labelled windows, at most n, in order of index."""
        rows = [row for row in self._newest_first() if row.label >= 0][:n]
        return gather(rows[::-1], self._spec, self._spec.modality_names)

    async def freeze(self, task_number: int, modalities: tuple[str, ...]) -> RoundSet:
        """Waits for `min_windows` labelled windows, then freezes the newest ones that are labelled or may still be."""
        while True:
            self._expire()
            rows = [row for row in self._newest_first() if any(m in row.data for m in modalities)]
            if sum(row.label >= 0 for row in rows) >= self._config.min_windows:
                break
            await self.changed()
        chosen = rows[: self._config.round_windows][::-1]
        return LiveRoundSet(
            chosen, modalities, self._spec, config=self._config, clock=self._clock, changed=self.changed
        )

    async def changed(self) -> None:
        """Waits until a part or a label is added."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def status(self) -> dict[str, Any]:
        """Returns what the command line shows, as plain data."""
        have = {m: sum(m in row.data for row in self._rows.values()) for m in self._spec.modality_names}
        return {
            "windows": len(self._rows),
            "labelled": self.labelled,
            "with_modality": have,
            "memory_mb": self._bytes / 1e6,
            "labels_waiting": len(self._labels),
            "added": self.counters.windows,
            "late_parts": self.counters.late_parts,
            "labels": self.counters.labels,
            "restored": self.counters.restored,
            "lost": {reason.value: count for reason, count in self.counters.lost.items()},
            "disk": None if self._journal is None else self._journal.status(),
        }

    def close(self) -> None:
        """Closes the files; may be called twice."""
        if self._journal is not None:
            self._journal.close()

    def _join(self, index: int, t_ns: int, modality: str, data: Float32, quality: float) -> bool:
        now_ns = self._clock.now_ns()
        if now_ns > t_ns + self._length_ns + self._config.join_horizon_s * NS:
            self.counters.lose(Lost.TOO_LATE)
            return False
        row = self._rows.get(index) or self._new_row(index, t_ns)
        if modality in row.data:
            self.counters.lose(Lost.DUPLICATE)
            return False
        row.data[modality] = data
        row.since_ns[modality] = now_ns
        row.quality[modality] = quality
        self._bytes += data.nbytes
        self.counters.parts += 1
        if self._journal is not None:
            self._journal.part(row, modality)
        return True

    def _new_row(self, index: int, t_ns: int) -> Row:
        row = self._rows[index] = Row(index, t_ns)
        self._unlabelled[index] = None
        self.counters.windows += 1
        if index in self._labels:
            self._label(row, self._labels.pop(index))
        return row

    def _label(self, row: Row, class_number: int) -> None:
        row.label = class_number
        self._unlabelled.pop(row.index, None)
        self.counters.labels += 1
        if self._journal is not None:
            self._journal.label(row)

    def _tidy(self) -> None:
        """Keeps the bounds and wakes those who wait."""
        self._expire()
        while len(self._rows) > self._config.max_windows or self._bytes > self._config.memory_mb * 1e6:
            self._remove(self._victim(), Lost.EVICTED)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _expire(self) -> None:
        limit_ns = self._clock.now_ns() - self._config.label_wait_s * NS - self._length_ns
        while self._unlabelled:
            index = next(iter(self._unlabelled))
            if self._rows[index].t_ns >= limit_ns:
                return
            self._remove(index, Lost.UNLABELLED)

    def _victim(self) -> int:
        """Returns the index that makes room."""
        rows: Iterable[Row] = self._rows.values()
        if self._config.eviction == "class_balanced":
            counts: dict[int, int] = {}
            for row in rows:
                counts[row.label] = counts.get(row.label, 0) + 1
            largest = max(counts, key=lambda label: (counts[label], -label))
            rows = (row for row in rows if row.label == largest)
        return min(row.index for row in rows)

    def _remove(self, index: int, reason: Lost) -> None:
        row = self._rows.pop(index)
        self._unlabelled.pop(index, None)
        self._bytes -= sum(data.nbytes for data in row.data.values())
        self.counters.lose(reason)

    def _newest_first(self) -> list[Row]:
        return [self._rows[index] for index in sorted(self._rows, reverse=True)]

    def _restore(self, rows: Mapping[int, Row]) -> None:
        for row in rows.values():
            self._rows[row.index] = row
            self._bytes += sum(data.nbytes for data in row.data.values())
            if row.label < 0:
                self._unlabelled[row.index] = None
        self.counters.restored = len(rows)
        self._tidy()


__all__ = ["Lost", "Reservoir", "ReservoirCounters"]

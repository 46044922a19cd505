"""A store in memory: the simulator's, and as strict as the one on disk."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace

from coordinator.store.base import (
    CHECKPOINTS,
    RECEIPTS,
    About,
    Checkpoint,
    Entry,
    Floats,
    Journal,
    OpenRound,
    OpenTask,
    Receipt,
    Received,
    Rollback,
    RoundEntry,
    Store,
    Stored,
    new_lineage,
)  # fmt: skip
from edge_sdk.core.errors import StoreError
from edge_sdk.core.records import ModelTensors, Segments, VersionId


class MemoryStore(Store):
    """Keeps everything in this process.

    Args:
        keep: "recovery" | "audit" | "all", or "nothing" for a run that nobody takes up again: updates and checkpoints
            are forgotten at once, and only versions in use are held.
        devices: enrolled devices.
        lineage: None draws one.
    """

    def __init__(self, *, keep: str = "recovery", devices: tuple[str, ...] = (), lineage: str | None = None) -> None:
        self.lineage = lineage or new_lineage()
        self._keep = keep
        self.devices = frozenset(devices)
        self._about: About | None = None
        self._taken = False
        self._entries: dict[int, Entry | RoundEntry] = {}
        self._bases: dict[int, int] = {}  # version of an entry that has its body → what that is against
        self._round: OpenRound | None = None
        self._received: dict[tuple[str, str], Received] = {}  # (kind, device) → of the open round
        self._checkpoints: dict[int, Checkpoint] = {}
        self._receipts: dict[str, list[Receipt]] = {}
        self._tasks: dict[str, OpenTask] = {}
        self._numbers: dict[str, int] = {}
        self._sequences: dict[tuple[str, int], int] = {}
        self._norms: list[float] = []
        self._rollbacks: list[Rollback] = []
        self._versions: dict[int, tuple[Stored, ModelTensors, bytes]] = {}
        self._sizes: dict[int, int] = {}  # bytes of each

    def open(self) -> About | None:
        if self._taken:
            raise StoreError("this store is in use; close it first")
        self._taken = True
        return self._about

    def create(self, about: About, checkpoint: Checkpoint) -> None:
        self._about = about
        self._checkpoints[checkpoint.number] = _own(checkpoint)

    def amend(self, about: About) -> None:
        self._about = about

    def journal(self) -> Journal:
        return Journal(
            tasks=tuple(self._tasks.values()),
            receipts=tuple(r for receipts in self._receipts.values() for r in receipts),
            versions=tuple(stored for stored, _, _ in self._versions.values()),
            rollbacks=tuple(self._rollbacks),
            task_numbers=dict(self._numbers),
            sequences=dict(self._sequences),
            norms=tuple(self._norms),
            round=self._round,
            received=() if self._round is None else self._of_stage(self._round.stage),
        )

    def _of_stage(self, stage: str) -> tuple[Received, ...]:
        return tuple(received for (kind, _), received in sorted(self._received.items()) if kind == stage)

    def newest_checkpoint(self) -> Checkpoint:
        return _own(self._checkpoints[max(self._checkpoints)])

    def entries(self, after: int) -> Iterator[Entry | RoundEntry]:
        for number in sorted(n for n in self._entries if n > after):
            yield self._entries[number]

    def commit(self, entry: Entry) -> None:
        if entry.version in self._entries:
            raise StoreError(f"version {entry.version} was made already")
        self._keep_entry(entry.version, entry)
        self._norms = [*self._norms[-100:], entry.norm]
        self._answered(entry)

    def _answered(self, entry: Entry | Received) -> None:
        receipts = self._receipts.setdefault(entry.key.device, [])
        receipts.append(Receipt(entry.key, entry.digest, entry.version, self.lineage))
        del receipts[:-RECEIPTS]
        line = (entry.key.device, entry.key.incarnation)
        self._sequences[line] = max(entry.key.sequence, self._sequences.get(line, -1))
        self._tasks.pop(entry.task, None)

    def admit(self, received: Received) -> None:
        if (received.kind, received.key.device) in self._received:
            raise StoreError(f"{received.key.device!r} is in this stage of round {received.version} already")
        self._received[received.kind, received.key.device] = received
        self._answered(received)

    def commit_round(self, entry: RoundEntry) -> None:
        if entry.version in self._entries:
            raise StoreError(f"version {entry.version} was made already")
        self._keep_entry(entry.version, replace(entry, members=self._of_stage("train")))
        self._norms = [*self._norms[-100:], statistics.median(member.norm for member in entry.members)]
        self._received.clear()
        self._round = None

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        if self._keep == "nothing":
            return
        self._checkpoints[checkpoint.number] = _own(checkpoint)
        if self._keep == "all":
            return
        for number in sorted(self._checkpoints)[:-CHECKPOINTS]:
            del self._checkpoints[number]
        self._forget(min(self._checkpoints))

    def _forget(self, until: int) -> None:
        """Drops bodies (audit) or whole entries (recovery) up to a version."""
        for number in [n for n in self._entries if n <= until]:
            self._bases.pop(number, None)
            if self._keep == "audit":
                self._entries[number] = _without_bodies(self._entries[number])
            else:
                del self._entries[number]

    def _keep_entry(self, number: int, entry: Entry | RoundEntry) -> None:
        if self._keep == "nothing":
            return
        self._entries[number] = entry
        if _has_body(entry):
            self._bases[number] = entry.base.number

    def open_tasks(self, tasks: tuple[OpenTask, ...], stage: OpenRound | None = None) -> None:
        if stage is not None:
            if self._round is None or self._round.version != stage.version or stage.stage == "query":
                self._received.clear()
            self._round = stage
        for task in tasks:
            self._tasks[task.id] = task
            self._numbers[task.device] = task.number + 1

    def close_tasks(self, ids: tuple[str, ...]) -> None:
        for task in ids:
            self._tasks.pop(task, None)

    def save_version(self, stored: Stored, tensors: ModelTensors, data: bytes) -> None:
        self._versions[stored.id.number] = (stored, tensors, data)
        self._sizes[stored.id.number] = _size(tensors) + len(data)

    def save_accuracy(self, number: int, acc: float) -> None:
        if number in self._versions:
            stored, tensors, data = self._versions[number]
            self._versions[number] = (replace(stored, acc=acc), tensors, data)

    def tensors(self, version: VersionId) -> ModelTensors:
        return self._held(version)[1]

    def data(self, version: VersionId) -> bytes:
        return self._held(version)[2]

    def _held(self, version: VersionId) -> tuple[Stored, ModelTensors, bytes]:
        held = self._versions.get(version.number)
        if held is None or held[0].id != version:
            raise StoreError(f"version {version.number} of lineage {version.lineage[:8]} is not held")
        return held

    def prune(self, keep: frozenset[int], *, newest: int, budget_bytes: int) -> tuple[frozenset[int], bool]:
        if self._keep == "all":
            return frozenset(self._versions), False
        always = frozenset(sorted(self._versions)[-newest:])
        journal = frozenset(self._bases.values())
        journal |= frozenset(r.base.number for r in self._received.values())
        for number in self._versions.keys() - always - keep - journal:
            del self._versions[number]
        sizes = {number: self._sizes[number] for number in self._versions}
        used = sum(sizes.values())
        for number in sorted(sizes.keys() - always - journal):
            if used > budget_bytes:
                used -= sizes[number]
                del self._versions[number]
        self._sizes = {number: sizes[number] for number in self._versions}
        over = used > budget_bytes
        return frozenset(self._versions), over and bool(journal - always)

    def roll_back(self, rollback: Rollback, checkpoint: Checkpoint) -> None:
        self._rollbacks.append(rollback)
        self._received.clear()
        self._round = None
        self.checkpoint(checkpoint)
        undone = [t.id for t in self._tasks.values() if rollback.target < t.base.number < rollback.made]
        self.close_tasks(tuple(undone))

    def enrolled(self) -> frozenset[str]:
        return self.devices

    def close(self) -> None:
        self._taken = False


def _own(checkpoint: Checkpoint) -> Checkpoint:
    tensors = {n: Segments(s.params.copy(), s.stats.copy(), s.counters.copy()) for n, s in checkpoint.tensors.items()}
    state: Mapping[str, Floats] = {name: value.copy() for name, value in checkpoint.state.items()}
    return replace(checkpoint, tensors=tensors, state=state)


def _has_body(entry: Entry | RoundEntry) -> bool:
    return any(member.body for member in entry.members) if isinstance(entry, RoundEntry) else bool(entry.body)


def _without_bodies(entry: Entry | RoundEntry) -> Entry | RoundEntry:
    if isinstance(entry, RoundEntry):
        return replace(entry, replaced={}, members=tuple(replace(member, body=b"") for member in entry.members))
    return replace(entry, body=b"")


def _size(tensors: ModelTensors) -> int:
    return sum(s.params.nbytes + s.stats.nbytes + s.counters.nbytes for s in tensors.values())


__all__ = ["MemoryStore"]

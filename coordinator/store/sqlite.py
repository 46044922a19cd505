"""The store on disk: SQLite in WAL mode, and safetensors files beside it.

    store/
      lock, presence                  held by the process that uses the store (`store.lock`)
      coordinator.db                  journal, receipts, tasks, lists of the files below
      enrolled.txt                    one device per line; `edge-coordinator enroll` appends
      checkpoints/<number>.safetensors
      versions/<number>-<lineage>.safetensors   decoded tensors, mapped into memory as bases
      versions/<number>-<lineage>.edsm          the encoded object, as it was published

A file is written whole, synced and renamed before the row that names it is committed, and removed after the row is
gone; what a crash leaves without a row is removed at the next start. `synchronous = FULL`: a commit that has returned
is on the disk, which is what a reply to a device promises.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from coordinator.store import facts, files, rounds, rows
from coordinator.store.base import (
    CHECKPOINTS,
    RECEIPTS,
    About,
    Checkpoint,
    Entry,
    Journal,
    OpenRound,
    OpenTask,
    Received,
    Rollback,
    RoundEntry,
    Store,
    Stored,
    new_lineage,
)  # fmt: skip
from coordinator.store.lock import StoreLock
from edge_sdk.core.errors import StoreError
from edge_sdk.core.records import ModelTensors, VersionId

DATABASE = "coordinator.db"
_NORMS = 101


class SqliteStore(Store):
    """Keeps everything in one folder.

    Args:
        folder: made when it does not exist.
        keep: "recovery" (updates since the last two checkpoints) | "audit" (headers, rates, digests of all) |
            "all" (everything: replay to any version).
    """

    def __init__(self, folder: Path, *, keep: str = "recovery") -> None:
        self.lineage = ""
        self.folder = folder
        self._keep = keep
        self._lock: StoreLock | None = None
        self._connection: sqlite3.Connection | None = None

    def open(self) -> About | None:
        try:
            for folder in (self.folder, self.folder / "checkpoints", self.folder / "versions"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot be made: {error.strerror}") from error
        self._lock = StoreLock(self.folder)
        try:
            self._connection = connect(self.folder / DATABASE)
            with self._transaction() as db:
                rows.make_schema(db)
            about = rows.read_about(self._db)
        except (sqlite3.Error, StoreError) as error:
            self.close()
            raise StoreError(f"{self.folder}: cannot be opened: {error}") from error
        self.lineage = facts.read_meta(self._db, "lineage")
        self._sweep()
        return about

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self.folder}: not open")
        return self._connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise StoreError(f"{self.folder}: cannot be written: {error}; free some space and try again") from error
        except StoreError:  # what was to be written is too large for a record
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _sweep(self) -> None:
        """Removes what a crash left without a row."""
        known = set(rows.checkpoint_files(self._db)) | {
            f"{stem(v.id)}.{kind}" for v in rows.read_versions(self._db) for kind in ("safetensors", "edsm")
        }
        for folder in ("checkpoints", "versions"):
            for path in (self.folder / folder).iterdir():
                if path.name not in known:
                    path.unlink(missing_ok=True)

    def create(self, about: About, checkpoint: Checkpoint) -> None:
        self.lineage = new_lineage()
        self._write_checkpoint(checkpoint)
        with self._transaction() as db:
            facts.write_meta(db, "lineage", self.lineage)
            rows.write_about(db, about)
            rows.add_checkpoint(db, checkpoint)

    def amend(self, about: About) -> None:
        with self._transaction() as db:
            rows.write_about(db, about)

    def journal(self) -> Journal:
        return rows.read_journal(self._db, _NORMS)

    def newest_checkpoint(self) -> Checkpoint:
        rolled_back = {rows.checkpoint_file(r.made) for r in rows.read_journal(self._db, 0).rollbacks}
        problem: StoreError | None = None
        for name in rows.checkpoint_files(self._db):
            try:
                return files.read_checkpoint(self.folder / "checkpoints" / name)
            except StoreError as error:
                problem = problem or error  # the one before it, and a longer replay, will do
            if name in rolled_back:
                break  # a replay from before it would bring back what was undone
        raise problem or StoreError(f"{self.folder}: holds no checkpoint; restore it from a backup")

    def entries(self, after: int) -> Iterator[Entry | RoundEntry]:
        return rows.read_entries(self._db, after)

    def commit(self, entry: Entry) -> None:
        with self._transaction() as db:
            rows.add_entry(db, entry)
            rows.add_receipt(db, entry, self.lineage, RECEIPTS)
            rows.drop_tasks(db, (entry.task,))

    def admit(self, received: Received) -> None:
        with self._transaction() as db:
            rounds.add_received(db, received)
            rows.add_receipt(db, received, self.lineage, RECEIPTS)
            rows.drop_tasks(db, (received.task,))

    def commit_round(self, entry: RoundEntry) -> None:
        with self._transaction() as db:
            rounds.add_round(db, entry)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        self._checkpoint(checkpoint, None)

    def roll_back(self, rollback: Rollback, checkpoint: Checkpoint) -> None:
        self._checkpoint(checkpoint, rollback)

    def _checkpoint(self, checkpoint: Checkpoint, rollback: Rollback | None) -> None:
        self._write_checkpoint(checkpoint)
        with self._transaction() as db:
            rows.add_checkpoint(db, checkpoint)
            if rollback is not None:
                rows.add_rollback(db, rollback)
            gone = [] if self._keep == "all" else rows.forget(db, CHECKPOINTS, headers=self._keep == "audit")
        for name in gone:
            (self.folder / "checkpoints" / name).unlink(missing_ok=True)

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        path = self.folder / "checkpoints" / rows.checkpoint_file(checkpoint.number)
        files.write_atomically(path, files.pack_checkpoint(checkpoint))

    def open_tasks(self, tasks: tuple[OpenTask, ...], stage: OpenRound | None = None) -> None:
        with self._transaction() as db:
            if stage is not None:
                rounds.write_round(db, stage)
            for task in tasks:
                rows.add_task(db, task)

    def close_tasks(self, ids: tuple[str, ...]) -> None:
        with self._transaction() as db:
            rows.drop_tasks(db, ids)

    def save_version(self, stored: Stored, tensors: ModelTensors, data: bytes) -> None:
        files.write_atomically(self._path(stored.id, "safetensors"), files.pack_tensors(tensors))
        files.write_atomically(self._path(stored.id, "edsm"), data)
        with self._transaction() as db:
            rows.add_version(db, stored)

    def save_accuracy(self, number: int, acc: float) -> None:
        with self._transaction() as db:
            rows.set_accuracy(db, number, acc, self.lineage)

    def _path(self, version: VersionId, kind: str) -> Path:
        return self.folder / "versions" / f"{stem(version)}.{kind}"

    def tensors(self, version: VersionId) -> ModelTensors:
        return files.read_tensors(self._path(version, "safetensors"))

    def data(self, version: VersionId) -> bytes:
        return self._read(lambda: self._path(version, "edsm").read_bytes(), f"version {version.number} is not held")

    def _read(self, read: Callable[[], bytes], otherwise: str) -> bytes:
        try:
            return read()
        except OSError as error:
            raise StoreError(f"{self.folder}: {otherwise}: {error.strerror}") from error

    def prune(self, keep: frozenset[int], *, newest: int, budget_bytes: int) -> tuple[frozenset[int], bool]:
        versions = [v.id for v in rows.read_versions(self._db)]
        mine = sorted(v.number for v in versions if v.lineage == self.lineage)
        if self._keep == "all":
            return frozenset(mine), False
        always = {VersionId(v.lineage, v.number, v.digest) for v in versions if v.number in mine[-newest:]}
        always = {v for v in always if v.lineage == self.lineage}
        journal = rows.bases_in_use(self._db)
        named = {v for v in versions if v.lineage == self.lineage and v.number in keep}
        gone = [v for v in versions if v not in always | journal | named]
        sizes = {v: self._bytes_of(v) for v in versions if v not in gone}
        for version in sorted(sizes.keys() - always - journal, key=lambda v: v.number):
            if sum(sizes.values()) > budget_bytes:
                del sizes[version]
                gone.append(version)
        self._drop_versions(gone)
        over = sum(sizes.values()) > budget_bytes
        return frozenset(v.number for v in sizes if v.lineage == self.lineage), over and bool(journal - always)

    def _bytes_of(self, version: VersionId) -> int:
        paths = (self._path(version, kind) for kind in ("safetensors", "edsm"))
        return sum(path.stat().st_size for path in paths if path.exists())

    def _drop_versions(self, gone: list[VersionId]) -> None:
        if not gone:
            return
        with self._transaction() as db:
            rows.drop_versions(db, gone)
        for version in gone:
            for kind in ("safetensors", "edsm"):
                self._path(version, kind).unlink(missing_ok=True)

    def enrolled(self) -> frozenset[str]:
        path = self.folder / "enrolled.txt"
        return frozenset(path.read_text(encoding="utf-8").split()) if path.exists() else frozenset()

    def note(self, state: str) -> None:
        if self._lock is not None:
            self._lock.note(state)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def connect(path: Path) -> sqlite3.Connection:
    """Returns a connection with the settings on which the store's promises stand.

    One connection, used by one ordered lane: `check_same_thread` has nothing to protect here.
    """
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    return db


def stem(version: VersionId) -> str:
    """Returns what the files of a published version are called, without their suffix."""
    return f"{version.number:010d}-{version.lineage[:12]}"


__all__ = ["DATABASE", "SqliteStore", "connect", "stem"]

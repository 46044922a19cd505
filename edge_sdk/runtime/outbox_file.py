"""An outbox in one SQLite file."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from edge_sdk.core.errors import StoreError
from edge_sdk.core.records import Array, UpdateKey, VersionId
from edge_sdk.runtime import arrays
from edge_sdk.runtime.outbox import Outbox, Pending, Residual, Settlement, residual_after

P = ParamSpec("P")
T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS life (one INTEGER PRIMARY KEY CHECK (one = 1), incarnation TEXT, sequence INTEGER);
CREATE TABLE IF NOT EXISTS pending (
    task TEXT PRIMARY KEY, incarnation TEXT, sequence INTEGER, lineage TEXT, number INTEGER, base TEXT,
    digest TEXT, sent INTEGER, data BLOB, residual BLOB, whole BLOB);
CREATE TABLE IF NOT EXISTS residual (one INTEGER PRIMARY KEY CHECK (one = 1), lineage TEXT, data BLOB);
"""


def _stored(method: Callable[Concatenate[FileOutbox, P], T]) -> Callable[Concatenate[FileOutbox, P], T]:
    """Turns SQLite's errors into StoreError that says what to do."""

    def call(self: FileOutbox, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except sqlite3.Error as error:
            raise self.broken(error) from error

    return update_wrapper(call, method)


class FileOutbox(Outbox):
    """The outbox of a device in the field: it survives kills and power cuts at any instant.

    Args:
        path: the file.
        device: id that update keys carry.
        limit_mb: greatest size of the file; 0: the disk's.

    Raises:
        StoreError: the file cannot be used.
    """

    def __init__(self, path: Path, device: str, *, limit_mb: float = 0.0) -> None:
        self.where = str(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A cached statement keeps what was bound to it: an update that left long ago.
            self._db = sqlite3.connect(self.where, check_same_thread=False, cached_statements=0)
            self._open(limit_mb)
            super().__init__(device, self._begin_life(secrets.randbits(64)))
        except (sqlite3.Error, OSError) as error:
            raise self.broken(error) from error

    def broken(self, error: Exception) -> StoreError:
        """Returns what to raise when SQLite or the disk refuses."""
        return StoreError(f"outbox {self.where}: {error}; make room on its disk or remove the file")

    def _open(self, limit_mb: float) -> None:
        self._db.execute("PRAGMA auto_vacuum=FULL")  # an outbox is empty most of the time; so is its file then
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")  # an edge device loses its power, not only its process
        if limit_mb:
            page = int(self._db.execute("PRAGMA page_size").fetchone()[0])
            self._db.execute(f"PRAGMA max_page_count={max(1, int(limit_mb * 2**20 / page))}")
        self._db.executescript(_SCHEMA)

    def _begin_life(self, incarnation: int) -> int:
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO life VALUES (1, ?, 0)", (f"{incarnation:016x}",))
        row = self._db.execute("SELECT incarnation FROM life").fetchone()
        return int(row[0], 16)

    @_stored
    def renew(self) -> None:
        self.incarnation = secrets.randbits(64)
        with self._db:
            self._db.execute("UPDATE life SET incarnation = ?, sequence = 0", (f"{self.incarnation:016x}",))

    @_stored
    def next_key(self) -> UpdateKey:
        with self._db:
            self._db.execute("UPDATE life SET sequence = sequence + 1")
        row = self._db.execute("SELECT sequence FROM life").fetchone()
        return UpdateKey(self.device, self.incarnation, int(row[0]))

    @_stored
    def residual(self, lineage: str) -> Residual:
        row = self._db.execute("SELECT lineage, data FROM residual").fetchone()
        if row is None:
            return {}
        if row[0] != lineage:
            with self._db:
                self._db.execute("DELETE FROM residual")
            return {}
        return _unpack(row[1])

    @_stored
    def put(self, update: Pending, replacing: UpdateKey | None = None) -> bool:
        key, base = update.key, update.base
        row = (
            update.task, f"{key.incarnation:016x}", key.sequence, base.lineage, base.number, base.digest,
            update.digest, update.sent, update.data, _pack(update.residual), _pack(update.whole),
        )  # fmt: skip
        with self._db:
            if replacing is not None:
                gone = self._db.execute(
                    "DELETE FROM pending WHERE incarnation = ? AND sequence = ? AND sent = 0", _where(replacing)
                )
                if not gone.rowcount:
                    return False
            self._db.execute("INSERT OR REPLACE INTO pending VALUES (?,?,?,?,?,?,?,?,?,?,?)", row)
        return True

    @_stored
    def mark_sent(self, key: UpdateKey) -> bool:
        with self._db:
            done = self._db.execute("UPDATE pending SET sent = 1 WHERE incarnation = ? AND sequence = ?", _where(key))
        return done.rowcount > 0

    @_stored
    def oldest(self) -> Pending | None:
        row = self._db.execute("SELECT * FROM pending ORDER BY rowid LIMIT 1").fetchone()
        return None if row is None else self._pending(row)

    @_stored
    def waiting(self) -> int:
        return int(self._db.execute("SELECT COUNT(*) FROM pending").fetchone()[0])

    @_stored
    def settle(self, key: UpdateKey, outcome: Settlement) -> bool:
        columns = "lineage, residual, whole"
        row = self._db.execute(
            f"SELECT {columns} FROM pending WHERE incarnation = ? AND sequence = ?",  # noqa: S608  a constant
            _where(key),
        ).fetchone()
        if row is None:
            return False
        residual = self._after(row, outcome)
        with self._db:
            self._db.execute("DELETE FROM pending WHERE incarnation = ? AND sequence = ?", _where(key))
            if outcome is not Settlement.IGNORE:
                self._db.execute("INSERT OR REPLACE INTO residual VALUES (1, ?, ?)", (row[0], _pack(residual)))
        return True

    def close(self) -> None:
        self._db.close()

    def _after(self, row: tuple[str, bytes, bytes], outcome: Settlement) -> Residual:
        before = self._db.execute("SELECT data FROM residual WHERE lineage = ?", (row[0],)).fetchone()
        return residual_after(_unpack(before[0]) if before else {}, _unpack(row[1]), _unpack(row[2]), outcome)

    def _pending(self, row: tuple[str, str, int, str, int, str, str, int, bytes, bytes, bytes]) -> Pending:
        task, incarnation, sequence, lineage, number, base, digest, sent, data, residual, whole = row
        return Pending(
            key=UpdateKey(self.device, int(incarnation, 16), sequence),
            task=task,
            base=VersionId(lineage, number, base),
            digest=digest,
            data=data,
            residual=_unpack(residual),
            whole=_unpack(whole),
            sent=bool(sent),
        )


def _pack(residual: Residual) -> bytes:
    return arrays.pack(residual) if residual else b""  # a codec without loss leaves nothing


def _unpack(data: bytes) -> dict[str, Array]:
    return arrays.unpack(data) if data else {}


def _where(key: UpdateKey) -> tuple[str, int]:
    return f"{key.incarnation:016x}", key.sequence


__all__ = ["FileOutbox"]

"""What a device still owes the coordinator: encoded updates and the residual of error feedback, in one SQLite file.

One pending update per task. Until its first chunk is sent it may be replaced (the device trained on while off-line);
it is deleted only on the coordinator's reply, in the same transaction that moves the residual:

    accepted                            the residual made with the update is kept
    base_expired, rate                  what was sent returns whole: the residual is the uncompressed update
    norm, non_finite, rolled_back_base  both are thrown away
    another lineage                     cleared
    anything else                       see `settlement`
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import update_wrapper
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from edge_sdk.core.errors import Reason, StoreError
from edge_sdk.core.records import Array, Float32, UpdateKey, VersionId
from edge_sdk.runtime import arrays

P = ParamSpec("P")
T = TypeVar("T")
Residual = Mapping[str, Float32]  # module → float32 (P,)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS life (one INTEGER PRIMARY KEY CHECK (one = 1), incarnation TEXT, sequence INTEGER);
CREATE TABLE IF NOT EXISTS pending (
    task TEXT PRIMARY KEY, incarnation TEXT, sequence INTEGER, lineage TEXT, number INTEGER, base TEXT,
    digest TEXT, sent INTEGER, data BLOB, residual BLOB, whole BLOB);
CREATE TABLE IF NOT EXISTS residual (one INTEGER PRIMARY KEY CHECK (one = 1), lineage TEXT, data BLOB);
"""


_MEMORY = ":memory:"


class Settlement(Enum):
    """What becomes of the residual when the coordinator has answered."""

    KEEP = "keep"  # the update is in the model; what the codec left out waits for the next one
    RETURN = "return"  # the update is not in the model, but was good: all of it waits for the next one
    DROP = "drop"  # neither the update nor the residual can be trusted
    IGNORE = "ignore"  # the update is gone; the residual stays what it was before it


_BY_REASON = {
    Reason.BASE_EXPIRED: Settlement.RETURN,
    Reason.RATE: Settlement.RETURN,
    Reason.STALE: Settlement.RETURN,
    Reason.UNKNOWN_TASK: Settlement.RETURN,  # the task lapsed while it was trained
    Reason.STORE: Settlement.RETURN,  # the coordinator's disk, not our update
    Reason.SEQUENCE_REUSED: Settlement.RETURN,
    Reason.NORM: Settlement.DROP,
    Reason.NON_FINITE: Settlement.DROP,
    Reason.ROLLED_BACK_BASE: Settlement.DROP,
    Reason.UNKNOWN_BASE: Settlement.DROP,  # trained from a version that this coordinator never had
}


def settlement(reason: str) -> Settlement:
    """Returns what a rejection does to the residual."""
    try:
        return _BY_REASON.get(Reason(reason), Settlement.IGNORE)
    except ValueError:
        return Settlement.IGNORE  # a newer coordinator's reason


@dataclass(frozen=True, slots=True)
class Pending:
    """An encoded update that waits for its reply."""

    key: UpdateKey
    task: str
    base: VersionId
    digest: str  # blake2b-128 of data, 32 hex digits
    data: bytes  # the encoded object
    residual: Residual  # what the codec left out, per module
    whole: Residual  # what went into the codec: the trained change with the residual before it
    sent: bool = False  # a chunk of it has left


def _stored(method: Callable[Concatenate[Outbox, P], T]) -> Callable[Concatenate[Outbox, P], T]:
    """Turns SQLite's errors into StoreError that says what to do."""

    def call(self: Outbox, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except sqlite3.Error as error:
            raise self.broken(error) from error

    return update_wrapper(call, method)


class Outbox:
    """The outbox of one device. Blocking: in the field it is called through an ordered lane of Compute.

    Args:
        path: the file; None keeps everything in memory.
        device: id that update keys carry.
        incarnation: 64 bits that name this outbox's life; None: drawn at random when the file is made.
        limit_mb: greatest size of the file; 0: the disk's.
    """

    def __init__(
        self, path: Path | None, device: str, *, incarnation: int | None = None, limit_mb: float = 0.0
    ) -> None:
        self.where = _MEMORY if path is None else str(path)
        self.device = device
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            # A cached statement keeps what was bound to it: an update that left long ago.
            self._db = sqlite3.connect(self.where, check_same_thread=False, cached_statements=0)
            self._open(limit_mb)
            self._incarnation = self._begin_life(secrets.randbits(64) if incarnation is None else incarnation)
        except (sqlite3.Error, OSError) as error:
            raise self.broken(error) from error

    def broken(self, error: Exception) -> StoreError:
        """Returns what to raise when SQLite or the disk refuses."""
        return StoreError(f"outbox {self.where}: {error}; make room on its disk or remove the file")

    def _open(self, limit_mb: float) -> None:
        if self.where != _MEMORY:
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

    @property
    def incarnation(self) -> int:
        """The 64 bits that name this life of the outbox."""
        return self._incarnation

    @_stored
    def renew(self) -> None:
        """Begins a new life: another program has used our sequence numbers (a copied disk)."""
        self._incarnation = secrets.randbits(64)
        with self._db:
            self._db.execute("UPDATE life SET incarnation = ?, sequence = 0", (f"{self._incarnation:016x}",))

    @_stored
    def next_key(self) -> UpdateKey:
        """Returns a key that was never used before; committed before it is returned."""
        with self._db:
            self._db.execute("UPDATE life SET sequence = sequence + 1")
        row = self._db.execute("SELECT sequence FROM life").fetchone()
        return UpdateKey(self.device, self._incarnation, int(row[0]))

    @_stored
    def residual(self, lineage: str) -> Residual:
        """Returns the residual for updates against this lineage; another lineage's is cleared."""
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
        """Stores an update and returns True.

        Args:
            update: the update.
            replacing: takes the place of this one; False, and nothing stored, if a chunk of that one has left.
        """
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
        """Fixes an update before its first chunk leaves; False if it is no longer there (it was replaced)."""
        with self._db:
            done = self._db.execute("UPDATE pending SET sent = 1 WHERE incarnation = ? AND sequence = ?", _where(key))
        return done.rowcount > 0

    @_stored
    def oldest(self) -> Pending | None:
        """Returns the update that has waited longest; None: nothing is pending."""
        row = self._db.execute("SELECT * FROM pending ORDER BY rowid LIMIT 1").fetchone()
        return None if row is None else self._pending(row)

    @_stored
    def waiting(self) -> int:
        """Returns how many updates are pending."""
        return int(self._db.execute("SELECT COUNT(*) FROM pending").fetchone()[0])

    @_stored
    def settle(self, key: UpdateKey, outcome: Settlement) -> bool:
        """Deletes an update and moves the residual as its outcome says; False if there is no such update."""
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
        """Closes the file."""
        self._db.close()

    def _after(self, row: tuple[str, bytes, bytes], outcome: Settlement) -> dict[str, Array]:
        if outcome in (Settlement.DROP, Settlement.IGNORE):
            return {}
        before = self._db.execute("SELECT data FROM residual WHERE lineage = ?", (row[0],)).fetchone()
        kept = _unpack(before[0]) if before else {}  # of modules that this update did not carry
        return {**kept, **_unpack(row[1] if outcome is Settlement.KEEP else row[2])}

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


__all__ = ["Outbox", "Pending", "Residual", "Settlement", "settlement"]

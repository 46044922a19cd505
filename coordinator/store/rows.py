"""Rows of the store's database: the schema, and records to rows and back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from coordinator.store import files, patches
from coordinator.store.base import (
    About,
    Checkpoint,
    Entry,
    Journal,
    OpenTask,
    Receipt,
    Received,
    Rollback,
    RoundEntry,
    Stored,
)  # fmt: skip
from coordinator.store.facts import (
    base_columns,
    pack_header,
    read_meta,
    unpack_header,
    write_meta,
)  # fmt: skip
from coordinator.store.rounds import drop_round, read_received, read_round
from edge_sdk.codecs import schema
from edge_sdk.core.errors import StoreError
from edge_sdk.core.messages import Published
from edge_sdk.core.records import UpdateKey, VersionId

FORMAT = "3"
OLDER = ("2",)  # formats that become this one when they are opened: they hold nothing that it cannot read

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journal (
    version INTEGER PRIMARY KEY, base_lineage TEXT NOT NULL, base_number INTEGER NOT NULL, base_digest TEXT NOT NULL,
    norm REAL NOT NULL, updates INTEGER NOT NULL, header BLOB NOT NULL, body BLOB);
CREATE TABLE IF NOT EXISTS received (
    version INTEGER NOT NULL, device TEXT NOT NULL, kind TEXT NOT NULL, base_lineage TEXT NOT NULL,
    base_number INTEGER NOT NULL, base_digest TEXT NOT NULL, norm REAL NOT NULL, header BLOB NOT NULL, body BLOB,
    PRIMARY KEY (version, kind, device)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS receipts (
    device TEXT NOT NULL, incarnation TEXT NOT NULL, sequence INTEGER NOT NULL, digest TEXT NOT NULL,
    version INTEGER NOT NULL, lineage TEXT NOT NULL,
    PRIMARY KEY (device, incarnation, sequence)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sequences (
    device TEXT NOT NULL, incarnation TEXT NOT NULL, sequence INTEGER NOT NULL,
    PRIMARY KEY (device, incarnation)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY, device TEXT NOT NULL, number INTEGER NOT NULL, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS devices (device TEXT PRIMARY KEY, tasks INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS versions (
    lineage TEXT NOT NULL, number INTEGER NOT NULL, digest TEXT NOT NULL, record BLOB NOT NULL,
    published_order INTEGER NOT NULL, updates INTEGER NOT NULL, acc REAL,
    PRIMARY KEY (lineage, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checkpoints (number INTEGER PRIMARY KEY, updates INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS rollbacks (made INTEGER PRIMARY KEY, target INTEGER NOT NULL);
"""


def make_schema(db: sqlite3.Connection) -> None:
    """Makes the tables where they are missing; StoreError if another program version made them."""
    for statement in (_SCHEMA + patches.SCHEMA).split(";"):
        if statement.strip():
            db.execute(statement)
    found = read_meta(db, "format")
    if not found or found in OLDER:
        write_meta(db, "format", FORMAT)
    elif found != FORMAT:
        raise StoreError(f"format {found}, this program reads {FORMAT}; use the version of Edge SDK that wrote it")


def read_about(db: sqlite3.Connection) -> About | None:
    """Returns what the store says of itself; None before it was created."""
    if not read_meta(db, "lineage"):
        return None
    return About(*(read_meta(db, name) for name in About.__dataclass_fields__))


def write_about(db: sqlite3.Connection, about: About) -> None:
    """Sets what the store says of itself."""
    for name, value in schema.to_plain(about).items():
        write_meta(db, name, value)


def add_entry(db: sqlite3.Connection, entry: Entry) -> None:
    """Adds a decision."""
    plain = {
        "key": schema.to_plain(entry.key), "task": entry.task, "digest": entry.digest, "chain": entry.chain,
        "kernel": entry.kernel, "op": entry.op, "rates": dict(entry.rates),
        "staleness": entry.staleness, "num_samples": entry.num_samples, "num_steps": entry.num_steps,
        "modalities": list(entry.modalities), "utc_ns": entry.utc_ns,
        **patches.add(db, patches.JOURNAL, entry.version, entry.patch),
    }  # fmt: skip
    header = pack_header(plain, "journal entry")
    row = (entry.version, *base_columns(entry.base), entry.norm, 1, header, entry.body)
    db.execute("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)


def read_entries(db: sqlite3.Connection, after: int) -> Iterator[Entry | RoundEntry]:
    """Yields decisions after a version, in order."""
    for row in db.execute("SELECT * FROM journal WHERE version > ? ORDER BY version", (after,)):
        version, lineage, number, digest, norm, _, header, body = row
        plain: dict[str, Any] = unpack_header(header, "journal entry")
        base, patch = VersionId(lineage, number, digest), patches.take(db, patches.JOURNAL, version, plain)
        if "weights" in plain:
            replaced = files.unpack_tensors(body) if body else {}
            members = read_received(db, version)
            yield RoundEntry(version=version, base=base, replaced=replaced, patch=patch, members=members, **plain)
            continue
        key, modalities = schema.from_plain(UpdateKey, plain.pop("key")), tuple(plain.pop("modalities"))
        yield Entry(
            version=version, base=base, norm=norm, body=body or b"", key=key, patch=patch, modalities=modalities,
            **plain,
        )  # fmt: skip


def add_receipt(db: sqlite3.Connection, entry: Entry | Received, lineage: str, keep: int) -> None:
    """Adds what a device was answered, and drops its old receipts."""
    key = entry.key
    line = (key.device, f"{key.incarnation:016x}")
    row = (*line, key.sequence, entry.digest, entry.version, lineage)
    db.execute("INSERT OR REPLACE INTO receipts VALUES (?, ?, ?, ?, ?, ?)", row)
    db.execute(
        "DELETE FROM receipts WHERE device = ?1 AND version <= "
        "(SELECT version FROM receipts WHERE device = ?1 ORDER BY version DESC LIMIT 1 OFFSET ?2)",
        (key.device, keep),
    )
    db.execute(
        "INSERT INTO sequences VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET sequence = max(sequence, excluded.sequence)",
        (*line, key.sequence),
    )


def add_task(db: sqlite3.Connection, task: OpenTask) -> None:
    """Adds an open task and counts it for its device."""
    record = pack_header(schema.to_plain(task), "task")
    db.execute("INSERT INTO tasks VALUES (?, ?, ?, ?)", (task.id, task.device, task.number, record))
    db.execute("INSERT OR REPLACE INTO devices VALUES (?, ?)", (task.device, task.number + 1))


def drop_tasks(db: sqlite3.Connection, ids: tuple[str, ...]) -> None:
    """Drops open tasks."""
    db.executemany("DELETE FROM tasks WHERE id = ?", [(task,) for task in ids])


def add_version(db: sqlite3.Connection, stored: Stored) -> None:
    """Adds a published version."""
    record = pack_header(schema.to_plain(stored.published), "version")
    name = (stored.id.lineage, stored.id.number, stored.id.digest)
    db.execute(
        "INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*name, record, stored.order, stored.updates, stored.acc),
    )


def set_accuracy(db: sqlite3.Connection, number: int, acc: float, lineage: str) -> None:
    """Remembers how a published version did."""
    db.execute("UPDATE versions SET acc = ? WHERE lineage = ? AND number = ?", (acc, lineage, number))


def read_versions(db: sqlite3.Connection) -> tuple[Stored, ...]:
    """Returns the published versions that are held, in the order of publication."""
    query = "SELECT record, published_order, updates, acc FROM versions ORDER BY published_order"
    return tuple(
        Stored(schema.from_plain(Published, unpack_header(record, "version")), order, updates, acc)
        for record, order, updates, acc in db.execute(query)
    )


def drop_versions(db: sqlite3.Connection, gone: list[VersionId]) -> None:
    """Drops published versions."""
    db.executemany("DELETE FROM versions WHERE lineage = ? AND number = ?", [(v.lineage, v.number) for v in gone])


def bases_in_use(db: sqlite3.Connection) -> set[VersionId]:
    """Returns the bases that a replay of the journal would read."""
    found: set[VersionId] = set()
    for table in ("journal", "received"):
        query = f"SELECT DISTINCT base_lineage, base_number, base_digest FROM {table} WHERE length(body) > 0"  # noqa: S608
        found |= {VersionId(*row) for row in db.execute(query)}
    return found


def checkpoint_file(number: int) -> str:
    """Returns the name of a checkpoint's file."""
    return f"{number:010d}.safetensors"


def add_checkpoint(db: sqlite3.Connection, checkpoint: Checkpoint) -> None:
    """Adds a checkpoint."""
    db.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?)", (checkpoint.number, checkpoint.updates))


def checkpoint_files(db: sqlite3.Connection) -> list[str]:
    """Returns the names of all checkpoint files, newest first."""
    return [checkpoint_file(n) for (n,) in db.execute("SELECT number FROM checkpoints ORDER BY number DESC")]


def forget(db: sqlite3.Connection, checkpoints: int, *, headers: bool) -> list[str]:
    """Drops what recovery from the newest checkpoints does not read; returns names of files to remove.

    Args:
        db: inside a transaction.
        checkpoints: how many stay.
        headers: keep the entries without their bodies (audit).
    """
    numbers = [n for (n,) in db.execute("SELECT number FROM checkpoints ORDER BY number DESC")]
    oldest = numbers[:checkpoints][-1]
    db.execute("DELETE FROM checkpoints WHERE number < ?", (oldest,))
    for table in ("journal", "received"):
        if headers:
            db.execute(f"UPDATE {table} SET body = NULL WHERE version <= ? AND body IS NOT NULL", (oldest,))  # noqa: S608
        else:
            db.execute(f"DELETE FROM {table} WHERE version <= ?", (oldest,))  # noqa: S608
    patches.forget(db, patches.JOURNAL, oldest)
    return [checkpoint_file(n) for n in numbers[checkpoints:]]


def read_journal(db: sqlite3.Connection, norms: int) -> Journal:
    """Returns the small facts; `norms` is how many of the newest norms."""
    receipts = db.execute("SELECT * FROM receipts ORDER BY version")
    newest = db.execute("SELECT norm FROM journal ORDER BY version DESC LIMIT ?", (norms,)).fetchall()
    tasks = db.execute("SELECT record FROM tasks ORDER BY device, number")
    sequences = db.execute("SELECT * FROM sequences")
    stage = read_round(db)
    return Journal(
        tasks=tuple(schema.from_plain(OpenTask, unpack_header(r, "task")) for (r,) in tasks),
        receipts=tuple(
            Receipt(UpdateKey(device, int(incarnation, 16), sequence), digest, version, lineage)
            for device, incarnation, sequence, digest, version, lineage in receipts
        ),
        versions=read_versions(db),
        rollbacks=tuple(Rollback(*row) for row in db.execute("SELECT made, target FROM rollbacks ORDER BY made")),
        task_numbers=dict(db.execute("SELECT device, tasks FROM devices")),
        sequences={(device, int(incarnation, 16)): sequence for device, incarnation, sequence in sequences},
        norms=tuple(norm for (norm,) in reversed(newest)),
        round=stage,
        received=() if stage is None else read_received(db, stage.version, stage.stage),
    )


def progress(db: sqlite3.Connection) -> tuple[int, int]:
    """Returns the number of the newest version, and how many updates were applied."""
    row = db.execute("SELECT number, updates FROM checkpoints ORDER BY number DESC LIMIT 1").fetchone()
    number, updates = row or (0, 0)
    query = "SELECT max(version), sum(updates) FROM journal WHERE version > ?"
    newest, count = db.execute(query, (number,)).fetchone()
    return (number, updates) if newest is None else (int(newest), updates + int(count))


def add_rollback(db: sqlite3.Connection, rollback: Rollback) -> None:
    """Remembers that versions were undone, and drops the tasks that start from them."""
    db.execute("INSERT INTO rollbacks VALUES (?, ?)", (rollback.made, rollback.target))
    tasks = read_journal(db, 0).tasks
    drop_tasks(db, tuple(t.id for t in tasks if rollback.target < t.base.number < rollback.made))
    drop_round(db)


__all__ = [
    "FORMAT",
    "add_checkpoint",
    "add_entry",
    "add_receipt",
    "add_rollback",
    "add_task",
    "add_version",
    "bases_in_use",
    "checkpoint_file",
    "checkpoint_files",
    "drop_tasks",
    "drop_versions",
    "forget",
    "make_schema",
    "progress",
    "read_about",
    "read_entries",
    "read_journal",
    "read_versions",
    "set_accuracy",
    "write_about",
]

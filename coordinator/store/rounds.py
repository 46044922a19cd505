"""Rows of synchronous rounds: what a round has received, the stage it is in, and the decision that ends it."""

from __future__ import annotations

import sqlite3
import statistics
from typing import Any

from coordinator.store import files, patches
from coordinator.store.base import OpenRound, Received, RoundEntry
from coordinator.store.facts import (
    base_columns,
    pack_header,
    read_meta,
    unpack_header,
    write_meta,
)  # fmt: skip
from edge_sdk.codecs import schema
from edge_sdk.core.records import UpdateKey, VersionId

_IN_HEADER = ("key", "task", "digest", "chain", "num_samples", "num_steps", "utc_ns", "modalities")


def add_round(db: sqlite3.Connection, entry: RoundEntry) -> None:
    """Adds a decision about a cohort whose members are there already; the round is over."""
    plain = {
        "kernel": entry.kernel, "weights": {block: dict(shares) for block, shares in entry.weights.items()},
        "keep": dict(entry.keep), "utc_ns": entry.utc_ns,
        **patches.add(db, patches.JOURNAL, entry.version, entry.patch),
    }  # fmt: skip
    header = pack_header(plain, "journal entry")
    norm = statistics.median(member.norm for member in entry.members)
    body = files.pack_tensors(entry.replaced) if entry.replaced else b""
    row = (entry.version, *base_columns(entry.base), norm, len(entry.members), header, body)
    db.execute("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    db.execute("DELETE FROM received WHERE version = ? AND kind <> 'train'", (entry.version,))
    _close(db)


def add_received(db: sqlite3.Connection, received: Received) -> None:
    """Adds an admitted update of the open round."""
    plain = schema.to_plain(received)
    packed = pack_header({name: plain[name] for name in _IN_HEADER}, "received update")
    row = (received.version, received.key.device, received.kind, *base_columns(received.base), received.norm, packed)
    db.execute("INSERT INTO received VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, received.body))


def read_received(db: sqlite3.Connection, version: int, kind: str = "train") -> tuple[Received, ...]:
    """Returns what one stage of a round received, sorted by device."""
    rows = db.execute("SELECT * FROM received WHERE version = ? AND kind = ? ORDER BY device", (version, kind))
    found = []
    for _, _, _, lineage, number, digest, norm, header, body in rows.fetchall():
        plain: dict[str, Any] = unpack_header(header, "received update")
        key, modalities = schema.from_plain(UpdateKey, plain.pop("key")), tuple(plain.pop("modalities"))
        base = VersionId(lineage, number, digest)
        more = {**plain, "key": key, "modalities": modalities, "body": body or b""}
        found.append(Received(version=version, kind=kind, base=base, norm=norm, **more))
    return tuple(found)


def write_round(db: sqlite3.Connection, stage: OpenRound) -> None:
    """Remembers the stage that a round is in; the first one forgets what an abandoned attempt received."""
    before = read_round(db)
    if before is None or before.version != stage.version or stage.stage == "query":
        db.execute("DELETE FROM received WHERE version >= ?", (stage.version,))
    plain = {"version": stage.version, "spec_digest": stage.spec_digest, "stage": stage.stage}
    patches.drop(db, patches.ROUND)
    packed = pack_header({**plain, **patches.add(db, patches.ROUND, stage.version, stage.patch)}, "round")
    write_meta(db, "round", packed.hex())


def read_round(db: sqlite3.Connection) -> OpenRound | None:
    """Returns the round under way."""
    text = read_meta(db, "round")
    if not text:
        return None
    plain: dict[str, Any] = unpack_header(bytes.fromhex(text), "round")
    return OpenRound(patch=patches.take(db, patches.ROUND, plain["version"], plain), **plain)


def drop_round(db: sqlite3.Connection) -> None:
    """Forgets the round under way and what it has received."""
    stage = read_round(db)
    if stage is not None:
        db.execute("DELETE FROM received WHERE version >= ?", (stage.version,))
        _close(db)


def _close(db: sqlite3.Connection) -> None:
    """No round is open any more."""
    patches.drop(db, patches.ROUND)
    write_meta(db, "round", "")


__all__ = ["add_received", "add_round", "drop_round", "read_received", "read_round", "write_round"]

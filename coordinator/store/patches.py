"""What decisions change in a rule's state: small entries lie in the record's header, large ones in rows of their own.

Rules with a copy of the model per device change gigabytes in one round; no header could hold that. A float64 array
whose values are float32 ones lies there as float32, in half the room, and comes back as it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

import numpy as np

from coordinator.store import files
from coordinator.store.base import Floats
from edge_sdk.codecs import wire
from edge_sdk.core.errors import StoreError

LARGEST = 1_000_000_000  # bytes; what SQLite takes as one value
JOURNAL, ROUND = "journal", "round"  # places: decisions, and the round under way

SCHEMA = """
CREATE TABLE IF NOT EXISTS patches (
    place TEXT NOT NULL, version INTEGER NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (place, version, name));
"""


def add(db: sqlite3.Connection, place: str, version: int, patch: Mapping[str, Floats]) -> dict[str, Any]:
    """Adds the large entries of a patch, and returns what its header has to hold.

    Raises:
        StoreError: an entry is larger than the database takes; nothing may be committed then.
    """
    header: dict[str, Any] = {"patch": {}, "large": 0}
    for name, value in patch.items():
        if value.nbytes <= files.SMALL:
            header["patch"][name] = wire.pack_array(value)
            continue
        packed = wire.pack_array(value.astype(np.float32) if files.is_float32(value) else value)
        if len(packed) > LARGEST:
            raise StoreError(
                f"entry {name!r} of the method's state: {len(packed)} bytes, a store takes at most {LARGEST}; "
                "use a smaller model, or a method that keeps no model per device"
            )
        db.execute("INSERT INTO patches VALUES (?, ?, ?, ?)", (place, version, name, packed))
        header["large"] += 1
    return header


def take(db: sqlite3.Connection, place: str, version: int, header: dict[str, Any]) -> dict[str, Floats]:
    """Returns a patch as it was added, and removes what belongs to it from the header.

    Large entries that `forget` dropped are missing from it.

    Raises:
        StoreError: only some of them are there.
    """
    patch = {name: wire.unpack_array(value) for name, value in header.pop("patch").items()}
    large = header.pop("large", 0)  # stores of format 2 have none
    if large:
        query = "SELECT name, value FROM patches WHERE place = ? AND version = ?"
        found = {name: wire.unpack_array(value) for name, value in db.execute(query, (place, version))}
        if len(found) not in (0, large):
            raise StoreError(
                f"version {version}: {len(found)} of {large} large entries of the method's state are there; "
                "restore the store from a backup"
            )
        patch |= {name: np.asarray(value, np.float64) for name, value in found.items()}
    return patch


def forget(db: sqlite3.Connection, place: str, until: int) -> None:
    """Drops the large entries of decisions up to a version."""
    db.execute("DELETE FROM patches WHERE place = ? AND version <= ?", (place, until))


def drop(db: sqlite3.Connection, place: str) -> None:
    """Drops all large entries of a place."""
    db.execute("DELETE FROM patches WHERE place = ?", (place,))


__all__ = ["JOURNAL", "LARGEST", "ROUND", "SCHEMA", "add", "drop", "forget", "take"]

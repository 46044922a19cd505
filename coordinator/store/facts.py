"""Named facts of a store's database, and the pieces that several tables share."""

from __future__ import annotations

import sqlite3
from typing import Any

from edge_sdk.codecs import wire
from edge_sdk.core.errors import StoreError, WireFormatError
from edge_sdk.core.records import VersionId

_HEADER_LIMIT = 256 * 1024 * 1024  # bytes; a header holds the small entries of the rule's patch
_ITEMS = 10_000_000  # a round's header names every device of its cohort


def pack_header(plain: dict[str, Any], what: str) -> bytes:
    """Returns a record of the store as msgpack.

    Raises:
        StoreError: it is larger than a record may be.
    """
    try:
        return wire.pack_map(plain, what, _HEADER_LIMIT)
    except WireFormatError as error:
        raise StoreError(f"{error}; select fewer devices per round, or a method that remembers less of each") from error


def unpack_header(data: bytes, what: str) -> Any:
    """Returns what `pack_header` packed."""
    return wire.unpack_map(data, what, _HEADER_LIMIT, items=_ITEMS)


def read_meta(db: sqlite3.Connection, name: str) -> str:
    """Returns a fact about the store, "" if there is none."""
    row = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return "" if row is None else str(row[0])


def write_meta(db: sqlite3.Connection, name: str, value: str) -> None:
    """Sets a fact about the store."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def base_columns(base: VersionId) -> tuple[str, int, str]:
    """Returns a base as its three columns."""
    return base.lineage, base.number, base.digest


__all__ = ["base_columns", "pack_header", "read_meta", "unpack_header", "write_meta"]

"""What a coordinator keeps: on disk (`SqliteStore`), or in memory for the simulator (`MemoryStore`)."""

from __future__ import annotations

from coordinator.store.base import (
    About,
    Checkpoint,
    Entry,
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
from coordinator.store.memory import MemoryStore
from coordinator.store.sqlite import SqliteStore

__all__ = [
    "About",
    "Checkpoint",
    "Entry",
    "Journal",
    "MemoryStore",
    "OpenRound",
    "OpenTask",
    "Receipt",
    "Received",
    "Rollback",
    "RoundEntry",
    "SqliteStore",
    "Store",
    "Stored",
    "new_lineage",
]

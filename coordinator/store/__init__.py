"""What a coordinator keeps: on disk (`SqliteStore`), or in memory for the simulator (`MemoryStore`)."""

from __future__ import annotations

from coordinator.store.base import (
    About,
    Checkpoint,
    Entry,
    Journal,
    OpenTask,
    Receipt,
    Rollback,
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
    "OpenTask",
    "Receipt",
    "Rollback",
    "SqliteStore",
    "Store",
    "Stored",
    "new_lineage",
]

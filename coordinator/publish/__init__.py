"""Published versions."""

from __future__ import annotations

from coordinator.publish.publisher import SLOTS, STORE, Publisher
from coordinator.publish.sealing import Sealed, Snapshot, seal, wire_bytes

__all__ = ["SLOTS", "STORE", "Publisher", "Sealed", "Snapshot", "seal", "wire_bytes"]

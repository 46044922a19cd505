"""The coordinator itself: one ordered loop from a message to a reply."""

from __future__ import annotations

from coordinator.service.coordinator import Coordinator

__all__ = ["Coordinator"]

"""How predictions fare beside training: an observer of the device's own events."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Any

from edge_sdk.runtime.events import PhaseFinished, PredictionMade, TaskAbandoned

WINDOWS = 64  # newest predictions that are looked at, of either kind
LEAST = 8  # fewer tell nothing
_LEAST_MS = 5.0  # a median that rises by less disturbs nobody, however small it was


class Foreground:
    """Compares the latency of predictions while a phase trains with that of others.

    Args:
        limit_ms: a prediction that comes later than this after its window is late.
    """

    def __init__(self, limit_ms: float) -> None:
        self._limit_ms = limit_ms
        self._idle: deque[float] = deque(maxlen=WINDOWS)
        self._busy: deque[float] = deque(maxlen=WINDOWS)
        self._training = False
        self.late = False  # the newest prediction came too late

    def __call__(self, event: Any) -> None:
        if isinstance(event, PredictionMade) and event.refined:
            return  # late by nature: nobody's fault
        if isinstance(event, PredictionMade):
            self.late = event.late_ms > self._limit_ms
            (self._busy if self._training else self._idle).append(event.latency_ms)
        elif isinstance(event, PhaseFinished | TaskAbandoned):
            self._training = False

    def trains(self) -> None:
        """A phase begins; it is judged by its own predictions."""
        self._busy.clear()
        self._training = True

    def rests(self) -> None:
        """No phase begins; what the last one did is forgotten, so that another may be tried after a while."""
        self._busy.clear()
        self._training = False

    def slowdown(self) -> float | None:
        """Returns the median latency while training over that without; None while there is too little of either."""
        if len(self._idle) < LEAST or len(self._busy) < LEAST:
            return None
        idle, busy = median(tuple(self._idle)), median(tuple(self._busy))  # the event loop adds meanwhile
        return 1.0 if busy - idle < _LEAST_MS else busy / max(idle, 1e-3)


__all__ = ["LEAST", "WINDOWS", "Foreground"]

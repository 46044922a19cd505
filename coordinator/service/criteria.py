"""When a federation is finished."""

from __future__ import annotations

from coordinator.config import StopConfig
from edge_sdk.core.clock import NS, Clock


class Criteria:
    """The stop criteria of a federation.

    Args:
        config: the [stop] section.
        clock: time is counted from the first call of `start`.
    """

    def __init__(self, config: StopConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._start_ns = 0
        self._without_gain = 0  # evaluations in a row

    def start(self) -> None:
        """Time counts from here."""
        self._start_ns = self._clock.now_ns()

    def evaluated(self, acc: float, best: float | None) -> None:
        """Takes a result; `best` is the best one before it."""
        gained = best is None or acc >= best + self._config.plateau_delta
        self._without_gain = 0 if gained else self._without_gain + 1

    def met(self, updates: int) -> str:
        """Returns the criterion that is met, "" if none is."""
        stop = self._config
        seconds = (self._clock.now_ns() - self._start_ns) / NS
        if 0 < stop.updates <= updates:
            return f"{stop.updates} updates"
        if 0 < stop.seconds <= seconds:
            return f"{stop.seconds:g} s"
        if 0 < stop.plateau <= self._without_gain:
            return f"no gain in {stop.plateau} evaluations"
        return ""

    @property
    def due_ns(self) -> int | None:
        """When time is up."""
        return self._start_ns + round(self._config.seconds * NS) if self._config.seconds else None


__all__ = ["Criteria"]

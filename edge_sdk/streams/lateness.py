"""Does a modality come to its windows in time? One that misses nearly every deadline is a setting, not an accident."""

from __future__ import annotations

import logging
from collections import deque
from statistics import median

log = logging.getLogger(__name__)

LOOK_AT = 32  # newest windows of a modality
NEARLY_ALL = 0.9  # share of them that came late


class Lateness:
    """Watches the parts of one modality.

    Args:
        modality: its name.
        deadline_s: of the federation.
    """

    def __init__(self, modality: str, deadline_s: float) -> None:
        self.late = 0  # parts that came after the deadline so far
        self.note = ""  # what to do about it; "": it mostly comes in time
        self._modality = modality
        self._deadline_s = deadline_s
        self._newest: deque[float] = deque(maxlen=LOOK_AT)  # after the deadline, s; 0: in time

    def take(self, late_s: float) -> None:
        """Notes when a part came: so long after the deadline, or 0."""
        self.late += late_s > 0
        self._newest.append(late_s)
        if len(self._newest) < LOOK_AT:
            return
        late = [s for s in self._newest if s > 0]
        before, self.note = self.note, self._sentence(late) if len(late) >= NEARLY_ALL * LOOK_AT else ""
        if self.note and not before:
            log.warning("%s", self.note)

    def _sentence(self, late: list[float]) -> str:
        name, behind_s = self._modality, median(late)
        return (
            f"{name} comes too late for nearly every window ({len(late)} of {LOOK_AT}, {behind_s:.2f} s after the "
            f"deadline in the median), so that predictions lack it: set window.deadline_s of the federation to "
            f"{self._deadline_s + 1.2 * max(late):.2f} (now {self._deadline_s:g}), or let its sensor deliver shorter "
            f"pieces (microphones: sensors.{name}.options.block_s, and PULSE_LATENCY_MSEC in the environment)"
        )


__all__ = ["LOOK_AT", "Lateness"]

"""Does a new model do worse than the old one on what this device sees? Then it is not taken.

A published model is good for the federation, not for every device in it; and a coordinator may publish nonsense. Both
engines predict the device's newest labelled windows, and the new one may be wrong on more of them only by a margin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_sdk.core.errors import EngineError, GuardError, ShapeMismatch
from edge_sdk.core.interfaces import Engine
from edge_sdk.core.records import RoundData
from edge_sdk.core.scoring import accuracy

LEAST = 16  # labelled windows; fewer say nothing


@dataclass(frozen=True, slots=True)
class Guard:
    """What new models are judged by."""

    labelled: Callable[[int], RoundData]  # n → the newest labelled windows of this device, at most n
    windows: int  # how many are looked at
    margin: float  # accuracy that a new model may lose against the old one, [0, 1]; 1: anything is taken

    def data(self) -> RoundData | None:
        """Returns what to judge by; None: no judgement is asked for, or there are too few labelled windows."""
        if self.margin >= 1:
            return None
        data = self.labelled(self.windows)
        return data if len(data.y) >= LEAST else None


def judge(new: Engine, old: Engine, data: RoundData, margin: float) -> None:
    """Compares two engines on labelled windows.

    Raises:
        GuardError: the new one is right on fewer of them by more than the margin.
    """
    after = accuracy(new, data)
    try:
        before = accuracy(old, data)
    except (EngineError, ShapeMismatch):  # one that fails is no reason to keep it
        return
    if before - after > margin:
        raise GuardError(
            f"it is right on {after:.0%} of this device's {len(data.y)} newest labelled windows, the model that serves"
            f" on {before:.0%}; a loss of {margin:.0%} is allowed (inference.guard_margin)"
        )


__all__ = ["LEAST", "Guard", "judge"]

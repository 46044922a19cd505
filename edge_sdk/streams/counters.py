"""What a stream received, used and dropped; every dropped sample has a reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from edge_sdk.core.clock import NS


class Drop(str, Enum):
    """Why a sample took part in no window."""

    OVERRUN = "overrun"  # the queue between driver and event loop was full
    SUPERSEDED = "superseded"  # a newer sample of the same window (or queue) made it unneeded
    OVERLAP = "overlap"  # not later than a sample that was seen before
    NON_FINITE = "non_finite"  # NaN or Inf
    MALFORMED = "malformed"  # other channels than the spec's, or no times
    UNMATCHED = "unmatched"  # before the first whole window of a run, or between windows (hop > length)
    GAP = "gap"  # the run ended before the window did
    LOW_QUALITY = "low_quality"  # too many of the window's samples are interpolated
    TOO_LATE = "too_late"  # its window is older than the join horizon
    FUTURE = "future"  # further ahead of the stream clock than the buffer reaches


@dataclass(slots=True)
class Counters:
    """Counts of one stream at one place; samples = used + dropped + those still undecided."""

    samples: int = 0  # received
    chunks: int = 0  # received
    used: int = 0  # samples handed on (pump) or part of at least one window (windower)
    dropped: dict[Drop, int] = field(default_factory=dict)
    reconnects: int = 0
    newest_ns: int | None = None  # time of the newest sample, stream clock
    measured_hz: float = 0.0  # samples per second of the stream clock, over the last seconds

    def drop(self, reason: Drop, count: int) -> None:
        """Counts dropped samples."""
        if count > 0:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    @property
    def lost(self) -> int:
        """Samples dropped for any reason but that a newer one made them unneeded."""
        return sum(n for reason, n in self.dropped.items() if reason is not Drop.SUPERSEDED)

    def last_age_s(self, now_ns: int) -> float:
        """Age of the newest sample, s; inf before the first."""
        return float("inf") if self.newest_ns is None else (now_ns - self.newest_ns) / NS


__all__ = ["Counters", "Drop"]

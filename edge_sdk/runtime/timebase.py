"""Where the stream clock lies in the time of day: measured at start, and anew when somebody sets the time of day.

Times on the wire are UTC with an uncertainty. One record maps both ways, for predictions going out and labels coming
in. A replay at 20 × has a stream clock that runs 20 seconds per second of UTC; the record knows the speed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from edge_sdk.core.clock import Clock

STEP_NS = 100_000_000  # the time of day was set, not merely slewed
_READINGS = 5  # the narrowest one counts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One instant on both clocks."""

    stream_ns: int  # on the stream clock
    utc_ns: int  # the same instant as time of day
    err_ns: int  # uncertainty of utc_ns: the width of the bracket it was read in, ns of UTC
    speed: float  # seconds of the stream clock per second of UTC

    def utc(self, stream_ns: int) -> int:
        """Returns a time of the stream clock as UTC."""
        return self.utc_ns + _scaled(stream_ns - self.stream_ns, 1.0 / self.speed)

    def stream(self, utc_ns: int) -> int:
        """Returns a UTC time on the stream clock."""
        return self.stream_ns + _scaled(utc_ns - self.utc_ns, self.speed)


class StreamTime:
    """The session's record, kept true.

    Args:
        clock: gives the time of day.
        stream_clock: what sensors' data are timed on.
        speed: seconds of the stream clock per second of `clock`.
    """

    def __init__(self, clock: Clock, stream_clock: Clock, speed: float = 1.0) -> None:
        self._clock = clock
        self._stream_clock = stream_clock
        self._speed = speed
        self.steps = 0  # times that the time of day was set since the start
        self.record = self._measure()

    def now_ns(self) -> int:
        """Returns the stream clock."""
        return self._stream_clock.now_ns()

    def utc_now_ns(self) -> int:
        """Returns the time of day."""
        return self._clock.utc_ns()

    def utc(self, stream_ns: int) -> tuple[int, int]:
        """Returns a time of the stream clock as (UTC, uncertainty), ns."""
        err_ns = self._check()
        return self.record.utc(stream_ns), err_ns

    def stream(self, utc_ns: int) -> tuple[int, int]:
        """Returns a UTC time as (time on the stream clock, uncertainty there), ns."""
        err_ns = self._check()
        return self.record.stream(utc_ns), _scaled(err_ns, self._speed)

    def _check(self) -> int:
        """Returns the record's present uncertainty, ns of UTC: that of its reading, and what clocks drifted since."""
        drift_ns = self._drift_ns()
        if abs(drift_ns) > STEP_NS:
            self.steps += 1
            level = logging.WARNING if self.steps == 1 else logging.DEBUG
            log.log(
                level, "the time of day was set by %+.1f s; labels and predictions go by the new one", drift_ns / 1e9
            )
            self.record, drift_ns = self._measure(), 0
        return self.record.err_ns + abs(drift_ns)

    def _drift_ns(self) -> int:
        """Returns how far the time of day has moved against the record, 0 where the reading cannot tell."""
        found = self._read()
        drift_ns = found.utc_ns - self.record.utc(found.stream_ns)
        if abs(drift_ns) <= found.err_ns + self.record.err_ns:
            return 0
        return drift_ns

    def _measure(self) -> Record:
        return min((self._read() for _ in range(_READINGS)), key=lambda record: record.err_ns)

    def _read(self) -> Record:
        """Reads the time of day between two readings of the stream clock."""
        before_ns = self._stream_clock.now_ns()
        utc_ns = self._clock.utc_ns()
        after_ns = self._stream_clock.now_ns()
        width_ns = _scaled(after_ns - before_ns, 1.0 / self._speed)
        return Record((before_ns + after_ns) // 2, utc_ns, width_ns, self._speed)


def _scaled(ns: int, factor: float) -> int:
    return ns if factor == 1.0 else round(ns * factor)  # whole nanoseconds stay exact


__all__ = ["STEP_NS", "Record", "StreamTime"]

"""When samples were taken that arrived over a line with jitter: the times that drivers put on their chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.clock import NS
from edge_sdk.core.records import Int64

_PULL = 0.1  # share of an arrival's error that is corrected per batch
_DRIFT = _PULL**2 / 4  # and what of it goes into the period (critically damped)
_MAX_DRIFT = 0.2  # sensors that promise 200 Hz have been seen to deliver 180
_LOST_S = 0.25  # an arrival further off than this is no jitter
_SKEW = 200e-6  # two crystals do not differ more


class Smoothed:
    """Times of evenly spaced samples from the arrival of batches.

    Args:
        period_ns: nominal period on the stream clock.
        speed: seconds of the stream clock per second of the host.
    """

    def __init__(self, period_ns: float, speed: float = 1.0) -> None:
        self.error_ns = 0.0  # mean distance between arrivals and the times given out
        self._nominal = period_ns
        self._period = period_ns
        self._limit_ns = max(_LOST_S * NS * speed, 4 * period_ns)
        self._last: float | None = None

    @property
    def period_ns(self) -> float:
        """Estimated sample period, ns."""
        return self._period

    def place(self, lost: NDArray[np.bool_], arrival_ns: int) -> tuple[Int64, bool]:
        """Returns the time of each of n samples, and whether a new run begins with them.

        Args:
            lost: (n,) something was lost before this sample.
            arrival_ns: when the last of them had been taken, as far as one can see from outside.
        """
        n = len(lost)
        if self._last is None:
            return self._restart(n, arrival_ns), False
        error = arrival_ns - (self._last + n * self._period)
        if abs(error) > self._limit_ns:
            return self._restart(n, arrival_ns), True
        steps = np.arange(1, n + 1, dtype=np.float64)
        if lost.any() and error > 0.6 * self._period:
            missing = round(error / self._period)
            steps += np.where(np.arange(n) >= int(np.argmax(lost)), missing, 0)
            error -= missing * self._period
        span = float(steps[-1])
        step = self._period + float(np.clip(_PULL * error / span, -0.45 * self._nominal, 0.45 * self._nominal))
        times: Int64 = np.rint(self._last + steps * step).astype(np.int64)
        limit = _MAX_DRIFT * self._nominal
        self._period = float(
            np.clip(self._period + _DRIFT * error / span, self._nominal - limit, self._nominal + limit)
        )
        self._last = self._last + span * step
        self.error_ns += 0.02 * (abs(error) - self.error_ns)
        return times, False

    def _restart(self, n: int, arrival_ns: int) -> Int64:
        first = arrival_ns - (n - 1) * self._period
        if self._last is not None:
            first = max(first, float(np.rint(self._last)) + 1)  # after the time given out, not the one before rounding
        times: Int64 = np.rint(first + np.arange(n) * self._period).astype(np.int64)
        self._last = float(first + (n - 1) * self._period)
        return times


class DeviceClock:
    """Times from the sensor's own clock, laid on the host's by the fastest arrivals.

    Delays are never negative: the smallest distance between both clocks is the truth plus the shortest delay. It may
    grow by the skew of two crystals, no more.

    Args:
        tick_ns: nanoseconds per tick.
        bits: width of the counter that wraps.
        speed: seconds of the stream clock per second of the host.
    """

    def __init__(self, tick_ns: int, bits: int = 32, speed: float = 1.0) -> None:
        self.error_ns = 0.0  # mean distance between arrivals and the times given out
        self._tick = tick_ns * speed
        self._wrap = 1 << bits
        self._limit_ns = _LOST_S * NS * speed
        self._ticks: int | None = None  # newest, as it came
        self._device_ns = 0.0  # the same on a clock that does not wrap
        self._offset = 0.0
        self._last = -(2**62)

    def place(self, ticks: NDArray[Any], arrival_ns: int) -> tuple[Int64, bool]:
        """Returns the times of the samples with these tick numbers, and whether a new run begins with them."""
        before = np.array([ticks[0] if self._ticks is None else self._ticks], np.int64)
        steps = np.mod(np.diff(np.concatenate((before, ticks.astype(np.int64)))), self._wrap)
        device = self._device_ns + np.cumsum(steps) * self._tick
        advance = float(device[-1]) - self._device_ns
        seen = arrival_ns - float(device[-1])
        fresh = self._ticks is None
        gap = not fresh and abs(seen - self._offset) > self._limit_ns  # the sensor began anew, or was silent for long
        self._offset = seen if fresh or gap else min(self._offset + _SKEW * advance, seen)
        self.error_ns += 0.02 * (abs(seen - self._offset) - self.error_ns)
        self._ticks, self._device_ns = int(ticks[-1]), float(device[-1])
        times = np.rint(device + self._offset).astype(np.int64)
        count = np.arange(len(times))  # strictly rising, also where ticks repeat or the offset fell
        times = np.maximum.accumulate(np.maximum(times, self._last + 1) - count) + count
        self._last = int(times[-1])
        return times, gap


__all__ = ["DeviceClock", "Smoothed"]

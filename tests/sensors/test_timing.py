"""Sample times from arrivals: jitter averaged away, drift followed, losses counted, nothing ever runs back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sensors.timing import DeviceClock, Smoothed

MS = 1_000_000
NONE = np.zeros(1, np.bool_)


def test_jitter_is_averaged_and_drift_followed() -> None:
    rng = np.random.default_rng(1)
    smoothed = Smoothed(5 * MS)
    true = np.arange(4000) * 5 * MS * 1.003
    times = np.concatenate([smoothed.place(NONE, int(t + rng.exponential(1.0 * MS)))[0] for t in true])
    error = times[1000:] - true[1000:]
    assert abs(error.mean() - 1.0 * MS) < 0.2 * MS  # the mean delay cannot be seen from outside
    assert error.std() < 0.5 * MS
    assert smoothed.period_ns == pytest.approx(5 * MS * 1.003, rel=2e-3)
    assert 0.3 * MS < smoothed.error_ns < 2 * MS


def test_a_batch_is_spread() -> None:
    smoothed = Smoothed(10 * MS)
    smoothed.place(NONE, 0)
    times, gap = smoothed.place(np.zeros(4, np.bool_), 40 * MS)
    assert times.tolist() == [10 * MS, 20 * MS, 30 * MS, 40 * MS]
    assert not gap


def test_a_lost_sample_leaves_its_place_empty() -> None:
    smoothed = Smoothed(10 * MS)
    smoothed.place(NONE, 0)
    times, gap = smoothed.place(np.array([False, True]), 40 * MS)
    assert np.rint(times / MS).tolist() == [10, 40]
    assert not gap


def test_a_long_silence_is_a_gap() -> None:
    smoothed = Smoothed(10 * MS)
    smoothed.place(NONE, 0)
    times, gap = smoothed.place(NONE, 1000 * MS)
    assert times.tolist() == [1000 * MS]
    assert gap


@example([(1, False, 0), (1, False, -5542965), (1, False, -235537689)])  # a half, rounded to even twice
@given(st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.integers(-(10**9), 10**9)), max_size=50))
def test_times_rise_whatever_the_arrivals(batches: list[tuple[int, bool, int]]) -> None:
    smoothed, arrival, last = Smoothed(5 * MS), 0, -(2**62)
    for n, lost, step in batches:
        arrival += step
        times, _ = smoothed.place(np.full(n, lost), arrival)
        assert (np.diff(times, prepend=last) > 0).all()
        last = int(times[-1])


def test_a_device_clock_beats_the_jitter_of_the_line() -> None:
    rng = np.random.default_rng(1)
    clock = DeviceClock(100_000)
    true = np.arange(3000) * 10 * MS
    ticks = (np.arange(3000) * 100 + 2**32 - 50_000) % 2**32  # wraps on the way
    found = [clock.place(np.array([t]), int(a + rng.exponential(5 * MS))) for t, a in zip(ticks, true, strict=True)]
    error = np.concatenate([times for times, _ in found])[500:] - true[500:]
    assert error.min() >= 0
    assert error.max() < 1.5 * MS
    assert not any(gap for _, gap in found)


def test_a_device_clock_that_begins_anew_is_a_gap() -> None:
    clock = DeviceClock(MS)
    clock.place(np.array([5000]), 10**10)
    times, gap = clock.place(np.array([0]), 10**10 + 2000 * MS)
    assert gap
    assert times.tolist() == [10**10 + 2000 * MS]


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(-(10**9), 10**9)), max_size=50))
def test_device_times_rise_whatever_comes(batches: list[tuple[int, int]]) -> None:
    clock, arrival, last = DeviceClock(100_000), 0, -(2**62)
    for tick, step in batches:
        arrival += step
        times, _ = clock.place(np.array([tick, tick + 1]), arrival)
        assert (np.diff(times, prepend=last) > 0).all()
        last = int(times[-1])

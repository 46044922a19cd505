"""The figures of the hardware suite against streams whose rate, jitter, holes and knocks are known."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.core.clock import NS
from edge_sdk.core.records import Array
from tests.helpers.bench_measures import Heard, knocks, measure, offset_ms

PERIOD_NS = 10_000_000


def heard(times: Array, levels: Array | None = None, *, age_ns: int = 4_000_000) -> Heard:
    """One chunk per sample, which arrives so long after it was taken."""
    times = times.astype(np.int64)
    rows = np.zeros((len(times), 7), np.int64)
    rows[:, 0], rows[:, 1], rows[:, 3], rows[:, 6] = times, 1, 2_000_000, times + age_ns
    flat = np.zeros((len(times), 1), np.float32)
    return Heard(rows, times, flat if levels is None else levels.astype(np.float32), np.zeros((0, 0, 3), np.uint8))


def test_a_steady_stream() -> None:
    got = measure(heard(np.arange(500) * PERIOD_NS))
    assert got.rate_hz == pytest.approx(100.0)
    assert (got.samples, got.lost, got.loss, got.gaps, got.jitter_ms) == (500, 0, 0.0, 0, 0.0)
    assert got.hole_s == pytest.approx(0.01)
    assert (got.age_ms, got.err_ms) == (4.0, 2.0)


def test_holes_are_losses_and_do_not_slow_the_sensor_down() -> None:
    kept = np.setdiff1d(np.arange(500), [50, 200, 201, 202, 400])
    got = measure(heard(kept * PERIOD_NS))
    assert got.lost == 5
    assert got.loss == pytest.approx(0.01)
    assert got.rate_hz == pytest.approx(100.0)
    assert got.hole_s == pytest.approx(0.04)


def test_jitter_is_what_95_percent_of_the_intervals_keep() -> None:
    rng = np.random.default_rng(0)
    got = measure(heard(np.arange(5000) * PERIOD_NS + rng.uniform(-1e6, 1e6, 5000)))
    assert got.jitter_ms == pytest.approx(1.553, abs=0.05)  # 95 % point of the difference of two uniform draws
    assert got.lost == 0


def test_a_clock_that_is_slow_by_three_percent() -> None:
    assert measure(heard(np.arange(500) * PERIOD_NS * 1.03)).rate_hz == pytest.approx(100 / 1.03)


def test_too_few_samples_are_no_measurement() -> None:
    with pytest.raises(ValueError, match="only 2"):
        measure(heard(np.arange(2) * PERIOD_NS))


@pytest.mark.parametrize("late_ms", [0.0, 35.0, -80.0])
def test_the_offset_of_two_sensors_is_found_by_what_both_notice(late_ms: float) -> None:
    rng, at = np.random.default_rng(1), np.array([2.0, 3.1, 4.4])
    pair = []
    for rate_hz, late_s in ((200.0, 0.0), (1000.0, late_ms / 1e3)):
        t = np.arange(0, 6, 1 / rate_hz)
        rings = sum(np.where(t >= k + late_s, np.exp(-(t - k - late_s) / 0.02), 0.0) for k in at)
        levels = 9.81 + rng.normal(0, 0.05, len(t)) + 5 * rings * np.cos(2 * np.pi * 60 * t)
        pair.append(knocks(heard(t * NS, levels[:, None]), 3))
    assert [len(k) for k in pair] == [3, 3]
    middle, spread = offset_ms(*pair)
    assert middle == pytest.approx(late_ms, abs=15)
    assert spread < 20


def test_sensors_that_noticed_different_things_have_no_offset() -> None:
    with pytest.raises(ValueError, match="one sensor noticed 2 knocks, the other 1"):
        offset_ms(np.array([1, 2], np.int64), np.array([1], np.int64))


def test_silence_holds_no_knock() -> None:
    assert not len(knocks(heard(np.arange(100) * PERIOD_NS), 3))

"""Resampling to the grid: exact where it can be, never across a gap, every sample accounted for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.core.clock import NS
from edge_sdk.core.records import Chunk
from edge_sdk.streams.align import Aligner, Block, Grid
from edge_sdk.streams.counters import Counters, Drop
from tests.helpers.streams import PERIOD_NS, chunk, series

DATA = np.load(Path(__file__).parents[1] / "data" / "utd_mhad_small.npz")
RECORDINGS = [str(name) for name in DATA["recordings"]]


def aligner(rate_hz: float = 50.0, channels: int = 3, hole_ns: int = 256_000_000) -> tuple[Aligner, Counters]:
    counters = Counters()
    return Aligner(rate_hz, channels, max_hole_ns=hole_ns, counters=counters), counters


def joined(blocks: list[Block]) -> np.ndarray:
    return np.concatenate([b.values for b in blocks], axis=1)


@given(
    rate=st.sampled_from([1.0, 30.0, 50.0, 59.94, 1000.0, 16000.0, 44100.0]), t=st.integers(0, 10**16)
)  # fmt: skip
def test_grid_positions_and_times_agree(rate: float, t: int) -> None:
    grid = Grid(rate)
    after, before, near = grid.at_or_after(t), grid.at_or_before(t), grid.nearest(t)
    assert grid.time_ns(after) >= t > grid.time_ns(after - 1)
    assert grid.time_ns(before) <= t < grid.time_ns(before + 1)
    assert abs(grid.time_ns(near) - t) <= grid.period_ns / 2 + 1
    assert grid.times_ns(before, 5).tolist() == [grid.time_ns(before + i) for i in range(5)]


def test_samples_on_the_grid_stay_bit_identical() -> None:
    align, _ = aligner()
    rng = np.random.default_rng(0)
    data = rng.standard_normal((300, 3)).astype(np.float32)
    blocks = []
    for start in range(0, 300, 25):
        blocks += align.push(series("acc", data[start : start + 25], t_ns=start * PERIOD_NS))
    assert np.array_equal(joined(blocks), data.T)
    assert all(b.measured.all() for b in blocks)


@pytest.mark.parametrize("recording", RECORDINGS)
def test_whole_recording_shifted_by_half_a_period_is_interpolated_linearly(recording: str) -> None:
    align, _ = aligner()
    data = DATA[f"acc_{recording}"]
    [block] = align.push(series("acc", data, t_ns=7 * PERIOD_NS + PERIOD_NS // 2))
    middles = (data[1:].astype(np.float64) + data[:-1]) / 2
    assert np.allclose(block.values[:, 1:], middles.T, atol=1e-5)
    assert block.start == 7  # the first grid point lies half a period before the first sample, and holds it
    assert np.array_equal(block.values[:, 0], data[0])


@pytest.mark.parametrize("recording", RECORDINGS)
def test_whole_recording_at_another_rate_keeps_its_shape(recording: str) -> None:
    """Taken as 100 Hz, resampled to 50: every second sample; taken as 25 Hz: every second point is in between."""
    data = DATA[f"gyro_{recording}"]
    align, _ = aligner()
    [block] = align.push(series("gyro", data, rate_hz=100.0))
    assert np.array_equal(block.values, data[::2].T)
    assert block.measured.all()
    align, _ = aligner()
    [block] = align.push(series("gyro", data, rate_hz=25.0))
    assert np.array_equal(block.values[:, ::2], data.T)
    assert block.measured.tolist() == [i % 2 == 0 for i in range(2 * len(data) - 1)]


def test_drift_is_followed() -> None:
    """A sensor clock that is 400 ppm fast: after ten minutes its samples still lie where they were taken."""
    align, _ = aligner()
    rng = np.random.default_rng(1)
    true_period = PERIOD_NS / 1.0004
    error = []
    for number in range(0, 30_000, 10):
        t_ns = round(number * true_period)
        jitter = round(rng.uniform(-1, 1) * 5e6)
        taken = (number + np.arange(10)) * true_period / NS  # the values are their own times, s
        stamped = Chunk(
            "acc", 0, t_ns + jitter, np.repeat(taken[:, None], 3, 1), period_ns=PERIOD_NS, t_err_ns=5_000_000
        )
        for block in align.push(stamped):
            times = align.grid.times_ns(block.start, len(block.totals)) / NS
            error.append(np.abs(block.values[0] - times))
    late = np.concatenate(error)[5000:]
    assert len(np.concatenate(error)) == pytest.approx(30_000 / 1.0004, abs=3)
    assert late.max() < 0.004  # jitter of ±5 ms would show through unsmoothed
    assert late.mean() < 0.0015


def test_nothing_is_interpolated_across_a_gap() -> None:
    align, counters = aligner()
    align.push(chunk("acc", 0, 50))
    [block] = align.push(chunk("acc", 53, 50, gap=True))
    assert block.fresh
    assert block.start == 53
    assert np.array_equal(block.values[0], np.arange(53, 103))
    assert not counters.dropped


def test_a_short_hole_is_bridged_and_not_measured() -> None:
    align, _ = aligner()
    align.push(chunk("acc", 0, 50))
    [block] = align.push(chunk("acc", 53, 10))
    assert not block.fresh
    assert block.start == 50
    assert np.array_equal(block.values[0], np.arange(50, 63))
    assert block.measured.tolist() == [False] * 3 + [True] * 10


def test_a_long_hole_ends_the_run() -> None:
    align, _ = aligner(hole_ns=100_000_000)
    align.push(chunk("acc", 0, 50))
    [block] = align.push(chunk("acc", 60, 10))
    assert block.fresh
    assert block.start == 60


def test_a_long_hole_inside_a_chunk_makes_two_runs() -> None:
    align, _ = aligner(hole_ns=100_000_000)
    times = np.concatenate((np.arange(10), np.arange(30, 40), np.arange(60, 65))) * PERIOD_NS
    blocks = align.push(Chunk("acc", 0, 0, np.zeros((25, 3)), times_ns=times))
    assert [(b.start, len(b.totals), b.fresh) for b in blocks] == [(0, 10, True), (30, 10, True), (60, 5, True)]
    [block] = align.push(chunk("acc", 65, 5))
    assert not block.fresh


def test_rounding_of_times_costs_no_grid_point() -> None:
    align, _ = aligner()
    first = Chunk("acc", 0, 3, np.zeros((128, 3)), period_ns=PERIOD_NS - 1, gap_before=True)
    [block] = align.push(first)
    assert (block.start, len(block.totals)) == (0, 128)


@pytest.mark.parametrize(
    "bad",
    [
        Chunk("acc", 0, 0, np.zeros((5, 2)), period_ns=1),
        Chunk("acc", 0, 0, np.zeros((5, 3))),
        Chunk("acc", 0, 0, np.zeros((5, 3)), times_ns=np.arange(4)),
    ],
    ids=["channels", "no times", "too few times"],
)
def test_malformed_chunks_are_counted(bad: Chunk) -> None:
    align, counters = aligner()
    assert align.push(bad) == []
    assert counters.dropped == {Drop.MALFORMED: 5}


def test_not_a_number_is_left_out_and_bridged() -> None:
    align, counters = aligner()
    data = np.arange(30, dtype=np.float32).repeat(3).reshape(30, 3)
    data[11, 1] = np.nan
    data[17, 0] = np.inf
    [block] = align.push(series("acc", data))
    assert counters.dropped == {Drop.NON_FINITE: 2}
    assert np.array_equal(block.values[0], np.arange(30))
    assert block.measured.sum() == 28


piece = st.tuples(
    st.integers(-5, 30),  # samples left out (or gone back) before it
    st.integers(1, 40),  # samples
    st.booleans(),  # gap_before
    st.integers(0, 3),  # not-a-numbers
)


@settings(max_examples=200, deadline=None)
@given(pieces=st.lists(piece, max_size=12), rate=st.sampled_from([25.0, 50.0, 80.0]), offset=st.integers(0, PERIOD_NS))
def test_every_sample_is_counted_once(pieces: list[tuple[int, int, bool, int]], rate: float, offset: int) -> None:
    """Whatever comes: received = accepted + dropped, and no grid point is given out twice."""
    align, counters = aligner(hole_ns=100_000_000)
    at, received, last_stop, last_total = 0, 0, -1, 0
    for skip, n, gap, bad in pieces:
        at = max(0, at + skip)
        data = np.zeros((n, 3), np.float32)
        data[:bad] = np.nan
        received += n
        for block in align.push(series("acc", data, t_ns=offset + at * round(NS / rate), gap=gap, rate_hz=rate)):
            assert block.start >= last_stop if block.fresh else block.start == last_stop
            last_stop = block.start + len(block.totals)
            assert block.before >= last_total
            totals = [block.before, *block.totals.tolist(), align.total]
            assert totals == sorted(totals)
            last_total = totals[-2]
        at += n
    assert received == align.total + sum(counters.dropped.values())

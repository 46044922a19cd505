"""Replays: on the grid, paced, late where asked, all streams of a device on one time base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core.clock import NS
from edge_sdk.core.errors import ConfigError, DataError, SensorUnavailable
from edge_sdk.core.records import Chunk
from edge_sdk.recording import Writer
from sensors.replay import ReplayDriver
from tests.helpers.streams import chunk

SEGMENT_S = 2.56


class Hand:
    """A stream clock that stands still until it is moved."""

    def __init__(self, now_ns: int = 0) -> None:
        self.now = now_ns

    def __call__(self) -> int:
        return self.now


def record(folder: Path, *, segments: int = 4, streams: tuple[str, ...] = ("acc", "gyro")) -> Path:
    with Writer(folder, start_ns=1000 * NS) as writer:
        for name in streams:
            for i in range(segments):
                c = chunk(name, i * 128, 128, seq=i, gap=True)
                writer.append(Chunk(name, i, c.t_ns + 1000 * NS, c.data, period_ns=c.period_ns, gap_before=True))
    return folder


def opened(
    folder: Path, hand: Hand, *, stream: str = "acc", epoch_ns: int | None = None, **options: object
) -> ReplayDriver:
    driver = ReplayDriver(stream, {"path": str(folder), **options})
    driver.now_ns = hand
    driver.epoch_ns = epoch_ns
    driver.open()
    return driver


def test_segments_lie_on_the_grid_and_come_when_their_last_sample_is_due(tmp_path: Path) -> None:
    hand = Hand(100 * NS)
    driver = opened(record(tmp_path / "r"), hand, align_s=SEGMENT_S, epoch_ns=100 * NS)
    first_ns = 40 * round(SEGMENT_S * NS)  # the next multiple of 2.56 s
    assert driver.read(0.0) is None
    hand.now = first_ns + 127 * 20_000_000 - 1
    assert driver.read(0.0) is None
    for i in range(4):
        hand.now = first_ns + (i * 128 + 127) * 20_000_000
        got = driver.read(0.0)
        assert got is not None
        assert (got.seq, got.t_ns, got.gap_before) == (i, first_ns + i * round(SEGMENT_S * NS), True)
        assert np.array_equal(got.data, chunk("acc", i * 128, 128).data)
    with pytest.raises(EOFError, match="over"):
        driver.read(0.0)
    driver.close()


def test_streams_opened_at_different_times_share_one_time_base(tmp_path: Path) -> None:
    folder, hand, starts = record(tmp_path / "r"), Hand(100 * NS), []
    for stream, opened_at_ns in (("acc", 100 * NS), ("gyro", 103 * NS)):  # a grid point lies between
        hand.now = opened_at_ns
        driver = opened(folder, hand, stream=stream, align_s=SEGMENT_S, epoch_ns=100 * NS, loop=True)
        hand.now = 10_000 * NS
        got = driver.read(0.0)
        assert got is not None
        starts.append(got.t_ns - int(got.data[0, 0]) * 20_000_000)
    assert starts[0] == starts[1]


def test_delay_moves_delivery_and_not_the_times(tmp_path: Path) -> None:
    hand = Hand(0)
    driver = opened(record(tmp_path / "r"), hand, delay_s=60, epoch_ns=0)
    hand.now = 127 * 20_000_000 + 60 * NS - 1
    assert driver.read(0.0) is None
    hand.now += 1
    got = driver.read(0.0)
    assert got is not None
    assert got.t_ns == 0


def test_loop_goes_on_with_continuing_time(tmp_path: Path) -> None:
    hand = Hand(0)
    driver = opened(record(tmp_path / "r", segments=3), hand, loop=True, align_s=SEGMENT_S, epoch_ns=0)
    hand.now = 10**12
    chunks = [c for c in (driver.read(0.0) for _ in range(10)) if c is not None]
    assert [c.t_ns for c in chunks] == [i * round(SEGMENT_S * NS) for i in range(10)]
    assert [int(c.data[0, 0]) // 128 for c in chunks] == [i % 3 for i in range(10)]
    assert [c.seq for c in chunks] == list(range(10))


def test_a_loop_opened_late_joins_where_the_recording_is_by_then(tmp_path: Path) -> None:
    segment_ns = round(SEGMENT_S * NS)
    hand = Hand(7 * segment_ns + NS)
    driver = opened(record(tmp_path / "r"), hand, loop=True, align_s=SEGMENT_S, epoch_ns=0)
    hand.now += 10 * segment_ns
    got = driver.read(0.0)
    assert got is not None
    assert (got.t_ns, int(got.data[0, 0])) == (7 * segment_ns, 3 * 128)


def test_opened_again_it_delivers_nothing_twice(tmp_path: Path) -> None:
    hand = Hand(10**12)
    driver = opened(record(tmp_path / "r"), hand, epoch_ns=0)
    assert [driver.read(0.0).seq for _ in range(2)] == [0, 1]  # type: ignore[union-attr]
    driver.close()
    driver.open()
    again = driver.read(0.0)
    assert again is not None
    assert (again.seq, again.t_ns) == (0, 2 * round(SEGMENT_S * NS))


def test_jitter_of_the_times_loses_no_chunk(tmp_path: Path) -> None:
    """A chunk may begin before the one before it is over by the nominal period: sensors' clocks are like that."""
    with Writer(tmp_path / "r", start_ns=0) as writer:
        for i in range(4):
            data = np.full((2, 1), i, np.float32)
            writer.append(Chunk("acc", i, i * 19_000_000, data, period_ns=10_000_000, t_err_ns=2_000_000))
    hand = Hand(0)
    driver = opened(tmp_path / "r", hand, epoch_ns=0)
    hand.now = NS
    got = [driver.read(0.0) for _ in range(4)]
    assert [c.data[0, 0] for c in got if c is not None] == [0, 1, 2, 3]
    assert [c.gap_before for c in got if c is not None] == [False] * 4  # as it was recorded


def test_a_sped_up_clock_shortens_the_wait(tmp_path: Path) -> None:
    hand = Hand(0)
    driver = opened(record(tmp_path / "r"), hand, epoch_ns=0)
    driver.speed = 1e6  # 2.54 s of the stream clock are 2.54 µs: read() waits so long and delivers
    assert driver.read(0.2) is not None


def test_start_and_other_stream_name(tmp_path: Path) -> None:
    hand = Hand(0)
    with pytest.raises(DataError, match="no stream 'left'; there are: acc, gyro"):
        opened(record(tmp_path / "r"), hand, stream="left")
    named = ReplayDriver("left", {"path": str(tmp_path / "r"), "stream": "gyro", "start_s": 2 * SEGMENT_S})
    named.now_ns, named.epoch_ns = hand, 0
    named.open()
    hand.now = 10**12
    got = named.read(0.0)
    assert got is not None
    assert (got.stream, got.t_ns, int(got.data[0, 0])) == ("left", 0, 256)


def test_an_empty_loop_ends(tmp_path: Path) -> None:
    folder = record(tmp_path / "r")
    with Writer(tmp_path / "two", start_ns=0) as writer:
        writer.append(chunk("acc", 0, 10))
        writer.append(chunk("gyro", 0, 1000))
    driver = opened(tmp_path / "two", Hand(0), loop=True, epoch_ns=0, start_s=5.0)
    with pytest.raises(EOFError):
        driver.read(0.0)
    assert folder.is_dir()


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sensors\.acc\.options:delay: unknown key"):
        ReplayDriver("acc", {"path": "x", "delay": 3})
    with pytest.raises(ConfigError, match="path"):
        ReplayDriver("acc", {})
    with pytest.raises(SensorUnavailable, match="no such folder"):
        ReplayDriver("acc", {"path": str(tmp_path / "nowhere")}).open()
    with pytest.raises(DataError, match="no recording"):
        ReplayDriver("acc", {"path": str(tmp_path)}).open()

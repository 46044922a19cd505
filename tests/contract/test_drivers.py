"""What every registered sensor driver has to do. A driver that needs hardware is tried in tests/hardware instead."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.core import registry
from edge_sdk.core.clock import NS
from edge_sdk.core.errors import EdgeError
from edge_sdk.core.interfaces import Driver
from edge_sdk.core.records import Chunk
from edge_sdk.recording import Writer, chunk_end_ns
from tests.helpers.streams import chunk

NAMES = registry.names("sensors")
WITHOUT_HARDWARE = {"replay", "synthetic"}
SPEED = 1000.0


def options(name: str, folder: Path) -> dict[str, Any]:
    """Returns options under which a driver works here; drivers of hardware skip."""
    if name not in WITHOUT_HARDWARE:
        pytest.skip(f"{name} needs hardware: pytest tests/hardware --board FILE.toml")
    if name != "replay":
        return {}
    with Writer(folder / "recording", start_ns=0) as writer:
        for i in range(20):
            writer.append(chunk("acc", i * 10, 10, seq=i))
    return {"path": str(folder / "recording"), "loop": True}


@pytest.fixture(params=NAMES)
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    cls = registry.load("sensors", request.param)
    made: Driver = cls("acc", options(request.param, tmp_path))
    start = made.now_ns()
    host = made.now_ns
    made.now_ns = lambda: start + int((host() - start) * SPEED)
    made.speed = SPEED
    return made


def read_some(driver: Driver, n: int) -> list[Chunk]:
    chunks: list[Chunk] = []
    for _ in range(1000):
        got = driver.read(0.2)
        if got is not None:
            chunks.append(got)
        if len(chunks) == n:
            return chunks
    raise AssertionError(f"only {len(chunks)} chunks in 1000 reads")


def test_chunks_have_all_their_fields(driver: Driver) -> None:
    driver.open()
    for got in read_some(driver, 5):
        assert got.stream == "acc"
        assert isinstance(got.data, np.ndarray)
        assert got.data.ndim >= 2
        assert len(got.data) >= 1
        assert got.data.dtype.kind in "fiu"
        assert np.isfinite(got.data).all()
        assert got.t_err_ns >= 0
        assert got.period_ns > 0 or got.times_ns is not None or len(got.data) == 1
        if got.times_ns is not None:
            assert got.times_ns.shape == (len(got.data),)
            assert (np.diff(got.times_ns) > 0).all()
    driver.close()


def test_sequence_counts_up_from_zero_and_times_never_run_back(driver: Driver) -> None:
    driver.open()
    chunks = read_some(driver, 30)
    assert [c.seq for c in chunks] == list(range(30))
    starts = [c.t_ns for c in chunks]
    assert starts == sorted(set(starts))
    ends = [chunk_end_ns(c) - c.period_ns for c in chunks]
    assert all(end < start for end, start in zip(ends, starts[1:], strict=False))
    driver.close()


def test_times_are_on_the_stream_clock_and_not_in_its_future(driver: Driver) -> None:
    driver.open()
    opened_ns = driver.now_ns()
    for got in read_some(driver, 10):
        assert got.t_ns >= opened_ns - 60 * NS
        assert got.t_ns <= driver.now_ns() + got.t_err_ns + NS  # a second: reading a clock thrice as fast takes time
    driver.close()


def test_read_returns_within_its_time(driver: Driver) -> None:
    driver.open()
    driver.speed = 1.0
    before_ns = driver.now_ns()
    for _ in range(20):
        driver.read(0.001)
    assert driver.now_ns() - before_ns < SPEED * 5 * NS
    driver.close()


def test_sequence_begins_anew_when_opened_again(driver: Driver) -> None:
    for _ in range(2):
        driver.open()
        assert [c.seq for c in read_some(driver, 3)] == [0, 1, 2]
        driver.close()


def test_closing_twice_and_unopened(driver: Driver) -> None:
    driver.close()
    driver.open()
    driver.close()
    driver.close()


@pytest.mark.parametrize("name", NAMES)
def test_detect_is_static_and_quiet(name: str) -> None:
    cls = registry.load("sensors", name)
    assert isinstance(inspect.getattr_static(cls, "detect"), staticmethod)
    assert isinstance(cls.detect(), list)


@pytest.mark.parametrize("name", sorted(WITHOUT_HARDWARE))
def test_unknown_options_are_refused_by_name(name: str, tmp_path: Path) -> None:
    cls = registry.load("sensors", name)
    with pytest.raises(EdgeError, match="no_such_option"):
        cls("acc", {**options(name, tmp_path), "no_such_option": 1})

"""What every registered sensor driver has to do. A driver that needs hardware is tried in tests/hardware instead."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.core import registry
from edge_sdk.core.clock import NS
from edge_sdk.core.errors import EdgeError, PluginError
from edge_sdk.core.interfaces import Driver
from edge_sdk.core.records import Chunk
from edge_sdk.recording import Writer, chunk_end_ns
from tests.helpers.detection import pasted
from tests.helpers.iio_tree import iio_tree
from tests.helpers.streams import chunk
from tests.helpers.virtual_camera import MjpegCamera
from tests.helpers.virtual_imu import Emulator
from tests.helpers.virtual_microphone import MARK

NAMES = registry.names("sensors")
SPEED = 1000.0


def _replay(folder: Path, stack: ExitStack) -> dict[str, Any]:
    with Writer(folder / "recording", start_ns=0) as writer:
        for i in range(20):
            writer.append(chunk("acc", i * 10, 10, seq=i))
    return {"path": str(folder / "recording"), "loop": True}


def _imu_serial(folder: Path, stack: ExitStack) -> dict[str, Any]:
    return {"port": stack.enter_context(Emulator("witmotion", rate=200.0)).port, "rate_hz": 200.0}


def _imu_i2c(folder: Path, stack: ExitStack) -> dict[str, Any]:
    if "I2C_SHIM_DIR" not in os.environ:
        pytest.skip("runs under the preloaded bus of tests/sensors/test_imu_i2c.py")
    return {"rate_hz": 200.0}


def _imu_iio(folder: Path, stack: ExitStack) -> dict[str, Any]:
    return {"device": "virtual", "rate_hz": 200.0, "buffered": False, "root": str(iio_tree(folder / "tree"))}


def _camera(folder: Path, stack: ExitStack) -> dict[str, Any]:
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra `camera`)")
    return {"source": stack.enter_context(MjpegCamera()).url}


def _microphone(folder: Path, stack: ExitStack) -> dict[str, Any]:
    if MARK not in os.environ:
        pytest.skip("runs under the PulseAudio of tests/sensors/test_microphone.py")
    return {"device": "pulse"}


def _text(folder: Path, stack: ExitStack) -> dict[str, Any]:
    (folder / "lines.txt").write_text("\n".join(f"line {i}" for i in range(100)) + "\n", encoding="utf-8")
    return {"path": str(folder / "lines.txt")}


# How to make each driver work without its hardware.
OPTIONS: dict[str, Callable[[Path, ExitStack], dict[str, Any]]] = {
    "camera": _camera,
    "imu_i2c": _imu_i2c,
    "imu_iio": _imu_iio,
    "imu_serial": _imu_serial,
    "microphone": _microphone,
    "replay": _replay,
    "synthetic": lambda folder, stack: {},
    "text": _text,
}


def options(name: str, folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Returns options under which a driver works here; drivers of hardware skip."""
    if name not in OPTIONS:
        pytest.skip(f"{name} needs hardware: pytest tests/hardware --board FILE.toml")
    return OPTIONS[name](folder, stack)


@pytest.fixture(params=NAMES)
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Driver]:
    cls = registry.load("sensors", request.param)
    with ExitStack() as stack:
        made: Driver = cls("acc", options(request.param, tmp_path, stack))
        start = made.now_ns()
        host = made.now_ns
        made.now_ns = lambda: start + int((host() - start) * SPEED)
        made.speed = SPEED
        yield made
        made.close()


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


def test_named_columns_cover_the_data_once(driver: Driver) -> None:
    """So that modalities may share the device."""
    driver.open()
    (got,) = read_some(driver, 1)
    if driver.columns:
        numbers = [n for part in driver.columns.values() for n in range(part.start, part.stop)]
        assert numbers == list(range(got.data.shape[1]))
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
    opened_ns = driver.now_ns()  # some deliver from within open()
    driver.open()
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
    try:
        found = cls.detect()
    except PluginError as error:  # what is connected only its library could tell
        pytest.skip(str(error))
    for one in found:
        assert one.driver == name
        assert set(pasted(one))
    assert [one.id for one in cls.detect()] == [one.id for one in found]


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_unknown_options_are_refused_by_name(name: str, tmp_path: Path) -> None:
    cls = registry.load("sensors", name)
    with ExitStack() as stack, pytest.raises(EdgeError, match="no_such_option"):
        cls("acc", {**options(name, tmp_path, stack), "no_such_option": 1})

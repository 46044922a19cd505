"""The camera driver on a real OpenCV and a real network stream; V4L2 devices are tried in tests/hardware."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.core.clock import NS, monotonic_ns
from edge_sdk.core.errors import ConfigError, SensorTimeout, SensorUnavailable
from edge_sdk.core.records import Chunk
from sensors import capture, serial_port
from sensors.camera import CameraDriver, devices
from tests.helpers.detection import pasted
from tests.helpers.virtual_camera import HEIGHT, WIDTH, MjpegCamera, number

pytest.importorskip("cv2", reason="OpenCV is not installed (extra `camera`)")

FPS = 30.0
PERIOD_NS = NS / FPS


def opened(camera: MjpegCamera, **options: Any) -> CameraDriver:
    driver = CameraDriver("camera", {"source": camera.url, "size": 0, "fps": camera.fps, **options})
    driver.open()
    return driver


def frame(driver: CameraDriver) -> Chunk:
    for _ in range(50):
        chunk = driver.read(0.2)
        if chunk is not None:
            return chunk
    raise AssertionError("no frame")


def until_it_fails(driver: CameraDriver) -> None:
    for _ in range(1000):
        driver.read(0.05)


def test_frames_come_in_order_and_once() -> None:
    with MjpegCamera(FPS) as camera:
        driver = opened(camera)
        chunks = [frame(driver) for _ in range(20)]
        driver.close()
    assert [c.seq for c in chunks] == list(range(20))
    numbers = [number(c.data[0]) for c in chunks]
    assert numbers == sorted(set(numbers))
    assert all(c.data.shape == (1, 3, HEIGHT, WIDTH) and c.data.dtype == np.uint8 for c in chunks)
    assert (np.diff([c.t_ns for c in chunks]) > 0).all()
    assert chunks[0].data[0, 0, -5:].mean() > 150  # red first
    assert chunks[0].data[0, 2, -5:].mean() < 60


def test_a_slow_consumer_sees_no_frame_older_than_two_periods() -> None:
    """Three times too slow: OpenCV alone would be 3 s behind at the end."""
    ages, read_times, pause = [], [], threading.Event()
    with MjpegCamera(FPS) as camera:
        driver = opened(camera)
        frame(driver)
        for _ in range(40):
            pause.wait(3 / FPS)
            chunk = frame(driver)
            read_times.append(monotonic_ns())
            ages.append(read_times[-1] - camera.sent_ns[number(chunk.data[0])])
            assert chunk.t_ns <= read_times[-1]
        superseded = driver.superseded
        driver.close()
    # The median and nine in ten: on a shared machine every thread stands still for a while now and then.
    assert np.median(ages) < 2 * PERIOD_NS
    assert np.quantile(ages, 0.9) < 2 * PERIOD_NS
    assert ages[-1] < 1.0 * NS  # and it does not grow
    assert superseded > 40


def test_a_frame_that_grew_old_is_not_returned() -> None:
    with MjpegCamera(FPS, frames=40) as camera:
        driver = opened(camera)
        frame(driver)
        while driver._reader is not None and driver._reader.silent_ns() < 5 * PERIOD_NS:
            threading.Event().wait(0.05)
        assert driver.read(0.0) is None
        assert driver.superseded > 0
        driver.close()


def test_frames_are_cropped_and_resized() -> None:
    with MjpegCamera(FPS) as camera:
        driver = opened(camera, size=64)
        data = frame(driver).data
        driver.close()
    assert data.shape == (1, 3, 64, 64)
    assert data[0, 0, 40:].mean() > 150


def test_uniform_frames_are_stacked() -> None:
    with MjpegCamera(FPS) as camera:
        driver = opened(camera, stack=3, clip_s=0.5)
        for _ in range(25):
            stacked = frame(driver).data[0]
        driver.close()
    assert stacked.shape == (3, 3 * HEIGHT, WIDTH)
    first, middle, last = (number(part) for part in np.split(stacked, 3, axis=1))
    assert first < middle < last
    assert last - first == pytest.approx(10, abs=3)  # two thirds of 15 frames


def test_a_camera_that_goes_quiet_times_out() -> None:
    with MjpegCamera(FPS, frames=40) as camera:
        driver = opened(camera, silent_s=0.5)
        with pytest.raises(SensorTimeout, match=r"no frame for 0\.5 s; check the cable"):
            until_it_fails(driver)
        driver.close()


def test_a_camera_that_never_answers() -> None:
    with MjpegCamera(mute=True) as camera, pytest.raises(SensorUnavailable, match="no video within 1 s"):
        opened(camera, open_s=1.0)


def test_a_camera_that_goes_away_and_comes_back() -> None:
    with MjpegCamera(FPS) as camera:
        driver = opened(camera, silent_s=1.0)
        frame(driver)
        camera.ended.set()
        with pytest.raises((SensorUnavailable, SensorTimeout)):
            until_it_fails(driver)
        driver.close()
        camera.ended.clear()
        driver.open()
        assert frame(driver).seq == 0
        driver.close()
        driver.close()


def test_times_follow_a_faster_clock() -> None:
    with MjpegCamera(FPS) as camera:
        driver = CameraDriver("camera", {"source": camera.url})
        start = monotonic_ns()
        driver.speed, driver.now_ns = 100.0, lambda: (monotonic_ns() - start) * 100
        driver.open()
        chunks = [frame(driver) for _ in range(10)]
        driver.close()
    assert all(c.t_ns <= driver.now_ns() for c in chunks)
    assert np.median(np.diff([c.t_ns for c in chunks])) == pytest.approx(100 * PERIOD_NS, rel=0.5)


def test_what_is_no_camera_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source, said in ((tmp_path / "video9", "no such camera .*connected"), (tmp_path, "a file, not a camera")):
        driver = CameraDriver("camera", {"source": str(source)})
        with pytest.raises(SensorUnavailable, match=said):
            driver.open()
    driver = CameraDriver("camera", {"source": "/dev/null"})
    with pytest.raises(SensorUnavailable, match="cannot be opened as a camera; in use by"):
        driver.open()
    monkeypatch.setattr(capture.os, "access", lambda path, mode: False)
    group = serial_port.group_of("/dev/null")
    with pytest.raises(SensorUnavailable, match=f"belongs to group {group}: sudo usermod -aG {group} "):
        driver.open()
    with pytest.raises(ConfigError, match="source"):
        CameraDriver("camera", {})


def test_cameras_are_listed_by_lasting_names(tmp_path: Path) -> None:
    for node, name, index in (
        ("video0", "HD Webcam", "0"),
        ("video1", "HD Webcam", "1"),
        ("video2", "vi-output, imx219 9-0010", "0"),
    ):
        folder = tmp_path / "sys/class/video4linux" / node
        folder.mkdir(parents=True)
        (folder / "name").write_text(name + "\n")
        (folder / "index").write_text(index + "\n")
    (tmp_path / "dev/v4l/by-id").mkdir(parents=True)
    (tmp_path / "dev/v4l/by-id/usb-HD_Webcam-video-index0").symlink_to("../../video0")
    found = devices(tmp_path)
    assert [(f.id, f.description) for f in found] == [
        ("/dev/v4l/by-id/usb-HD_Webcam-video-index0", "HD Webcam"),
        ("csi://0", "vi-output, imx219 9-0010"),
    ]
    assert [pasted(f) for f in found] == [{"camera": ("", ())}] * 2
    assert 'source = "/dev/v4l/by-id/usb-HD_Webcam-video-index0"' in found[0].toml
    assert devices(tmp_path / "nothing") == []

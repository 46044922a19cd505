"""Cameras through GStreamer: real pipelines, with a test source in the place of a CSI sensor."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.core.clock import NS
from edge_sdk.core.errors import PluginError, SensorTimeout, SensorUnavailable
from sensors import gstreamer
from sensors.camera import CameraDriver
from sensors.capture import Options
from sensors.gstreamer import PTS_ERR_NS, elements
from tests.helpers import camera_frames
from tests.helpers.camera_frames import watch
from tests.helpers.virtual_camera import HEIGHT, WIDTH

pytest.importorskip("cv2", reason="OpenCV is not installed (extra `camera`)")

PERIOD_NS = NS / 30
SIZE: dict[str, Any] = {"width": WIDTH, "height": HEIGHT}
# What stands in `gstreamer.CSI` with sensor and hardware converter swapped for software that runs anywhere.
STAND_IN = (
    "videotestsrc is-live=true ! video/x-raw,width={width},height={height},format=NV12,framerate={fps} ! "
    "videoflip method={flip} ! videoconvert ! video/x-raw,format=BGRx"
)
pipelines = pytest.mark.skipif(bool(camera_frames.no_pipeline()), reason=camera_frames.no_pipeline() or "-")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return "gst://" + camera_frames.source(camera_frames.frames(tmp_path_factory.mktemp("camera") / "frames"))


@pytest.fixture(scope="module", params=["pipe", "appsink"])
def env(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has only gst-launch, or PyGObject as well."""
    if reason := camera_frames.no_pipeline():
        pytest.skip(reason)
    path = str(camera_frames.ROOT)
    if request.param == "appsink":
        folder = tmp_path_factory.mktemp("bindings") / "site"
        if reason := camera_frames.no_bindings(folder):
            pytest.skip(reason)
        path = f"{folder}:{path}"
    return {**os.environ, "PYTHONPATH": path, "WAY": request.param}


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process takes the pipe, whatever it could import."""
    monkeypatch.setattr(gstreamer, "bindings", lambda: None)


def test_frames_come_in_order_once_and_with_their_times(env: dict[str, str], source: str) -> None:
    got = watch(env, 45, source=source, **SIZE)
    steps = np.diff(got["times"]) / np.maximum(1, np.diff(got["numbers"]))
    assert got["shape"] == [1, 3, HEIGHT, WIDTH]
    assert (np.diff(got["numbers"]) > 0).all()
    assert np.median(steps) == pytest.approx(PERIOD_NS, rel=0.05)
    stamped = np.mean(np.array(got["errors"]) == PTS_ERR_NS)
    assert stamped > 0.9 if env["WAY"] == "appsink" else stamped == 0
    assert np.median(got["ages"]) >= 0
    times = np.array(got["times"])
    newer = [int(((times > t) & (times < at)).sum()) for t, at in zip(times, got["read_at"], strict=True)]
    assert np.median(newer) == 0  # frames that had been taken when this one was read: a queue would show here


def test_a_slow_consumer_sees_no_frame_older_than_two_periods(env: dict[str, str], source: str) -> None:
    """Frame n was due at n periods: the time that a frame was read at tells its age, up to the same for all."""
    got = watch(env, 25, pause_s=0.1, source=source, **SIZE)
    lateness = np.array(got["read_at"]) - np.array(got["numbers"]) * PERIOD_NS
    ages = lateness - lateness.min()
    assert np.median(ages) < 2 * PERIOD_NS  # a queue of old frames would make it dozens
    assert np.median(np.diff(got["numbers"])) >= 2


def test_a_csi_sensor_is_read_as_nvidia_says() -> None:
    text = elements(Options(source="csi://1", width=1280, height=720, fps=29.97, flip=2))
    assert text.startswith(
        "nvarguscamerasrc sensor-id=1 ! "
        "video/x-raw(memory:NVMM),width=1280,height=720,format=NV12,framerate=2997/100 ! "
        "nvvidconv flip-method=2 ! video/x-raw,format=BGRx ! "
    )
    assert text.endswith("format=BGR,width=1280,height=720 ! queue leaky=downstream max-size-buffers=1")


@pipelines
def test_a_csi_pipeline_runs_with_a_test_source_and_odd_sizes(pipe: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gstreamer, "CSI", STAND_IN)
    driver = CameraDriver("camera", {"source": "csi://0", "width": 322, "height": 240, "size": 0})
    driver.open()
    chunk = driver.read(1.0)
    driver.close()
    assert chunk is not None
    assert chunk.data.shape == (1, 3, 240, 322)
    bars = chunk.data[0, :, 40, 23 :: 322 // 7]  # colour bars, shifted where padding is not taken out
    assert (bars[:, 0] > 180).all()  # white
    assert bars[2, 1] < 60  # yellow has no blue


@pipelines
def test_a_board_without_argus_says_where_it_comes_from(pipe: None) -> None:
    driver = CameraDriver("camera", {"source": "csi://0"})
    with pytest.raises(SensorUnavailable, match=r'csi://0: .*no element "nvarguscamerasrc"; .* come with JetPack'):
        driver.open()


def fake_launch(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a gst-launch-1.0 that does this first on the path."""
    program = folder / "gst-launch-1.0"
    program.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


ARGUS_SAYS = """
sys.stderr.write('Error generated. gstnvarguscamerasrc.cpp, execute:751 Failed to create CaptureSession\\n')
sys.stderr.write('ERROR: from element /GstPipeline:pipeline0/GstNvArgusCameraSrc:src: TIMEOUT\\n')
"""


@pytest.mark.parametrize(("body", "said"), [(ARGUS_SAYS, "ERROR: from element .*TIMEOUT"), ("time.sleep(60)", "0.5 s")])
def test_argus_that_does_not_come_up_names_its_daemon(
    pipe: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    fake_launch(tmp_path, body, monkeypatch)
    monkeypatch.setattr(gstreamer, "EOS_S", 0.5)
    driver = CameraDriver("camera", {"source": "csi://0", "open_s": 0.5})
    with pytest.raises(SensorUnavailable, match=rf"csi://0: .*{said}.*sudo systemctl restart nvargus-daemon"):
        driver.open()


def test_a_pipe_that_is_full_is_drained_until_the_pipeline_has_ended(
    pipe: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gst-launch stuck in a full pipe ends only when somebody reads; what it writes at last is its end-of-stream."""
    body = f"""
fd = int(sys.argv[-1].partition('=')[2])
ended = []
signal.signal(signal.SIGINT, lambda *_: ended.append(1))
while not ended:
    os.write(fd, bytes(12288))
for _ in range(400):
    os.write(fd, bytes(12288))
open({str(tmp_path / "eos")!r}, 'w').write('sent')
"""
    fake_launch(tmp_path, body, monkeypatch)
    camera = gstreamer.PipeCapture(Options(source="csi://0", width=64, height=64))
    assert camera.read() is not None
    camera.release()
    camera.release()
    assert (tmp_path / "eos").read_text() == "sent"


def until_it_fails(driver: CameraDriver) -> None:
    for _ in range(200):
        driver.read(0.05)


@pipelines
def test_a_pipeline_that_ends_is_said_and_opened_again(pipe: None) -> None:
    driver = CameraDriver("camera", {"source": "gst://videotestsrc is-live=true num-buffers=15", "size": 0, **SIZE})
    for _ in range(2):
        driver.open()
        with pytest.raises(SensorUnavailable, match="the stream ended"):
            until_it_fails(driver)
        driver.close()


@pipelines
def test_a_pipeline_that_falls_silent(pipe: None) -> None:
    quiet = "gst://videotestsrc is-live=true ! video/x-raw,framerate=1/3"
    driver = CameraDriver("camera", {"source": quiet, "silent_s": 0.3, **SIZE})
    driver.open()
    with pytest.raises(SensorTimeout, match=r"no frame for 0\.3 s"):
        until_it_fails(driver)
    driver.close()


def test_a_full_pipe_still_ends_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := camera_frames.no_pipeline():
        pytest.skip(reason)
    monkeypatch.setattr(gstreamer, "EOS_S", 60.0)
    capture = gstreamer.PipeCapture(Options(source="gst://videotestsrc is-live=true", **SIZE))
    threading.Event().wait(0.3)  # the pipe fills
    capture.release()
    assert capture._process.returncode == 0  # neither killed nor given up


def test_without_gstreamer_the_line_to_install_it(pipe: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PluginError, match=r"sensors\.camera: .* needs GStreamer: apt install gstreamer1\.0-tools"):
        CameraDriver("camera", {"source": "csi://0"})


def test_frames_over_rtsp_and_a_slow_consumer(tmp_path: Path) -> None:
    if reason := camera_frames.no_rtsp():
        pytest.skip(reason)
    pattern = camera_frames.frames(tmp_path / "frames")
    with camera_frames.RtspCamera(pattern) as camera:
        got = watch({**os.environ}, 25, pause_s=0.1, source=camera.url)
    assert got["shape"] == [1, 3, HEIGHT, WIDTH]
    assert (np.diff(got["numbers"]) > 0).all()
    assert np.median(np.diff(got["times"]) / np.diff(got["numbers"])) == pytest.approx(PERIOD_NS, rel=0.1)
    lateness = np.array(got["read_at"]) - np.array(got["numbers"]) * PERIOD_NS
    ages = lateness - np.median(lateness)  # what FFmpeg queued at first would show here, seconds of it
    assert np.median(np.abs(ages)) < 2 * PERIOD_NS

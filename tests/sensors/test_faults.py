"""What goes wrong with a sensor stays with it: one message, a counted state, and windows without that modality.

The drivers are real, behind virtual devices.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.core.clock import WallClock
from edge_sdk.core.config import SensorConfig
from edge_sdk.core.records import Window
from edge_sdk.streams import pump
from edge_sdk.streams.pipeline import Streams
from edge_sdk.streams.pump import Backoff
from sensors import gstreamer, imu_serial, serial_port
from tests.helpers import camera_frames
from tests.helpers.streams import inertial_spec
from tests.helpers.virtual_imu import Emulator
from tests.helpers.virtual_microphone import MARK

serial = pytest.importorskip("serial", reason="pyserial is not installed: pip install 'edge-sdk[serial]'")

GROUP = "it belongs to group"


@pytest.fixture(autouse=True)
def _patient_tests_would_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("GARBAGE_S", 0.3), ("LISTEN_S", 0.2), ("PROBE_S", 0.02)):
        monkeypatch.setattr(imu_serial, name, seconds)
    monkeypatch.setattr(pump, "Backoff", lambda: Backoff(0.05, 0.1))


def imu(port: str) -> SensorConfig:
    return SensorConfig(driver="imu_serial", columns=("acc",), options={"port": port, "rate_hz": 200.0})


def unplugged(stack: ExitStack, folder: Path, patch: pytest.MonkeyPatch) -> SensorConfig:
    return imu(stack.enter_context(Emulator(seconds=0.8, cut=1)).port)


def garbage(stack: ExitStack, folder: Path, patch: pytest.MonkeyPatch) -> SensorConfig:
    return imu(stack.enter_context(Emulator(garbage_from=0.8)).port)


def busy(stack: ExitStack, folder: Path, patch: pytest.MonkeyPatch) -> SensorConfig:
    port = stack.enter_context(Emulator()).port
    stack.callback(serial_port.Port(port, 115200).close)
    return imu(port)


def denied(stack: ExitStack, folder: Path, patch: pytest.MonkeyPatch) -> SensorConfig:
    """As pyserial says it; root, who runs tests in containers, is denied nothing."""

    def refuse(*args: object, **options: object) -> None:
        raise serial.SerialException(errno.EACCES, "could not open port: Permission denied")

    patch.setattr(serial, "Serial", refuse)
    (folder / "ttyUSB0").touch()
    return imu(str(folder / "ttyUSB0"))


def dark_camera(stack: ExitStack, folder: Path, patch: pytest.MonkeyPatch) -> SensorConfig:
    """It starts, and no frame ever comes."""
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra `camera`)")
    if reason := camera_frames.no_pipeline():
        pytest.skip(reason)
    patch.setattr(gstreamer, "bindings", lambda: None)
    source = "gst://videotestsrc is-live=true ! identity drop-probability=1"
    return SensorConfig(driver="camera", options={"source": source, "open_s": 0.5, "width": 64, "height": 48})


def wrong_rate(stack: ExitStack, folder: Path, patch: pytest.MonkeyPatch) -> SensorConfig:
    if MARK not in os.environ:
        pytest.skip("runs under the PulseAudio of tests/sensors/test_microphone.py")
    return SensorConfig(driver="microphone", options={"device": "pulse", "native_hz": 500_000})


FAULTS: dict[str, tuple[Callable[[ExitStack, Path, pytest.MonkeyPatch], SensorConfig], str]] = {
    "unplugged in the middle of a frame": (unplugged, "went away"),
    "garbage": (garbage, "bytes but no sample"),
    "busy": (busy, "busy, held by "),
    "permission denied": (denied, GROUP),
    "microphone at a rate that it cannot do": (wrong_rate, "cannot do 500000 Hz; its own rate is"),
    "camera that never delivers": (dark_camera, "no frame within 0.5 s"),
}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize("name", FAULTS)
def test_the_others_go_on(
    name: str, stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make, said = FAULTS[name]
    broken = make(stack, tmp_path, monkeypatch)
    sound = SensorConfig(driver="synthetic", options={"rate_hz": 50.0, "chunk": 4})

    async def main() -> tuple[list[Window], dict[str, Any]]:
        spec = inertial_spec("broken", "sound", length_s=0.32, hop_s=0.32)
        streams = Streams(spec, {"broken": broken, "sound": sound}, WallClock())
        after = []
        await streams.start()
        async for item in streams.items():
            status: dict[str, Any] = streams.status()["sensors"]
            if isinstance(item, Window) and status["broken"]["reconnects"] >= 1:
                after.append(item)
            if len(after) == 4:
                break
        await streams.aclose()
        return after, status

    with caplog.at_level(logging.WARNING):
        windows, status = asyncio.run(main())
    assert all(list(window.data) == ["sound"] for window in windows[1:])  # the first may hold what came before
    assert said in caplog.text
    assert len([m for m in caplog.messages if m.startswith("sensor broken: ")]) == 1
    assert status["broken"]["error"]
    assert status["broken"]["state"] in ("failed", "opening")
    assert (status["sound"]["state"], status["sound"]["reconnects"]) == ("streaming", 0)

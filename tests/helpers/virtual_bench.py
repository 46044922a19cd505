"""A bench without hardware: seven sensors under the libraries that real ones use, which unplug and knock by themselves.

imu     WitMotion on a pseudo-terminal, a process of its own        pyserial
board   MPU-6050 on a preloaded I2C bus                             smbus2
usb     V4L2 camera, preloaded                                      OpenCV
web     MJPEG over HTTP                                             OpenCV (FFmpeg)
rtsp    GStreamer's RTSP server, a process of its own               OpenCV (FFmpeg)
csi     videotestsrc in the place of nvarguscamerasrc               GStreamer
audio   monitor of a PulseAudio null sink                           PortAudio
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

import numpy as np

from tests.helpers import camera_frames, i2c_bus, virtual_microphone, virtual_v4l2
from tests.helpers.benches import ROOT, Bench
from tests.helpers.virtual_camera import HEIGHT, WIDTH, MjpegCamera
from tests.helpers.virtual_imu import Emulator
from tests.helpers.virtual_microphone import LATENCY_MS, RATE, Sound

FPS = 15.0
FLASH_S = 0.15  # two frames
LEAD_S = 0.5  # a player's first moments are not heard
HARDWARE = """
[hardware]
seconds = 4.0
settle_s = 1.0
soak_s = 3.0
soak_pieces = 3
knocks = 2
"""
# The machine may be busy: these say that the path works, not how good the machine is.
LOOSE = """
[hardware.sensors.{name}]
rate_share = {rate}
jitter_share = {jitter}
loss = {loss}
offset_ms = {offset}
"""


@dataclass(frozen=True, slots=True)
class Part:
    """One virtual device."""

    driver: str
    options: str  # TOML
    unplug: Callable[[], object]
    plug: Callable[[], object]
    knock: Callable[[], object] | None = None  # None: it notices nothing
    env: dict[str, str] = field(default_factory=dict)
    loose: dict[str, float] = field(default_factory=dict)  # limits


class VirtualBench(Bench):
    """All virtual devices that this machine can have.

    Args:
        folder: empty.
        only: these; (): all.
    """

    def __init__(self, folder: Path, only: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self.absent = {}
        self._parts: dict[str, Part] = {}
        try:
            for name in only or MAKERS:
                made = MAKERS[name](folder, self._stack)
                if isinstance(made, Part):
                    self._parts[name] = made
                else:
                    self.absent[name] = made
            file = folder / "bench.toml"
            file.write_text(self._toml(), encoding="utf-8")
            super().__init__("virtual devices", file, self._environment(), self.absent)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Takes all devices away; for those who never listened."""
        self._stack.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self.close()

    def unplug(self, name: str) -> None:
        if name == "csi":  # its pipeline is killed, as a driver that crashes would
            import psutil

            for child in psutil.Process(self.listener.pid).children():
                if child.name().startswith("gst-launch"):
                    child.kill()
        self._parts[name].unplug()

    def plug(self, name: str) -> None:
        self._parts[name].plug()

    def knock(self) -> None:
        def after_the_lead(knock: Callable[[], object]) -> None:
            threading.Event().wait(LEAD_S)
            knock()

        hands = [
            threading.Thread(target=knock if name == "audio" else partial(after_the_lead, knock))
            for name, part in self._parts.items()
            if (knock := part.knock) is not None
        ]
        for hand in hands:
            hand.start()
        for hand in hands:
            hand.join()

    @property
    def notices(self) -> list[str]:
        return [name for name, part in self._parts.items() if part.knock]

    def sections(self) -> str:
        """Returns the `[sensors.…]` of a configuration, for a process under `env`."""
        text = ""
        for name, part in self._parts.items():
            drop = 'drop = "latest"\n' if part.driver == "camera" else ""
            text += f'[sensors.{name}]\ndriver = "{part.driver}"\n{drop}options = {{ {part.options} }}\n'
        return text

    def _toml(self) -> str:
        text = f'[device]\nid = "bench"\nfederation = "bench"\nstate_dir = "{self._folder}"\n' + self.sections()
        text += HARDWARE
        for name, part in self._parts.items():
            text += LOOSE.format(name=name, **{"rate": 0.05, "jitter": 1.0, "loss": 0.1, "offset": 150, **part.loose})
        return text

    def _environment(self) -> dict[str, str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        preloaded = [part.env["LD_PRELOAD"] for part in self._parts.values() if "LD_PRELOAD" in part.env]
        for part in self._parts.values():
            env |= {key: value for key, value in part.env.items() if os.environ.get(key) != value}
        if preloaded:
            env["LD_PRELOAD"] = ":".join(preloaded)
        return env


def _imu(folder: Path, stack: ExitStack) -> Part | str:
    if find_spec("serial") is None:
        return "pyserial is not installed: pip install 'edge-sdk[serial]'"
    emulator = stack.enter_context(Emulator("witmotion", rate=100.0))
    options = f'port = "{emulator.port}", rate_hz = 100.0, baud = 115200'
    return Part("imu_serial", options, emulator.unplug, emulator.plug, emulator.knock)


def _board(folder: Path, stack: ExitStack) -> Part | str:
    if find_spec("smbus2") is None:
        return "smbus2 is not installed: pip install 'edge-sdk[i2c]'"
    if reason := i2c_bus.missing():
        return reason
    bus = folder / "i2c"
    bus.mkdir()
    chip, away = i2c_bus.mpu6050(bus), bus / "unplugged"

    def knock() -> None:
        with chip.open("r+b", buffering=0) as registers:
            still = os.pread(registers.fileno(), 6, 0x3B)
            os.pwrite(registers.fileno(), struct.pack(">3h", 0, -8192, 32767), 0x3B)
            threading.Event().wait(0.05)
            os.pwrite(registers.fileno(), still, 0x3B)

    env = {"I2C_SHIM_DIR": str(bus), "LD_PRELOAD": str(i2c_bus.build(folder))}
    return Part(
        "imu_i2c", "rate_hz = 100.0", lambda: chip.rename(away), lambda: away.rename(chip), knock, env, {"loss": 0.3}
    )


def _usb(folder: Path, stack: ExitStack) -> Part | str:
    if reason := _no_cv2() or virtual_v4l2.missing():
        return reason
    env = virtual_v4l2.environment(folder)
    frames, away, flash = folder / virtual_v4l2.FRAMES, folder / "unplugged.bin", folder / virtual_v4l2.FLASH
    white = virtual_v4l2.flash()

    def knock() -> None:
        flash.write_bytes(white)
        threading.Event().wait(FLASH_S)
        flash.unlink()

    options = f'source = "{virtual_v4l2.DEVICE}", width = {WIDTH}, height = {HEIGHT}, fps = {FPS}, size = 0'
    return Part("camera", options, lambda: frames.rename(away), lambda: away.rename(frames), knock, env, {"loss": 0.2})


class _Web:
    """An MJPEG camera that can be switched off and on at the same address."""

    def __init__(self) -> None:
        self.camera = MjpegCamera(FPS)
        self.camera.__enter__()

    def off(self) -> None:
        self.camera.__exit__(None, None, None)

    def on(self) -> None:
        self.camera = MjpegCamera(FPS, port=self.camera.port)
        self.camera.__enter__()

    def knock(self) -> None:
        self.camera.flashing.set()
        threading.Event().wait(FLASH_S)
        self.camera.flashing.clear()


def _web(folder: Path, stack: ExitStack) -> Part | str:
    if reason := _no_cv2():
        return reason
    web = _Web()
    stack.callback(web.off)
    options = f'source = "{web.camera.url}", fps = {FPS}, size = 0, silent_s = 1.5, open_s = 5.0'
    return Part("camera", options, web.off, web.on, web.knock, {}, {"loss": 0.2})


def _rtsp(folder: Path, stack: ExitStack) -> Part | str:
    if reason := _no_cv2() or camera_frames.no_rtsp():
        return reason
    pattern = camera_frames.frames(folder / "rtsp", count=150)
    camera = stack.enter_context(camera_frames.RtspCamera(pattern, round(FPS)))
    white = virtual_v4l2.white_jpeg()
    options = f'source = "{camera.url}", fps = {FPS}, size = 0, silent_s = 1.5, open_s = 5.0'
    # What reads the stream holds back a frame until the next one begins.
    loose = {"loss": 0.2, "offset": 250.0}
    return Part("camera", options, camera.off, camera.on, lambda: camera.flash(FLASH_S, white), {}, loose)


def _csi(folder: Path, stack: ExitStack) -> Part | str:
    if reason := _no_cv2() or camera_frames.no_pipeline():
        return reason
    if find_spec("psutil") is None:
        return "psutil is not installed, which finds the pipeline to kill"
    source = f"gst://videotestsrc is-live=true ! video/x-raw,framerate={FPS:.0f}/1"
    options = f'source = "{source}", width = {WIDTH}, height = {HEIGHT}, fps = {FPS}, size = 0'

    def nothing() -> None:
        return None

    return Part("camera", options, nothing, nothing, loose={"loss": 0.2})


def _audio(folder: Path, stack: ExitStack) -> Part | str:
    if reason := virtual_microphone.missing():
        return reason
    home = folder / "sound"
    home.mkdir()
    sound = stack.enter_context(Sound(home))
    click = np.zeros(round(RATE * (LEAD_S + 0.25)), np.int16)
    begin = round(RATE * LEAD_S)
    click[begin : begin + 160] = np.rint(20_000 * np.sin(2 * np.pi * 1000 / RATE * np.arange(160)))
    options = f'device = "pulse", block_s = {LATENCY_MS / 1e3}, silent_s = 1.5'
    # The click waits in the player and in the sink before the microphone hears it.
    loose = {"loss": 0.05, "offset": 600.0}
    return Part("microphone", options, sound.unplug, sound.plug, lambda: sound.play(click), dict(sound.env), loose)


def _no_cv2() -> str:
    return "" if find_spec("cv2") else "OpenCV is not installed: pip install 'edge-sdk[camera]'"


MAKERS: dict[str, Callable[[Path, ExitStack], Part | str]] = {
    "imu": _imu, "board": _board, "usb": _usb, "web": _web, "rtsp": _rtsp, "csi": _csi, "audio": _audio,
}  # fmt: skip

__all__ = ["MAKERS", "VirtualBench"]

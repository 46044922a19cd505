"""What a camera driver reads frames from, and the one through OpenCV: V4L2 devices, RTSP and HTTP (MJPEG) streams."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from edge_sdk.core.clock import NS, monotonic_ns
from edge_sdk.core.errors import PluginError, SensorUnavailable
from edge_sdk.core.records import Array
from edge_sdk.core.spec import Model
from sensors.serial_port import group_of, holders

DRIVER_ERR_NS = 1_000_000  # a time stamp that the kernel gave
PLAUSIBLE_NS = 2 * NS  # a time stamp further from now is on another clock
GSTREAMER = ("csi://", "gst://")


class Options(Model):
    """Keys of `[sensors.<modality>.options]`."""

    source: str = Field(min_length=1)  # /dev/v4l/by-id/… (or /dev/videoN), rtsp://…, http://…, csi://N, gst://ELEMENTS
    width: int = Field(default=640, ge=1)  # asked of the device, pixels
    height: int = Field(default=480, ge=1)
    fps: float = Field(default=30.0, gt=0)  # asked of the device
    fourcc: str = Field(default="MJPG", pattern="^[A-Z0-9 ]{4}$")  # raw pixels do not fit through USB 2 at 30 fps
    flip: int = Field(default=0, ge=0, le=7)  # csi: flip-method of nvvidconv; 2: upside down
    size: int = Field(default=224, ge=0)  # sides cropped, resized to size × size; 0: frames as they come
    stack: int = Field(default=1, ge=1)  # uniform frames of the last clip_s seconds, one above the other
    clip_s: float = Field(default=2.56, gt=0)
    silent_s: float = Field(default=5.0, gt=0)  # open, but no frame for so long: opened again
    open_s: float = Field(default=10.0, gt=0)  # network streams and csi: longest time to the first answer

    @property
    def is_url(self) -> bool:
        """True for a network stream."""
        return "://" in self.source and not self.is_gstreamer

    @property
    def is_gstreamer(self) -> bool:
        """True for a GStreamer pipeline."""
        return self.source.startswith(GSTREAMER)


@dataclass(frozen=True, slots=True)
class Image:
    """A frame as the camera gave it."""

    data: Array  # uint8 (height, width, 3) BGR, or (height, width)
    t_ns: int | None  # when it was captured, host monotonic, ns; None: when it came
    err_ns: int = 0  # how far t_ns may be off


class Capture(ABC):
    """An open camera; one thread reads and releases it."""

    close_s: ClassVar[float] = 1.0  # how long releasing may take

    @abstractmethod
    def read(self) -> Image | None:
        """Returns the next frame; None: none came for a while. SensorUnavailable: none will."""

    @abstractmethod
    def release(self) -> None:
        """Lets go of the camera."""


class OpenCvCapture(Capture):
    """A camera or stream that OpenCV opens.

    Args:
        cv2: the library.
        options: of the driver.
        stream: modality name, for messages.
    """

    def __init__(self, cv2: Any, options: Options, stream: str) -> None:
        self._cv2 = cv2
        self._source = options.source
        self._stamped = not options.is_url
        o = options
        if o.is_url:
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(o.open_s * 1e3)]
            # Silence is for the driver to notice; this only brings back a thread that hangs.
            limits += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(o.silent_s * 1e3) + 500]
            self._capture = cv2.VideoCapture(o.source, cv2.CAP_FFMPEG, limits)
            trouble = f"no video within {o.open_s:g} s; check the address, user and password, and that the camera is on"
        else:
            _check_device(Path(o.source), stream)
            self._capture = cv2.VideoCapture(o.source, cv2.CAP_V4L2)
            users = holders(o.source) or f"nobody who can be seen from here; try fuser -v {o.source}"
            trouble = f"cannot be opened as a camera; in use by {users}"
        if not self._capture.isOpened():
            self._capture.release()
            raise SensorUnavailable(f"{o.source}: {trouble}")
        if o.is_url:
            self._catch_up(o)
        else:
            self._configure(o)

    def read(self) -> Image | None:
        ok, image = self._capture.read()
        if not ok:
            raise SensorUnavailable(f"{self._source}: stopped delivering; unplugged, or switched off?")
        if self._stamped:
            driver_ns = round(self._capture.get(self._cv2.CAP_PROP_POS_MSEC) * 1e6)
            if 0 <= monotonic_ns() - driver_ns < PLAUSIBLE_NS:
                return Image(image, driver_ns, DRIVER_ERR_NS)
        return Image(image, None)

    def release(self) -> None:
        self._capture.release()

    def _catch_up(self, o: Options) -> None:
        """Leaves out what FFmpeg queued while it found out what the stream is: seconds of it, with RTSP."""
        begin_ns = before_ns = monotonic_ns()
        while self._capture.grab():
            now_ns = monotonic_ns()
            if now_ns - before_ns > NS / o.fps / 4 or now_ns - begin_ns > o.open_s * NS:
                return  # this one had to be waited for
            before_ns = now_ns

    def _configure(self, o: Options) -> None:
        """The pixel format goes first: the sizes and rates that a camera takes depend on it."""
        cv2 = self._cv2
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*o.fourcc))
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, o.width)
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, o.height)
        self._capture.set(cv2.CAP_PROP_FPS, o.fps)
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 2)


def _check_device(path: Path, stream: str) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        here = ", ".join(sorted(str(p) for p in Path("/dev").glob("video[0-9]*"))) or "none"
        raise SensorUnavailable(
            f"{path}: no such camera (sensors.{stream}.options.source); connected: {here}"
        ) from error
    if not stat.S_ISCHR(mode):
        raise SensorUnavailable(f"{path}: a file, not a camera; recordings are played by the driver 'replay'")
    if not os.access(path, os.R_OK | os.W_OK):
        group = group_of(str(path))
        raise SensorUnavailable(
            f"{path}: permission denied; it belongs to group {group}: sudo usermod -aG {group} $USER, then log in again"
        )


def import_cv2(stream: str) -> Any:
    """Returns OpenCV; PluginError says what to install."""
    try:
        import cv2
    except ImportError as error:
        raise PluginError(
            f"sensors.{stream}: a camera needs OpenCV: pip install 'edge-sdk[camera]', or apt install python3-opencv"
        ) from error
    return cv2


__all__ = ["DRIVER_ERR_NS", "PLAUSIBLE_NS", "Capture", "Image", "OpenCvCapture", "Options", "import_cv2"]

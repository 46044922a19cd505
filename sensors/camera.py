"""Cameras: V4L2 devices, RTSP and HTTP (MJPEG) streams through OpenCV, CSI sensors through GStreamer.

Libraries and the kernel queue frames that nobody reads: a consumer three times too slow is seconds behind after a
minute. So a thread of the driver reads all the time and keeps the newest frame only; what `read` returns is at most two
frame periods old, or it is not returned. The thread owns the capture: it is the one that releases it, even when a read
that hangs comes back long after close().

A V4L2 frame's time is the driver's (CLOCK_MONOTONIC), a CSI frame's is its time stamp in the pipeline where PyGObject
can be imported; a network frame's is its arrival.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.core.clock import NS, monotonic_ns
from edge_sdk.core.config import parse
from edge_sdk.core.errors import SensorTimeout
from edge_sdk.core.interfaces import Driver, Found
from edge_sdk.core.records import Array, Chunk
from edge_sdk.features import side_crop, uniform_indices
from sensors import gstreamer
from sensors.capture import Capture, Image, OpenCvCapture, Options, import_cv2

_SMOOTHING = 0.1  # weight of the newest interval in the measured frame period


@dataclass(frozen=True, slots=True)
class _Frame:
    data: Array  # (channels, height, width), RGB
    t_ns: int  # host monotonic, ns
    err_ns: int


class CameraDriver(Driver):
    """Delivers the newest frame, each at most once: uint8 (1, 3, height, width), RGB."""

    def __init__(self, stream: str, options: Mapping[str, Any]) -> None:
        super().__init__(stream, options)
        self._options = parse(options, Options, f"sensors.{stream}.options")
        self._cv2 = import_cv2(stream)
        if self._options.is_gstreamer:
            gstreamer.check(stream)
        self._reader: _Reader | None = None
        self._seq = 0
        self._last_ns = -(2**62)

    def open(self) -> None:
        self.close()
        self._seq = 0
        self._reader = _Reader(self._cv2, self._capture(), self._options)
        self._reader.thread.start()

    def read(self, timeout_s: float) -> Chunk | None:
        assert self._reader is not None
        frame = self._reader.take(timeout_s)
        if frame is None:
            if self._reader.silent_ns() > self._options.silent_s * NS:
                raise SensorTimeout(
                    f"{self._options.source}: open, but no frame for {self._options.silent_s:g} s; "
                    "check the cable, the power of the hub, and that no other program streams from it"
                )
            return None
        age_ns = round((monotonic_ns() - frame.t_ns) * self.speed)
        self._last_ns = max(self.now_ns() - age_ns, self._last_ns + 1)
        chunk = Chunk(
            stream=self.stream,
            seq=self._seq,
            t_ns=self._last_ns,
            data=frame.data[None],
            t_err_ns=round(frame.err_ns * self.speed),
        )
        self._seq += 1
        return chunk

    def close(self) -> None:
        if self._reader is not None:
            self._reader.stop()
            self._reader = None

    @staticmethod
    def detect() -> list[Found]:
        return devices(Path("/"))

    @property
    def superseded(self) -> int:
        """Frames since open() that a newer one replaced before they were read."""
        return 0 if self._reader is None else self._reader.superseded

    def _capture(self) -> Capture:
        if self._options.is_gstreamer:
            return gstreamer.opened(self._options)
        return OpenCvCapture(self._cv2, self._options, self.stream)


class _Reader:
    """The thread that keeps the newest frame.

    Args:
        cv2: the library.
        capture: open; the thread releases it.
        options: of the driver.
    """

    def __init__(self, cv2: Any, capture: Capture, options: Options) -> None:
        self.superseded = 0
        self.thread = threading.Thread(target=self._run, name=f"edge-camera-{options.source}", daemon=True)
        self._cv2 = cv2
        self._capture = capture
        self._options = options
        self._changed = threading.Condition()
        self._stopping = False
        self._newest: _Frame | None = None
        self._clip: deque[tuple[int, Array]] = deque()  # (time ns, frame) of the last clip_s
        self._failure: Exception | None = None
        self._seen = False  # a frame came before
        self._heard_ns = monotonic_ns()
        self._period_ns = NS / options.fps  # measured, once there are two frames

    def take(self, timeout_s: float) -> _Frame | None:
        """Returns the newest frame that was not taken yet; waits for one. Raises what ended the thread."""
        with self._changed:
            self._forget_stale()
            self._changed.wait_for(lambda: self._newest is not None or self._failure is not None, timeout_s)
            frame, self._newest = self._newest, None
            if frame is None and self._failure is not None:
                raise self._failure
            return frame

    def silent_ns(self) -> int:
        """Time since the last frame, or since the camera was opened."""
        return monotonic_ns() - self._heard_ns

    def stop(self) -> None:
        """Ends the thread; one that hangs inside the library is left behind and releases the camera later."""
        with self._changed:
            self._stopping = True
        self.thread.join(self._capture.close_s)

    def _forget_stale(self) -> None:
        if self._newest is not None and monotonic_ns() - self._newest.t_ns > 2 * self._period_ns:
            self._newest = None
            self.superseded += 1

    def _run(self) -> None:
        try:
            while not self._stopping:
                image = self._capture.read()
                if image is not None:
                    self._put(image)
        except Exception as error:  # noqa: BLE001 - handed to read(), which raises it where the pump catches it
            with self._changed:
                self._failure = error
                self._changed.notify()
        finally:
            self._capture.release()

    def _put(self, image: Image) -> None:
        now_ns = monotonic_ns()
        t_ns, err_ns = (now_ns, round(self._period_ns)) if image.t_ns is None else (image.t_ns, image.err_ns)
        data = self._stacked(t_ns, self._prepared(image.data))
        with self._changed:
            if self._seen:
                self._period_ns += _SMOOTHING * (now_ns - self._heard_ns - self._period_ns)
            self._heard_ns = now_ns
            self.superseded += self._newest is not None
            self._newest = _Frame(data, t_ns, err_ns)
            self._changed.notify()
        self._seen = True

    def _prepared(self, image: Array) -> Array:
        """(height, width, 3) BGR → (3, h, w) RGB."""
        n = self._options.size
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        if n:
            image = self._cv2.resize(side_crop(image), (n, n), interpolation=self._cv2.INTER_AREA)
        return np.ascontiguousarray(np.moveaxis(image[..., ::-1], 2, 0))

    def _stacked(self, t_ns: int, frame: Array) -> Array:
        if self._options.stack == 1:
            return frame
        self._clip.append((t_ns, frame))
        while t_ns - self._clip[0][0] > self._options.clip_s * NS:
            self._clip.popleft()
        chosen = uniform_indices(len(self._clip), self._options.stack)
        return np.concatenate([self._clip[i][1] for i in chosen], axis=1)  # (3, stack · h, w)


def devices(root: Path) -> list[Found]:
    """Returns the cameras under a file system root; a camera's further nodes (metadata) are left out.

    CSI sensors of a Jetson show up as nodes called vi-output, which give raw pixels: they are listed for Argus.
    """
    found, sensor = [], 0
    names = {link.resolve().name: link for link in sorted((root / "dev/v4l/by-id").glob("*"))}
    for node in sorted((root / "sys/class/video4linux").glob("video*")):
        if _text(node / "index") not in ("0", ""):
            continue
        name = _text(node / "name") or node.name
        link = names.get(node.name)
        path = "/" + (link or root / "dev" / node.name).relative_to(root).as_posix()
        if name.startswith("vi-output"):
            path, sensor = f"csi://{sensor}", sensor + 1
        toml = f'[sensors.camera]\ndriver = "camera"\ndrop = "latest"\noptions = {{ source = "{path}" }}'
        found.append(Found("camera", path, name, toml))
    return found


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""


__all__ = ["CameraDriver", "devices"]

"""Cameras through GStreamer: CSI sensors behind NVIDIA's Argus, and whatever else has a source element.

pip's OpenCV has no GStreamer. So frames come from an appsink where PyGObject can be imported (its time stamps are
capture times on the monotonic clock), and else from `gst-launch-1.0` through a pipe, stamped on arrival.

Argus does not survive a program that leaves without end-of-stream: its daemon hangs until it is restarted. So releasing
sends EOS and waits for it; and a pipe is drained meanwhile, because GStreamer stuck in a full pipe hears no signal.
"""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
from abc import abstractmethod
from contextlib import suppress
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from edge_sdk.core.clock import NS, monotonic_ns
from edge_sdk.core.errors import PluginError, SensorUnavailable
from edge_sdk.core.records import Array
from sensors.capture import PLAUSIBLE_NS, Capture, Image, Options

CSI = (
    "nvarguscamerasrc sensor-id={sensor} ! "
    "video/x-raw(memory:NVMM),width={width},height={height},format=NV12,framerate={fps} ! "
    "nvvidconv flip-method={flip} ! video/x-raw,format=BGRx"
)
TAIL = (
    "videoconvert ! videoscale ! video/x-raw,format=BGR,width={width},height={height} ! "
    "queue leaky=downstream max-size-buffers=1"
)
APT = "apt install gstreamer1.0-tools gstreamer1.0-plugins-good"
ARGUS = (
    "Argus does not come up; it hangs after a program that was killed: sudo systemctl restart nvargus-daemon. Check "
    "the ribbon cable and the number too; a container needs /tmp/argus_socket"
)
EOS_S = 3.0  # how long a pipeline may take to end
PTS_ERR_NS = 2_000_000  # a buffer's time stamp, ns
_WAIT_S = 0.2  # longest wait inside read()
_PIPE_BYTES = 1 << 20


def elements(options: Options) -> str:
    """Returns the pipeline up to its sink, as gst-launch takes it."""
    o, source = options, options.source.partition("://")[2]
    values = {"width": o.width, "height": o.height, "flip": o.flip, "fps": _fraction(o.fps), "sensor": source or "0"}
    head = CSI.format(**values) if o.source.startswith("csi://") else source
    return f"{head} ! {TAIL.format(**values)}"


def _fraction(fps: float) -> str:
    rate = Fraction(fps).limit_denominator(1001)
    return f"{rate.numerator}/{rate.denominator}"


def bindings() -> Any:
    """Returns PyGObject's Gst, initialised, or None where it cannot be imported."""
    try:
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        from gi.repository import Gst, GstApp  # noqa: F401  GstApp gives appsink its methods
    except (ImportError, ValueError):
        return None
    Gst.init(None)
    return Gst


def check(stream: str) -> None:
    """Raises PluginError where there is neither way to GStreamer."""
    if bindings() is None and shutil.which("gst-launch-1.0") is None:
        raise PluginError(f"sensors.{stream}: a csi or gst camera needs GStreamer: {APT}")


def opened(options: Options) -> Capture:
    """Returns the camera, once its first frame is there; SensorUnavailable says what to do."""
    gst = bindings()
    return PipeCapture(options) if gst is None else AppsinkCapture(gst, options)


def explain(options: Options, said: str) -> str:
    """Returns why a pipeline gave no frame, and what to do.

    Args:
        options: of the driver.
        said: what GStreamer said; "": nothing.
    """
    csi = options.source.startswith("csi://")
    last = next((line.strip() for line in said.splitlines() if "ERROR" in line or "no element" in line), "")
    if csi and "no element" in said:
        return (
            f"{options.source}: {last}; nvarguscamerasrc and nvvidconv come with JetPack: "
            "apt install nvidia-l4t-gstreamer. A USB camera is /dev/videoN"
        )
    if csi:
        return f"{options.source}: {last or f'no frame within {options.open_s:g} s'}; {ARGUS}"
    return f"{options.source}: {last or f'no frame within {options.open_s:g} s'}; try it: gst-launch-1.0 …, or {APT}"


class _FromPipeline(Capture):
    """What both ways share: the first frame is waited for, and rows may be padded."""

    close_s: ClassVar[float] = EOS_S + 1.0

    def __init__(self, options: Options) -> None:
        self._options = options
        self._shape = (options.height, options.width)
        self._stride = -(-3 * options.width // 4) * 4  # GStreamer pads rows to four bytes
        self._first: Image | None = None

    def _await_first(self) -> None:
        """Waits for the first frame; SensorUnavailable, after letting go, if none comes in time."""
        end_ns = monotonic_ns() + round(self._options.open_s * NS)
        try:
            while self._first is None:
                if monotonic_ns() > end_ns:
                    raise SensorUnavailable(explain(self._options, self._said()))
                self._first = self._pull()
        except SensorUnavailable:
            self.release()
            raise

    def read(self) -> Image | None:
        first, self._first = self._first, None
        return first or self._pull()

    @abstractmethod
    def _pull(self) -> Image | None:
        """Returns a frame; None: none in _WAIT_S. SensorUnavailable: the pipeline ended."""

    @abstractmethod
    def _said(self) -> str:
        """Returns the pipeline's complaints so far."""

    def _pixels(self, data: Any) -> Array:
        height, width = self._shape
        rows = np.frombuffer(data, np.uint8, height * self._stride).reshape(height, self._stride)
        return rows[:, : 3 * width].reshape(height, width, 3)


class AppsinkCapture(_FromPipeline):
    """Frames by PyGObject, with their capture times.

    Args:
        gst: PyGObject's Gst.
        options: of the driver.
    """

    def __init__(self, gst: Any, options: Options) -> None:
        super().__init__(options)
        self._gst = gst
        text = f"{elements(options)} ! appsink name=sink drop=true max-buffers=1 sync=false wait-on-eos=false"
        try:
            self._pipeline = gst.parse_launch(text)
        except Exception as error:
            raise SensorUnavailable(explain(options, f"ERROR: {error}")) from error
        self._sink = self._pipeline.get_by_name("sink")
        self._pipeline.set_state(gst.State.PLAYING)
        self._await_first()

    def release(self) -> None:
        gst = self._gst
        self._pipeline.send_event(gst.Event.new_eos())
        ends = gst.MessageType.EOS | gst.MessageType.ERROR
        self._pipeline.get_bus().timed_pop_filtered(round(EOS_S * NS), ends)
        self._pipeline.set_state(gst.State.NULL)

    def _pull(self) -> Image | None:
        sample = self._sink.try_pull_sample(round(_WAIT_S * NS))
        if sample is None:
            said = self._said()
            if said or self._sink.is_eos():
                raise SensorUnavailable(explain(self._options, said or "ERROR: the stream ended"))
            return None
        buffer = sample.get_buffer()
        ok, info = buffer.map(self._gst.MapFlags.READ)
        if not ok:
            return None
        try:
            image = self._pixels(info.data).copy()
        finally:
            buffer.unmap(info)
        taken_ns = buffer.pts + self._pipeline.get_base_time()
        if buffer.pts != self._gst.CLOCK_TIME_NONE and 0 <= monotonic_ns() - taken_ns < PLAUSIBLE_NS:
            return Image(image, taken_ns, PTS_ERR_NS)
        return Image(image, None)

    def _said(self) -> str:
        message = self._pipeline.get_bus().pop_filtered(self._gst.MessageType.ERROR)
        return "" if message is None else "ERROR: " + " ".join(str(part) for part in message.parse_error())


class PipeCapture(_FromPipeline):
    """Frames by `gst-launch-1.0` through a pipe, without their times.

    Args:
        options: of the driver.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._frame = bytearray(self._stride * options.height)
        self._filled = 0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the pipeline
        self._pipe, end = os.pipe()
        with suppress(OSError):  # more than the user may have
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        command = ["gst-launch-1.0", "-q", "-e", *shlex.split(f"{elements(options)} ! fdsink fd={end}")]
        try:
            # A session of its own: Ctrl-C at the terminal is for us, who then end it in order.
            self._process = subprocess.Popen(
                command, pass_fds=(end,), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            os.close(self._pipe)
            self._log.close()
            raise SensorUnavailable(f"{options.source}: gst-launch-1.0 does not start: {error}; {APT}") from error
        finally:
            os.close(end)
        self._await_first()

    def release(self) -> None:
        if self._log.closed:
            return
        self._process.send_signal(signal.SIGINT)  # gst-launch -e makes EOS of it
        end_ns = monotonic_ns() + round(EOS_S * NS)
        with suppress(SensorUnavailable):
            while monotonic_ns() < end_ns:
                self._pull()
        self._process.kill()
        self._process.wait()
        os.close(self._pipe)
        self._log.close()

    def _pull(self) -> Image | None:
        ready, _, _ = select.select([self._pipe], [], [], _WAIT_S)
        if not ready:
            return None
        size = os.readv(self._pipe, [memoryview(self._frame)[self._filled :]])
        if not size:
            self._process.wait()
            raise SensorUnavailable(explain(self._options, self._said() or "ERROR: the stream ended"))
        self._filled = (self._filled + size) % len(self._frame)
        return None if self._filled else Image(self._pixels(bytes(self._frame)), None)

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read(1 << 16).decode(errors="replace")


__all__ = ["AppsinkCapture", "PipeCapture", "bindings", "check", "elements", "explain", "opened"]

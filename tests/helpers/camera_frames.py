"""Numbered frames through the camera driver in a process of its own, and the sources that need one.

python -m tests.helpers.camera_frames FRAMES PAUSE_S OPTIONS             reads through the driver, prints JSON
python -m tests.helpers.camera_frames WINDOWS PAUSE_S OPTIONS DEADLINE_S  the same of windows of one frame period
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tests.helpers.virtual_camera import HEIGHT, WIDTH, number, numbered

ROOT = Path(__file__).parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
PACKAGES = Path("/usr/lib/python3/dist-packages")
GST_APT = "apt install gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
GI_APT = "apt install python3-gi gir1.2-gst-plugins-base-1.0 gir1.2-gst-rtsp-server-1.0"


def frames(folder: Path, count: int = 600) -> Path:
    """Writes numbered JPEGs; returns the pattern of their names for multifilesrc."""
    import cv2

    folder.mkdir()
    for n in range(count):
        cv2.imwrite(str(folder / f"{n:05d}.jpg"), numbered(n))
    return folder / "%05d.jpg"


def source(pattern: Path, fps: int = 30) -> str:
    """Returns GStreamer elements that play the frames in real time, as a sensor would."""
    caps = f"image/jpeg,width={WIDTH},height={HEIGHT},framerate={fps}/1"
    return f'multifilesrc location={pattern} caps="{caps}" ! jpegdec ! identity sync=true'


def no_pipeline() -> str:
    """Returns why there is no gst-launch here; "": there is."""
    if shutil.which("gst-launch-1.0") is None or shutil.which("gst-inspect-1.0") is None:
        return f"GStreamer is not installed: {GST_APT}"
    have = all(
        subprocess.run(["gst-inspect-1.0", "--exists", element], check=False).returncode == 0
        for element in ("multifilesrc", "jpegdec", "videotestsrc")
    )
    return "" if have else f"GStreamer's plug-ins are not installed: {GST_APT}"


def no_bindings(folder: Path) -> str:
    """Returns why a Python of this version cannot import the system's PyGObject; "": it can, from `folder`."""
    if not (PACKAGES / "gi").is_dir():
        return f"PyGObject is not installed: {GI_APT}"
    folder.mkdir()
    (folder / "gi").symlink_to(PACKAGES / "gi")  # alone: the system's numpy must not come along
    code = "from sensors import gstreamer; raise SystemExit(gstreamer.bindings() is None)"
    env = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    if subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, check=False).returncode:
        return f"the system's PyGObject is for another Python than {sys.version_info[0]}.{sys.version_info[1]}"
    return ""


def watch_windows(env: dict[str, str], count: int, pause_s: float, deadline_s: float, **options: Any) -> dict[str, Any]:
    """Takes so many windows in a process of its own, blocking its loop after each; returns what `windows` says."""
    command = [sys.executable, "-m", "tests.helpers.camera_frames", str(count), str(pause_s), json.dumps(options)]
    done = subprocess.run(
        [*command, str(deadline_s)], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


async def windows(count: int, pause_s: float, deadline_s: float, options: dict[str, Any]) -> dict[str, Any]:
    """Returns how old the frame in each window was when a consumer got it, ns, and how many windows it passed by.

    The whole way: driver, pump, windows as long as a frame period, and a consumer that blocks the loop, as a prediction
    does.
    """
    from edge_sdk.core.clock import NS, WallClock
    from edge_sdk.core.config import SensorConfig
    from edge_sdk.core.records import Window
    from edge_sdk.core.spec import FederationSpec, ModalitySpec, WindowSpec
    from edge_sdk.streams.pipeline import Streams

    o = {"size": 0, "fps": 30.0, "width": WIDTH, "height": HEIGHT, **options}
    grid = WindowSpec(length_s=1 / o["fps"], hop_s=1 / o["fps"], deadline_s=deadline_s)
    modality = ModalitySpec(name="camera", shape=(3, HEIGHT, WIDTH))
    spec = FederationSpec(name="f", modalities=(modality,), classes=("a", "b"), window=grid)
    clock, ages, passed, pause = WallClock(), list[int](), 0, threading.Event()
    streams = Streams(spec, {"camera": SensorConfig(driver="camera", drop="latest", options=o)}, clock)
    await streams.start()
    async for item in streams.items():
        if not isinstance(item, Window):
            continue
        if streams.behind:
            passed += 1
            continue
        newest_ns = item.t_ns + item.length_ns + round((deadline_s - item.age_s["camera"]) * NS)
        ages.append(clock.now_ns() - newest_ns)
        if len(ages) == count:
            break
        pause.wait(pause_s)
    await streams.aclose()
    return {"ages": ages, "passed": passed}


def watch(env: dict[str, str], count: int, pause_s: float = 0.0, **options: Any) -> dict[str, Any]:
    """Reads so many frames in a process of its own, pausing after each; returns what `read` says."""
    command = [sys.executable, "-m", "tests.helpers.camera_frames", str(count), str(pause_s), json.dumps(options)]
    done = subprocess.run(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def read(count: int, pause_s: float, options: dict[str, Any]) -> dict[str, Any]:
    """Returns numbers, times, errors, reading times (host monotonic, ns) and sizes of so many frames."""
    from edge_sdk.core.clock import monotonic_ns
    from sensors.camera import CameraDriver

    driver = CameraDriver("camera", {"size": 0, "fps": 30.0, **options})
    driver.open()
    numbers, times, errors, read_at, pause = [], [], [], [], threading.Event()
    while len(numbers) < count:
        chunk = driver.read(0.5)
        if chunk is None:
            continue
        read_at.append(monotonic_ns())
        numbers.append(number(chunk.data[0]))
        times.append(chunk.t_ns)
        errors.append(chunk.t_err_ns)
        pause.wait(pause_s)
    driver.close()
    ages = [at - t for at, t in zip(read_at, times, strict=True)]
    return {
        "numbers": numbers, "times": times, "errors": errors, "ages": ages, "read_at": read_at,
        "shape": list(chunk.data.shape),
    }  # fmt: skip


class RtspCamera:
    """An RTSP server on the loopback that plays numbered frames, in a process of the system's Python.

    Args:
        pattern: of the frames' names.
        fps: frames per second.
    """

    def __init__(self, pattern: Path, fps: int = 30) -> None:
        program = Path(__file__).with_name("rtsp_server.py")
        self._folder = pattern.parent
        self._command = [SYSTEM_PYTHON, str(program), str(self._folder), str(fps)]
        self._port = 0
        self.url = ""

    def __enter__(self) -> RtspCamera:
        self.on()
        return self

    def on(self) -> None:
        """Switches it on; at the same address as before."""
        self._process = subprocess.Popen([*self._command, str(self._port)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self._port = urlsplit(self.url).port or 0

    def off(self) -> None:
        """Switches it off, without a farewell."""
        self._process.kill()
        self._process.communicate()

    def flash(self, seconds: float, jpeg: bytes) -> None:
        """Shows a picture for so long."""
        flash = self._folder / "flash"
        flash.with_suffix(".new").write_bytes(jpeg)
        flash.with_suffix(".new").rename(flash)
        threading.Event().wait(seconds)
        flash.unlink()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.off()


def no_rtsp() -> str:
    """Returns why there can be no RTSP server here; "": there can."""
    code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        done = subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True, check=False)
    except OSError:
        return f"there is no {SYSTEM_PYTHON}"
    return f"GStreamer's RTSP server is not installed: {GI_APT}" if done.returncode else no_pipeline()


if __name__ == "__main__":
    how_many, paused_s, given = int(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
    if len(sys.argv) > 4:
        sys.stdout.write(json.dumps(asyncio.run(windows(how_many, paused_s, float(sys.argv[4]), given))))
    else:
        sys.stdout.write(json.dumps(read(how_many, paused_s, given)))

"""A V4L2 camera without a kernel driver: a preloaded shim that plays /dev/video42 under the real OpenCV.

python -m tests.helpers.virtual_v4l2 FRAMES PAUSE_S     reads through the driver, prints JSON; run it with `environment`
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.helpers.virtual_camera import number, numbered

DEVICE = "/dev/video42"
ROOT = Path(__file__).parents[2]


def missing() -> str:
    """Returns why there can be no virtual V4L2 camera here; "": there can."""
    return "" if sys.platform == "linux" and shutil.which("gcc") else "gcc is not installed: apt install gcc libc6-dev"


def environment(folder: Path) -> dict[str, str]:
    """Builds the shim and its frames; returns the environment under which DEVICE is a camera."""
    import cv2

    shim, frames = folder / "v4l2_shim.so", folder / "frames.bin"
    source = Path(__file__).with_name("v4l2_shim.c")
    command = ["gcc", "-shared", "-fPIC", "-O2", "-w", "-o", str(shim), str(source), "-ldl"]
    subprocess.run(command, check=True)
    with frames.open("wb") as file:
        for n in range(300):
            jpeg = cv2.imencode(".jpg", numbered(n))[1].tobytes()
            file.write(struct.pack("<I", len(jpeg)) + jpeg)
    return {**os.environ, "LD_PRELOAD": str(shim), "V4L2_SHIM_FRAMES": str(frames), "PYTHONPATH": str(ROOT)}


def watch(env: dict[str, str], frames: int, pause_s: float = 0.0) -> dict[str, Any]:
    """Reads so many frames in a process of its own, pausing after each; returns what `_watch` says."""
    command = [sys.executable, "-m", "tests.helpers.virtual_v4l2", str(frames), str(pause_s)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _watch(frames: int, pause_s: float) -> dict[str, Any]:
    """Returns numbers, times, errors (ns) of the frames, and the age of each when it was read (ns)."""
    from edge_sdk.core.clock import monotonic_ns
    from sensors.camera import CameraDriver

    driver = CameraDriver("camera", {"source": DEVICE, "size": 0, "fps": 30.0})
    driver.open()
    numbers, times, errors, ages, pause = [], [], [], [], threading.Event()
    while len(numbers) < frames:
        chunk = driver.read(0.5)
        if chunk is None:
            continue
        ages.append(monotonic_ns() - chunk.t_ns)
        numbers.append(number(chunk.data[0]))
        times.append(chunk.t_ns)
        errors.append(chunk.t_err_ns)
        pause.wait(pause_s)
    driver.close()
    return {"numbers": numbers, "times": times, "errors": errors, "ages": ages}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_watch(int(sys.argv[1]), float(sys.argv[2]))))

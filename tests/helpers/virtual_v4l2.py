"""A V4L2 camera without a kernel driver: a preloaded shim that plays /dev/video42 under the real OpenCV.

`camera_frames.watch` reads DEVICE under `environment`.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from tests.helpers.virtual_camera import numbered, white

DEVICE = "/dev/video42"
FRAMES, FLASH = "frames.bin", "flash.bin"
ROOT = Path(__file__).parents[2]


def missing() -> str:
    """Returns why there can be no virtual V4L2 camera here; "": there can."""
    return "" if sys.platform == "linux" and shutil.which("gcc") else "gcc is not installed: apt install gcc libc6-dev"


def environment(folder: Path) -> dict[str, str]:
    """Builds the shim and its frames; returns the environment under which DEVICE is a camera.

    It is one while `folder / FRAMES` is there, and sees a flash while `folder / FLASH` is.
    """
    import cv2

    shim, frames = folder / "v4l2_shim.so", folder / FRAMES
    source = Path(__file__).with_name("v4l2_shim.c")
    command = ["gcc", "-shared", "-fPIC", "-O2", "-w", "-o", str(shim), str(source), "-ldl"]
    subprocess.run(command, check=True)
    with frames.open("wb") as file:
        for n in range(300):
            jpeg = cv2.imencode(".jpg", numbered(n))[1].tobytes()
            file.write(struct.pack("<I", len(jpeg)) + jpeg)
    variables = {"V4L2_SHIM_FRAMES": str(frames), "V4L2_SHIM_FLASH": str(folder / FLASH)}
    return {**os.environ, **variables, "LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT)}


def white_jpeg() -> bytes:
    """Returns a white frame."""
    import cv2

    return bytes(cv2.imencode(".jpg", white())[1].tobytes())


def flash() -> bytes:
    """Returns what FLASH holds: one white frame."""
    jpeg = white_jpeg()
    return struct.pack("<I", len(jpeg)) + jpeg

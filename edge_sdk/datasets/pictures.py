"""Images and videos of data sets, decoded by OpenCV, which is loaded when the first one is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.core.errors import DataError, PluginError
from edge_sdk.core.records import Array, Float32
from edge_sdk.datasets.archive import Folder, read_bytes
from edge_sdk.features import resize, side_crop, stack_frames, uniform_indices

_USUAL = 256  # pixels that the short side of a photo has at least


def read_image(path: Folder, size: int) -> Float32:
    """Returns the middle square of an image at size × size pixels, float32 (3, size, size), RGB in [0, 1].

    Raises:
        DataError: not an image, or damaged.
        PluginError: OpenCV is not installed.
    """
    cv2 = _opencv()
    content = np.frombuffer(read_bytes(path), np.uint8)
    # The decoder shrinks a JPEG by 2, 4 or 8 on the way, which costs less than decoding all of it.
    ways = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
    way = next((flag for factor, flag in ways.items() if _USUAL // factor >= size), cv2.IMREAD_COLOR)
    image = _decode(cv2, content, way)
    if image is not None and min(image.shape[:2]) < size:
        image = _decode(cv2, content, cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{path}: not a readable image; download it again")
    small = resize(side_crop(image[:, :, ::-1]), size, size)  # BGR -> RGB
    return _unit(np.ascontiguousarray(np.moveaxis(small, 2, 0)))


def _decode(cv2: Any, content: Array, way: int) -> Array | None:
    try:
        image: Array | None = cv2.imdecode(content, way)
    except cv2.error:  # an empty file
        return None
    return image


def read_frames(path: Path, *, count: int, size: int) -> Float32:
    """Returns uniform frames of a video, one above the other, float32 (3, count · size, size), RGB in [0, 1].

    Every frame is decoded and counted: what the header says about their number is often wrong.

    Raises:
        DataError: not a video, damaged, or without frames.
        PluginError: OpenCV is not installed.
    """
    cv2 = _opencv()
    video = cv2.VideoCapture(str(path))
    frames: list[Array] = []
    try:
        while True:
            good, frame = video.read()
            if not good:
                break
            frames.append(frame)
    finally:
        video.release()
    if not frames:
        read_bytes(path)  # says so if the file is missing or only a pointer
        raise DataError(f"{path}: not a readable video; download it again")
    chosen = np.stack([frames[i][:, :, ::-1] for i in uniform_indices(len(frames), count)])
    return _unit(stack_frames(chosen, count=count, size=size))


def _unit(values: Float32) -> Float32:
    """0 … 255 → [0, 1]."""
    unit: Float32 = values / np.float32(255)
    return unit


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise PluginError(
            "images and videos need OpenCV: pip install 'edge-sdk[datasets]', or apt install python3-opencv"
        ) from error
    return cv2


__all__ = ["read_frames", "read_image"]

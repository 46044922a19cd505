"""Images: crop, resize, and a clip as one tall image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array, Float32, Int64


def uniform_indices(total: int, count: int) -> Int64:
    """Returns the middle frame of each of `count` equal parts of a clip; int64 (count,)."""
    if total < 1 or count < 1:
        raise DataError(f"cannot take {count} frames out of {total}")
    return ((2 * np.arange(count, dtype=np.int64) + 1) * total) // (2 * count)


def side_crop(image: Array) -> Array:
    """Returns the middle square of an image, a view: (height, width, …) → (n, n, …)."""
    height, width = image.shape[:2]
    n = min(height, width)
    top, left = (height - n) // 2, (width - n) // 2
    return image[top : top + n, left : left + n]


def resize(image: Array, height: int, width: int) -> Float32:
    """Returns the image at another size, float32 (height, width, channels): triangle filter, widened to shrink."""
    if image.ndim != 3 or not image.size:
        raise DataError(f"an image has shape (height, width, channels), found {image.shape}")
    if image.shape[:2] == (height, width):
        return image.astype(np.float32)
    rows = _triangle(image.shape[0], height)  # (height, h)
    columns = _triangle(image.shape[1], width)  # (width, w)
    planes = np.moveaxis(image, 2, 0).astype(np.float32)  # (h, w, c) -> (c, h, w)
    return np.ascontiguousarray(np.moveaxis(rows @ planes @ columns.T, 0, 2))


@lru_cache(maxsize=16)
def _triangle(n_in: int, n_out: int) -> Float32:
    """Returns the weights of a one-dimensional resize, float32 (n_out, n_in); each row sums to 1."""
    scale = n_in / n_out
    centres = (np.arange(n_out)[:, None] + 0.5) * scale - 0.5
    weights = np.clip(1 - np.abs(np.arange(n_in)[None, :] - centres) / max(1.0, scale), 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def stack(images: Sequence[Array], size: int = 224) -> Float32:
    """Returns images one above the other, float32 (channels, count · size, size): sides cropped, resized.

    Args:
        images: each uint8 (height, width, channels).
        size: height and width of each, pixels.
    """
    stacked = np.concatenate([resize(side_crop(image), size, size) for image in images])  # (count · size, size, c)
    return np.ascontiguousarray(np.moveaxis(stacked, 2, 0))


def stack_frames(frames: Array, *, count: int = 3, size: int = 224) -> Float32:
    """Returns uniform frames of a clip, one above the other, float32 (channels, count · size, size).

    Values stay 0 … 255, as the camera driver gives them: the spec's mean and std bring them to the encoder's range.

    Args:
        frames: uint8 (time, height, width, channels).
        count: frames to take.
        size: height and width of each, pixels.
    """
    if frames.ndim != 4 or frames.dtype != np.uint8:
        raise DataError(f"a clip is uint8 (time, height, width, channels), found {frames.dtype} {frames.shape}")
    return stack([frames[i] for i in uniform_indices(len(frames), count)], size)


__all__ = ["resize", "side_crop", "stack", "stack_frames", "uniform_indices"]

"""MNIST files in the official layout, as small as a test likes."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from edge_sdk.core.records import Array

PREFIXES = {"train": "train", "test": "t10k"}


def idx(values: Array) -> bytes:
    """Returns an array of uint8 as an idx file."""
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return head + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path, *, train: int = 40, test: int = 30, packed: bool = True) -> Path:
    """Writes the four files: labels count up, image i of digit d is d + 1 columns of brightness 255 on black."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, n in (("train", train), ("test", test)):
        y = np.arange(n) % 10
        images = np.zeros((n, 28, 28), np.uint8)
        for row, digit in enumerate(y):
            images[row, 4:24, : digit + 1] = 255
        for kind, values in (("images-idx3", images), ("labels-idx1", y)):
            content = idx(values)
            name = f"{PREFIXES[side]}-{kind}-ubyte"
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder

"""The four files of MNIST, plain or gzipped, as they are downloaded.

Source: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 1998;
http://yann.lecun.com/exdb/mnist/

An idx file is a magic number (two zero bytes, the type 8 for uint8, the number of dimensions), one big-endian uint32
per dimension, and the values.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array, Int64

WHERE = "http://yann.lecun.com/exdb/mnist/ (or https://ossci-datasets.s3.amazonaws.com/mnist/)"
SIZE = 28  # pixels
CLASSES = tuple("0123456789")
# Images per digit, 0 to 9.
COUNTS = {
    "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}
_PREFIX = {"train": "train", "test": "t10k"}
_UINT8 = 0x08


@dataclass(frozen=True, slots=True)
class Digits:
    """One side of MNIST."""

    images: NDArray[np.uint8]  # (n, 28, 28), 0 is background
    y: Int64  # (n,)


def read_digits(data: Path | None, side: str, *, partial: bool) -> Digits:
    """Returns the training ("train") or test ("test") images.

    Args:
        data: the folder with the idx files.
        side: which.
        partial: take files that hold fewer images than the official ones.

    Raises:
        DataError: a file is missing, damaged or not the official one; says what was expected and where to get it.
    """
    if data is None:
        raise DataError(f"give the folder with MNIST's idx files as --data; download them from {WHERE}")
    prefix = _PREFIX[side]
    images = _read(_find(data, f"{prefix}-images", "idx3-ubyte"), dimensions=3)
    path = _find(data, f"{prefix}-labels", "idx1-ubyte")
    y = _read(path, dimensions=1)
    if images.shape != (len(y), SIZE, SIZE) or len(y) == 0:
        raise DataError(f"{path}: {len(y)} labels, but images of shape {images.shape}; expected (n, {SIZE}, {SIZE})")
    if y.max() >= len(CLASSES):
        row = int(np.argmax(y >= len(CLASSES)))
        raise DataError(f"{path}: label {row} is {y[row]}; expected 0 to {len(CLASSES) - 1}")
    counts = tuple(np.bincount(y, minlength=len(CLASSES)).tolist())
    if counts != COUNTS[side] and not partial:
        raise DataError(
            f"{path}: images per digit are {counts}, expected {COUNTS[side]}; download the file from {WHERE}, or take "
            "it with the option partial=true"
        )
    return Digits(images, y.astype(np.int64))


def _find(data: Path, stem: str, kind: str) -> Path:
    """Returns the file under one of the names that downloads have."""
    names = [f"{stem}{mark}{kind}{end}" for mark in "-." for end in ("", ".gz")]
    for name in names:
        if (data / name).is_file():
            return data / name
    raise DataError(f"{data}: {names[0]} (or .gz) is missing; expected the four idx files of MNIST, from {WHERE}")


def _read(path: Path, *, dimensions: int) -> Array:
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); download it again from {WHERE}") from error
    head = 4 + 4 * dimensions
    if len(content) < head or content[:4] != bytes((0, 0, _UINT8, dimensions)):
        raise DataError(f"{path}: not an idx file of uint8 with {dimensions} dimensions; download it from {WHERE}")
    shape = struct.unpack(f">{dimensions}I", content[4:head])
    count = int(np.prod(shape, dtype=object))
    if len(content) - head != count:
        raise DataError(
            f"{path}: expected {count} values for shape {shape}, found {len(content) - head}; download it again"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


__all__ = ["CLASSES", "COUNTS", "SIZE", "WHERE", "Digits", "read_digits"]

"""Arrays of numbers in MATLAB files (level 5, which MATLAB writes as -v6 and -v7, compressed or not).

scipy reads these files too, but a damaged one can end the whole process: of 1,500 files with a few wrong bytes each,
some made scipy 1.17 crash. A data set needs no more than arrays of real numbers, and these are quickly read.

Format: "MAT-File Level 5 File Format" (MathWorks). After a header of 128 bytes a file is a row of elements, each a
type, a size and its data; an array is an element of elements: flags, dimensions, name, real part.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array
from edge_sdk.datasets.archive import Folder, read_bytes

_HEADER, _ORDER = 128, {b"IM": "<", b"MI": ">"}
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # type → dtype
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x0800  # flag
_LARGEST = 1 << 30  # bytes that one variable may unpack to

Element = tuple[int, bytes]  # type, data


def read_mat(path: Folder, variable: str) -> Array:
    """Returns one variable, an array of real numbers in its own type and shape.

    Raises:
        DataError: not such a file, damaged, no such variable, or not real numbers.
    """
    content = read_bytes(path)
    order = _ORDER.get(content[126:_HEADER])
    if order is None:
        raise DataError(f"{path}: not a MATLAB file of level 5 (-v6 or -v7); download it again")
    try:
        for kind, data in _elements(content[_HEADER:], order):
            parts = _matrix(kind, data, order)
            if parts and parts[2][1].decode("latin1") == variable:
                return _numbers(parts, order)
    except (ValueError, zlib.error) as error:
        raise DataError(f"{path}: {variable}: {error}; download the file again") from error
    raise DataError(f"{path}: expected an array of numbers {variable}, found no such variable")


def _elements(content: bytes, order: str) -> Iterator[Element]:
    at = 0
    while at + 8 <= len(content):
        word, size = struct.unpack_from(order + "II", content, at)
        if word >> 16:  # up to four bytes of data stand where the size would
            kind, size, start, after = word & 0xFFFF, word >> 16, at + 4, at + 8
        else:
            kind, start = word, at + 8
            after = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(content):
            raise ValueError("the file is cut short")
        yield kind, content[start : start + size]
        at = after


def _matrix(kind: int, data: bytes, order: str) -> list[Element]:
    """Returns the elements of an array (flags, dimensions, name, …); none if the element is no array."""
    if kind == _COMPRESSED:
        unpacked = zlib.decompressobj().decompress(data, _LARGEST)
        kind, data = next(_elements(unpacked, order), (0, b""))
    parts = list(_elements(data, order)) if kind == _MATRIX else []
    return parts if len(parts) >= 3 else []


def _numbers(parts: list[Element], order: str) -> Array:
    flags = struct.unpack_from(order + "I", parts[0][1].ljust(4, b"\0"))[0]
    kind = _CLASSES.get(flags & 0xFF)
    if kind is None or flags & _COMPLEX or len(parts) < 4 or parts[3][0] not in _STORED:
        raise ValueError("expected an array of real numbers")
    shape = np.frombuffer(parts[1][1], order + "i4")
    values = np.frombuffer(parts[3][1], order + _STORED[parts[3][0]])
    if len(shape) < 2 or (shape < 0).any() or int(np.prod(shape, dtype=object)) != len(values):
        raise ValueError(f"{len(values)} numbers for an array of shape {tuple(shape.tolist())}")
    with np.errstate(all="ignore"):  # what the stored type holds and the array's does not is damage, seen as Inf
        array: Array = values.reshape(shape.tolist(), order="F").astype(kind)
    return array


__all__ = ["read_mat"]

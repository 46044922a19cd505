"""Arrays as bytes: a four-byte head, the shape, then raw little-endian values. Nothing is ever unpickled.

byte 0      type code (table below)
byte 1      number of dimensions D, at most 8
byte 2–3    zero
then        D × uint32 sizes, little-endian
then        values in C order, little-endian
"""

from __future__ import annotations

import math
import struct

import numpy as np

from edge_sdk.core.errors import CodecError, WireFormatError
from edge_sdk.core.records import Array

DTYPES: dict[int, str] = {
    1: "<f4", 2: "<f8", 3: "<f2", 4: "|i1", 5: "<i2", 6: "<i4", 7: "<i8",
    8: "|u1", 9: "<u2", 10: "<u4", 11: "<u8", 12: "|b1",
}  # fmt: skip
_CODES = {np.dtype(text): code for code, text in DTYPES.items()}
_MAX_DIMENSIONS = 8
_BOOL = 12


def dtype_code(dtype: np.dtype[np.generic]) -> int:
    """Returns the type code of a dtype; CodecError if it has none."""
    code = _CODES.get(dtype.newbyteorder("<"))
    if code is None:
        raise CodecError(f"arrays of {dtype} do not travel; use one of {', '.join(str(d) for d in _CODES)}")
    return code


def array_bytes(code: int, shape: tuple[int, ...]) -> int:
    """Returns how many bytes the values take; WireFormatError for an unknown type or an impossible shape."""
    if code not in DTYPES:
        raise WireFormatError(f"array: unknown type code {code}; known: 1 to {max(DTYPES)}")
    if len(shape) > _MAX_DIMENSIONS:
        raise WireFormatError(f"array: {len(shape)} dimensions, at most {_MAX_DIMENSIONS} are allowed")
    if any(not 0 <= n < 2**32 for n in shape):
        raise WireFormatError(f"array: sizes must be 0 to 2^32 - 1, found {shape}")
    return math.prod(shape) * np.dtype(DTYPES[code]).itemsize  # Python integers: cannot overflow


def to_bytes(a: Array) -> bytes:
    """Returns the values in C order, little-endian."""
    return np.ascontiguousarray(a, np.dtype(DTYPES[dtype_code(a.dtype)])).tobytes()


def from_bytes(data: bytes | memoryview, code: int, shape: tuple[int, ...]) -> Array:
    """Returns a new array of native byte order; the length of `data` must be exactly right."""
    size = array_bytes(code, shape)
    if len(data) != size:
        raise WireFormatError(f"array: shape {shape} needs {size} bytes, found {len(data)}")
    if code == _BOOL and size and np.frombuffer(data, np.uint8).max() > 1:
        raise WireFormatError("array: a truth value is neither 0 nor 1")
    if any(n == 0 for n in shape) and math.prod(n for n in shape if n) > 2**31:
        raise WireFormatError(f"array: shape {shape} is empty but has impossible sizes")
    dtype = np.dtype(DTYPES[code])
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def pack_array(a: Array) -> bytes:
    """Returns an array as bytes that describe themselves."""
    if a.ndim > _MAX_DIMENSIONS:
        raise CodecError(f"array: {a.ndim} dimensions, at most {_MAX_DIMENSIONS} travel")
    return struct.pack(f"<BBH{a.ndim}I", dtype_code(a.dtype), a.ndim, 0, *a.shape) + to_bytes(a)


def unpack_array(b: bytes) -> Array:
    """Returns the array that `pack_array` wrote; WireFormatError for anything else."""
    if len(b) < 4:
        raise WireFormatError(f"array: {len(b)} bytes, expected a head of 4")
    code, ndim, zero = struct.unpack_from("<BBH", b)
    if zero or ndim > _MAX_DIMENSIONS or len(b) < 4 + 4 * ndim:
        raise WireFormatError("array: broken head; expected type, dimensions (at most 8), two zero bytes, sizes")
    shape = struct.unpack_from(f"<{ndim}I", b, 4)
    return from_bytes(memoryview(b)[4 + 4 * ndim :], code, shape)


__all__ = ["DTYPES", "array_bytes", "dtype_code", "from_bytes", "pack_array", "to_bytes", "unpack_array"]

"""What little of CUDA an engine needs, through ctypes: no package that would have to match the board's release."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from edge_sdk.core.errors import EngineError
from edge_sdk.core.records import Array

CUDART = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
NVINFER = ("libnvinfer.so.10", "libnvinfer.so.8", "libnvinfer.so")
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapability…


def loads(names: Sequence[str]) -> ctypes.CDLL | None:
    """Returns the first of these libraries that loads."""
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


@cache
def _runtime() -> ctypes.CDLL:
    library = loads(CUDART)
    if library is None:
        raise EngineError(f"CUDA's runtime does not load ({', '.join(CUDART)}); install CUDA, or use another engine")
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return library


def _call(name: str, *args: Any) -> None:
    library = _runtime()
    code: int = getattr(library, name)(*args)
    if code:
        raise EngineError(f"{name}: {library.cudaGetErrorString(code).decode()} (error {code})")


def compute_capability() -> str:
    """Returns that of the first GPU, "87"; EngineError if there is none."""
    values = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
        values.append(str(value.value))
    return "".join(values)


def tensorrt_version() -> str:
    """Returns the version of libnvinfer as it says it ("100300"); EngineError if it does not load."""
    library = loads(NVINFER)
    if library is None:
        raise EngineError(f"TensorRT does not load ({', '.join(NVINFER)}); install it, or use another engine")
    return str(library.getInferLibVersion())


class Stream:
    """An order of work on the GPU."""

    def __init__(self) -> None:
        handle = ctypes.c_void_p()
        _call("cudaStreamCreate", ctypes.byref(handle))
        self._destroy = _runtime().cudaStreamDestroy
        self.handle: int = handle.value or 0

    def wait(self) -> None:
        """Waits until all its work is done."""
        _call("cudaStreamSynchronize", ctypes.c_void_p(self.handle))

    def close(self) -> None:
        """Gives it back."""
        self._destroy(ctypes.c_void_p(self.handle))


class Buffer:
    """Memory of the GPU, freed by `close`.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        address = ctypes.c_void_p()
        _call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        self._free = _runtime().cudaFree
        self.address: int = address.value or 0
        self.size = size

    def put(self, array: Array, stream: Stream) -> None:
        """Copies a contiguous array to the GPU."""
        _copy(self.address, array.ctypes.data, array.nbytes, _TO_DEVICE, stream)

    def get(self, array: Array, stream: Stream) -> None:
        """Copies from the GPU into a contiguous array; it is there when the stream was waited for."""
        _copy(array.ctypes.data, self.address, array.nbytes, _TO_HOST, stream)

    def close(self) -> None:
        """Frees it; what CUDA says of that helps nobody."""
        self._free(ctypes.c_void_p(self.address))


def _copy(to: int, source: int, size: int, kind: int, stream: Stream) -> None:
    _call(
        "cudaMemcpyAsync", ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), kind,
        ctypes.c_void_p(stream.handle),
    )  # fmt: skip


def contiguous(array: Array) -> Array:
    """Returns the array as C-contiguous float32, which is what engines read."""
    return np.ascontiguousarray(array, np.float32)


__all__ = ["Buffer", "Stream", "compute_capability", "contiguous", "loads", "tensorrt_version"]

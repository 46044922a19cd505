"""Files of a store: written whole or not at all, tensors as safetensors, read by mapping them into memory."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from coordinator.store.base import Checkpoint, Floats
from edge_sdk.core.errors import StoreError
from edge_sdk.core.records import Array, ModelTensors, Segments

_SEGMENTS = ("params", "stats", "counters")
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}
_STATE_NAMES, _STATE_VALUES, _STATE_HALVES = "state/names", "state/values", "state/halves"
_UPDATES = "updates"
SMALL = 4096  # bytes of an array of a rule's state that no room is saved with
_MAX_HEADER = 64 * 1024 * 1024


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that it is there whole, or not at all, whenever the power goes; StoreError if it cannot be."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"{path}: cannot be written: {error.strerror or error}; free some space and try again"
        ) from error


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def pack_tensors(tensors: ModelTensors, more: Mapping[str, Array] | None = None) -> bytes:
    """Returns model tensors as safetensors: "<module>/<segment>", empty segments left out."""
    named: dict[str, Array] = dict(more or {})
    for module in sorted(tensors):
        for segment in _SEGMENTS:
            array = _segment(tensors[module], segment)
            if array.size or segment == "params":
                named[f"{module}/{segment}"] = np.ascontiguousarray(array)
    data: bytes = save(named)
    return data


def _segment(segments: Segments, name: str) -> Array:
    arrays: dict[str, Array] = {"params": segments.params, "stats": segments.stats, "counters": segments.counters}
    return arrays[name]


def map_arrays(path: Path) -> dict[str, Array]:
    """Returns the arrays of a safetensors file, mapped into memory (private: nothing is ever written back)."""
    try:
        return _parse(np.memmap(path, np.uint8, mode="c"))
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise StoreError(f"{path}: not a whole safetensors file: {error}; restore it from a backup") from error


def _parse(buffer: Array) -> dict[str, Array]:
    (length,) = struct.unpack_from("<Q", buffer[:8].tobytes())
    if length > min(_MAX_HEADER, len(buffer) - 8):
        raise ValueError(f"header of {length} bytes in a file of {len(buffer)}")
    header = json.loads(buffer[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    return {name: _view(buffer[8 + length :], entry) for name, entry in header.items()}


def _view(buffer: Array, entry: Mapping[str, Any]) -> Array:
    start, stop = (int(n) for n in entry["data_offsets"])
    if not 0 <= start <= stop <= len(buffer):
        raise ValueError(f"tensor at {start}–{stop} in a buffer of {len(buffer)} bytes")
    shape = tuple(int(n) for n in entry["shape"])
    dtype = _DTYPES[str(entry["dtype"])]
    view: Array = np.asarray(buffer[start:stop]).view(dtype).reshape(shape)
    return view


def read_tensors(path: Path) -> dict[str, Segments]:
    """Returns the model tensors of a file that `pack_tensors` made, mapped into memory."""
    return _tensors(map_arrays(path))


def unpack_tensors(data: bytes) -> dict[str, Segments]:
    """Returns the model tensors that `pack_tensors` packed."""
    try:
        return _tensors(_parse(np.frombuffer(data, np.uint8)))
    except (ValueError, KeyError, struct.error) as error:
        raise StoreError(f"tensors in the journal are damaged: {error}; restore the store from a backup") from error


def _tensors(arrays: Mapping[str, Array]) -> dict[str, Segments]:
    modules = sorted({name.rpartition("/")[0] for name in arrays if name.endswith("/params")})
    empty: dict[str, Array] = {
        "params": np.zeros(0, np.float32), "stats": np.zeros(0, np.float32), "counters": np.zeros(0, np.int64),
    }  # fmt: skip
    return {m: Segments(*(arrays.get(f"{m}/{s}", empty[s]) for s in _SEGMENTS)) for m in modules}


def pack_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Returns a checkpoint as safetensors; the rule's state is two buffers and a list of names.

    Arrays of float32 values lie in the second one, which is float32.
    """
    state = sorted((name, np.asarray(value, np.float64)) for name, value in checkpoint.state.items())
    halves = {name for name, value in state if value.nbytes > SMALL and is_float32(value)}
    listing = json.dumps([[name, list(value.shape), name in halves] for name, value in state]).encode()
    more: dict[str, Array] = {
        _STATE_NAMES: np.frombuffer(listing, np.uint8),
        _STATE_VALUES: _joined([value for name, value in state if name not in halves], np.float64),
        _STATE_HALVES: _joined([value for name, value in state if name in halves], np.float32),
        _UPDATES: np.array([checkpoint.number, checkpoint.updates], np.int64),
    }
    return pack_tensors(checkpoint.tensors, more)


def is_float32(value: Floats) -> bool:
    """Says whether float32 holds the values exactly."""
    with np.errstate(over="ignore"):
        return np.array_equal(value.astype(np.float32), value)


def _joined(parts: list[Floats], dtype: type[np.floating[Any]]) -> Array:
    """Returns arrays as one flat buffer; nothing is copied twice, for they may fill most of the memory."""
    joined: Array = np.empty(sum(part.size for part in parts), dtype)
    start = 0
    for part in parts:
        joined[start : start + part.size] = part.reshape(-1)
        start += part.size
    return joined


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns the checkpoint of a file, with memory of its own."""
    arrays = map_arrays(path)
    try:
        number, updates = (int(n) for n in arrays.pop(_UPDATES))
        listing = json.loads(arrays.pop(_STATE_NAMES).tobytes())
        buffers = arrays.pop(_STATE_VALUES), arrays.pop(_STATE_HALVES, np.zeros(0, np.float32))
    except (KeyError, ValueError) as error:
        raise StoreError(f"{path}: not a checkpoint: {error}") from error
    tensors = {
        name: Segments(s.params.copy(), s.stats.copy(), s.counters.copy()) for name, s in _tensors(arrays).items()
    }
    return Checkpoint(number, updates, tensors, _state(listing, *buffers))


def _state(listing: list[list[Any]], values: Array, halves: Array) -> dict[str, Floats]:
    state: dict[str, Floats] = {}
    starts = [0, 0]
    for name, shape, *half in listing:  # a checkpoint of format 2 has no halves, and does not say so
        which = int(any(half))
        size, start = int(np.prod(shape, dtype=np.int64)), starts[which]
        state[name] = (values, halves)[which][start : start + size].reshape(shape).astype(np.float64)
        starts[which] += size
    return state


__all__ = [
    "SMALL",
    "is_float32",
    "map_arrays",
    "pack_checkpoint",
    "pack_tensors",
    "read_checkpoint",
    "read_tensors",
    "sync_folder",
    "unpack_tensors",
    "write_atomically",
]

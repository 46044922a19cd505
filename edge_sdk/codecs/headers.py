"""What stands before the numbers: the headers of encoded updates and model versions, and the frame around both.

    bytes 0–3    magic: "EDSU" update, "EDSM" model version
    bytes 4–7    header length, uint32 little-endian
    then         header: one msgpack map, fields as below
    then         packed part: params of all modules through the chain, `sizes[-1]` bytes
    then         plain part, for each module in header order: side values float32 · stats float32 · counters int64
    then         payload or extras arrays in header order, raw little-endian

The length of every section follows from the header and the receiver's own model layout; together they must be exactly
the length of the object.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast

from edge_sdk.codecs import arrays, schema, wire
from edge_sdk.core.errors import CodecError, WireFormatError
from edge_sdk.core.records import Array, UpdateKey, VersionId

H = TypeVar("H")

UPDATE_MAGIC = b"EDSU"
MODEL_MAGIC = b"EDSM"
MAX_HEADER = 256 * 1024  # bytes
_FRAME = struct.Struct("<4sI")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a receiver is ready to take."""

    object_bytes: int = 512 * 1024 * 1024  # encoded object
    array_bytes: int = 64 * 1024 * 1024  # payload or extras arrays, together


@dataclass(frozen=True, slots=True)
class ModulePart:
    """One module: elements of its three segments, and bytes that its params take in the packed part."""

    name: str
    params: int
    stats: int
    counters: int
    packed: int


@dataclass(frozen=True, slots=True)
class ArrayPart:
    """One named array: type code of `codecs.arrays` and sizes."""

    name: str
    type: int
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the values."""
        return arrays.array_bytes(self.type, self.shape)


@dataclass(frozen=True, slots=True)
class UpdateHeader:
    """Header of an update; everything that can be judged without touching a tensor."""

    key: UpdateKey
    task: str
    base: VersionId
    spec_digest: str
    kind: str  # "delta" | "full"
    chain: str
    modules: tuple[ModulePart, ...]  # sorted by name
    sizes: tuple[int, ...]  # bytes of the packed part: before the byte steps, then after each
    num_samples: int
    num_steps: int
    modalities: tuple[str, ...]
    payload: tuple[ArrayPart, ...] = ()  # sorted by name
    train_s: float = 0.0
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """Header of a model version."""

    id: VersionId
    chain: str
    modules: tuple[ModulePart, ...]  # sorted by name: the whole model
    sizes: tuple[int, ...]
    extras: tuple[ArrayPart, ...] = ()  # sorted by name
    base: VersionId | None = None  # the version that a chain beginning with delta is against


def frame(header: Any, magic: bytes, *parts: bytes | memoryview) -> bytes:
    """Returns magic, header and the parts as one object."""
    packed = wire.pack_map(schema.to_plain(header), type(header).__name__, MAX_HEADER)
    return b"".join((_FRAME.pack(magic, len(packed)), packed, *parts))


def unframe(data: bytes, cls: type[H], magic: bytes, limits: Limits) -> tuple[H, memoryview]:
    """Returns the checked header and the bytes after it."""
    if not _FRAME.size <= len(data) <= limits.object_bytes:
        raise WireFormatError(f"object of {len(data)} bytes, expected {_FRAME.size} to {limits.object_bytes}")
    found, length = _FRAME.unpack_from(data)
    if found != magic:
        raise WireFormatError(f"object: expected magic {magic!r}, found {found!r}")
    if length > min(MAX_HEADER, len(data) - _FRAME.size):
        raise WireFormatError(f"object: header of {length} bytes in an object of {len(data)}")
    end = _FRAME.size + length
    header: H = _header(cast(Any, cls), data[_FRAME.size : end])
    return header, memoryview(data)[end:]


@lru_cache(maxsize=8)  # an update's is looked at on arrival, by admission and on decoding
def _header(cls: Any, packed: bytes) -> Any:
    """Returns the checked header, which nothing can change any more."""
    return schema.from_plain(cls, wire.unpack_map(packed, cls.__name__, MAX_HEADER))


def array_parts(named: Mapping[str, Array]) -> tuple[tuple[ArrayPart, ...], list[bytes]]:
    """Returns the descriptions and the raw bytes of named arrays, sorted by name."""
    names = sorted(named)
    if len(names) > schema.MAX_ITEMS:
        raise CodecError(f"{len(names)} arrays, at most {schema.MAX_ITEMS} travel together")
    parts = tuple(ArrayPart(name, arrays.dtype_code(named[name].dtype), named[name].shape) for name in names)
    return parts, [arrays.to_bytes(named[name]) for name in names]


def check_arrays(parts: tuple[ArrayPart, ...], limits: Limits) -> int:
    """Returns how many bytes the arrays take; WireFormatError for unsorted names, repeated ones, or too much."""
    names = [part.name for part in parts]
    if names != sorted(set(names)):
        raise WireFormatError("arrays: names must be sorted and different")
    total = sum(part.bytes for part in parts)
    if total > limits.array_bytes:
        raise WireFormatError(f"arrays: {total} bytes, at most {limits.array_bytes} are allowed")
    return total


def read_arrays(parts: tuple[ArrayPart, ...], data: memoryview) -> dict[str, Array]:
    """Returns the named arrays that `data` holds exactly."""
    out: dict[str, Array] = {}
    start = 0
    for part in parts:
        out[part.name] = arrays.from_bytes(data[start : start + part.bytes], part.type, part.shape)
        start += part.bytes
    return out


__all__ = [
    "MAX_HEADER",
    "MODEL_MAGIC",
    "UPDATE_MAGIC",
    "ArrayPart",
    "Limits",
    "ModelHeader",
    "ModulePart",
    "UpdateHeader",
    "array_parts",
    "check_arrays",
    "frame",
    "read_arrays",
    "unframe",
]

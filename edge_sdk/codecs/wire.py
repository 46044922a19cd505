"""Messages as msgpack maps, arrays as raw bytes, and the digests that name things (`docs/protocol.md`).

Small messages are one msgpack map each, with the field names of their dataclass in `core.messages`. Large objects
(updates, model versions) are made by `codecs.chain` and travel in the chunks of `codecs.chunks`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]  # ships no types
import numpy as np

from edge_sdk.codecs import schema
from edge_sdk.codecs.arrays import pack_array, unpack_array
from edge_sdk.core.errors import WireFormatError
from edge_sdk.core.records import Array, ModelTensors

T = TypeVar("T")

MAX_MESSAGE = 96 * 1024  # bytes; common cloud brokers cap a packet at 128 KB


def encode(message: Any, limit: int = MAX_MESSAGE) -> bytes:
    """Returns a message of `core.messages` as msgpack; WireFormatError names a field that must not travel."""
    return pack_map(schema.to_plain(message), type(message).__name__, limit)


def decode(cls: type[T], payload: bytes | memoryview, limit: int = MAX_MESSAGE) -> T:
    """Returns the message; WireFormatError names the first field that is wrong."""
    return schema.from_plain(cls, unpack_map(payload, cls.__name__, limit))


def pack_map(plain: dict[str, Any], what: str, limit: int) -> bytes:
    """Returns a checked map as msgpack of at most `limit` bytes."""
    try:
        data: bytes = msgpack.packb(plain, use_bin_type=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise WireFormatError(f"{what}: cannot be packed: {error}") from error
    if len(data) > limit:
        raise WireFormatError(f"{what}: {len(data)} bytes, at most {limit} are allowed")
    return data


def unpack_map(payload: bytes | memoryview, what: str, limit: int, *, items: int = schema.MAX_ITEMS) -> Any:
    """Returns decoded msgpack, unchecked but bounded.

    Containers are limited before they are reserved: a few bytes can claim a list of 2^32 entries, a thousand deep.
    `items` is the most that a list or map may hold.
    """
    if len(payload) > limit:
        raise WireFormatError(f"{what}: {len(payload)} bytes, at most {limit} are allowed")
    try:
        return msgpack.unpackb(
            payload, raw=False, strict_map_key=True, object_pairs_hook=_unique,
            max_array_len=items, max_map_len=items,
        )  # fmt: skip
    except WireFormatError:
        raise
    except (msgpack.StackError, RecursionError) as error:
        raise WireFormatError(f"{what}: nested too deep") from error
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireFormatError(f"{what}: not valid msgpack: {error or type(error).__name__}") from error


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Two programs that keep different ones of two equal keys would see different messages."""
    plain = dict(pairs)
    if len(plain) != len(pairs):
        raise WireFormatError("a map names a field twice")
    return plain


def object_digest(data: bytes | memoryview) -> str:
    """Returns blake2b-128 of some bytes, 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def tensors_digest(tensors: ModelTensors) -> str:
    """Returns the digest that a VersionId carries, 32 hex digits.

    blake2b-128 over the params of all modules, then all stats, then all counters, modules in sorted name order,
    values little-endian. Without stats and counters it equals `params_digest`.
    """
    order = [tensors[name] for name in sorted(tensors)]
    return _digest([s.params for s in order] + [s.stats for s in order] + [s.counters for s in order])


def params_digest(tensors: ModelTensors) -> str:
    """Returns blake2b-128 over the params alone: sorted modules, sorted tensor names, little-endian float32."""
    return _digest(tensors[name].params for name in sorted(tensors))


def _digest(arrays: Iterable[Array]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for a in arrays:
        flat = np.ascontiguousarray(a)
        if sys.byteorder == "big":
            flat = flat.byteswap()
        if flat.size:
            state.update(flat.data)
    return state.hexdigest()


__all__ = [
    "MAX_MESSAGE",
    "decode",
    "encode",
    "object_digest",
    "pack_array",
    "pack_map",
    "params_digest",
    "tensors_digest",
    "unpack_array",
    "unpack_map",
]

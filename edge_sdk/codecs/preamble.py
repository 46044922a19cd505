"""Chunks of at most 96 KiB, each of which says all that is needed to place it.

The 64-byte preamble, little-endian:

    offset  size  field
    0       4     magic "EDSK"
    4       1     protocol, 1
    5       1     object kind: 1 update, 2 model, 3 task
    6       2     zero
    8       16    object key (`update_key`, `model_key`, `task_key`)
    24      4     chunk number, from 0
    28      4     chunk count
    32      8     total bytes of the object
    40      16    blake2b-128 of the object
    56      4     payload bytes of every chunk but the last
    60      4     CRC-32 (IEEE) of bytes 0–59 and the payload

Chunk i holds the bytes from i · (payload bytes) on; the count and the length of every chunk follow from the total, so
chunks may come in any order and twice, and a lie is seen before memory is taken.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from functools import partial

from edge_sdk.core.errors import WireFormatError
from edge_sdk.core.messages import PROTOCOL
from edge_sdk.core.records import UpdateKey, VersionId

PREAMBLE_BYTES = 64
MAX_CHUNK = 96 * 1024  # bytes, preamble included; common cloud brokers cap a packet at 128 KB
MAX_COUNT = 65_536  # chunks of one object: 6 GiB
MIN_PAYLOAD = 1024  # bytes per chunk of an object that has several: bounds what the receiver must remember
_MAGIC = b"EDSK"
_HEAD = struct.Struct("<4sBBH16sIIQ16sI")  # without the CRC
_CRC = struct.Struct("<I")
_KINDS = {"update": 1, "model": 2, "task": 3}
_NAMES = {code: name for name, code in _KINDS.items()}

_blake2b = partial(hashlib.blake2b, digest_size=16)


def update_key(key: UpdateKey, digest: str) -> bytes:
    """Returns the object key (16 bytes) of an update whose encoded bytes have this digest."""
    return _blake2b(f"update/{key.device}/{key.incarnation}/{key.sequence}/{digest}".encode()).digest()


def model_key(version: VersionId, slot: int) -> bytes:
    """Returns the object key (16 bytes) of a version published in this slot."""
    return _blake2b(f"model/{version.lineage}/{version.number}/{version.digest}/{slot}".encode()).digest()


def task_key(device: str, task: str, digest: str) -> bytes:
    """Returns the object key (16 bytes) of a task that is too large for one message; its bytes have this digest."""
    return _blake2b(f"task/{device}/{task}/{digest}".encode()).digest()


def is_chunk(payload: bytes) -> bool:
    """Returns whether a payload is a chunk rather than a message: no msgpack map begins with the magic."""
    return payload[:4] == _MAGIC


@dataclass(frozen=True, slots=True)
class Preamble:
    """What a chunk says of itself and of its object."""

    kind: str  # "update" | "model" | "task"
    key: bytes  # (16,) object key
    number: int  # chunk number, from 0
    count: int  # chunks of the object
    total: int  # bytes of the object
    digest: str  # blake2b-128 of the object, 32 hex digits
    stride: int  # payload bytes of every chunk but the last

    @property
    def payload_bytes(self) -> int:
        """Payload bytes of this chunk."""
        return min(self.stride, self.total - self.number * self.stride)

    @staticmethod
    def parse(chunk: bytes) -> Preamble:
        """Returns the preamble of a whole chunk; WireFormatError unless length, numbers and CRC all agree."""
        if isinstance(chunk, Chunk):
            return chunk.preamble
        if not PREAMBLE_BYTES < len(chunk) <= MAX_CHUNK:
            raise WireFormatError(f"chunk: {len(chunk)} bytes, expected {PREAMBLE_BYTES + 1} to {MAX_CHUNK}")
        magic, protocol, kind, zero, key, number, count, total, digest, stride = _HEAD.unpack_from(chunk)
        if magic != _MAGIC:
            raise WireFormatError(f"chunk: expected magic {_MAGIC!r}, found {magic!r}")
        if protocol != PROTOCOL:
            raise WireFormatError(f"chunk: protocol {protocol}, this program speaks {PROTOCOL}; update the older side")
        if kind not in _NAMES or zero:
            raise WireFormatError(f"chunk: unknown object kind {kind} or flags {zero}")
        preamble = Preamble(_NAMES[kind], key, number, count, total, digest.hex(), stride)
        _check_numbers(preamble, len(chunk) - PREAMBLE_BYTES)
        if _CRC.unpack_from(chunk, _HEAD.size)[0] != _crc(chunk[: _HEAD.size], memoryview(chunk)[PREAMBLE_BYTES:]):
            raise WireFormatError(f"chunk {number} of {count}: wrong CRC; it was damaged on the way")
        return preamble


class Chunk(bytes):
    """A chunk that `split` made in this process: it still knows what it says, and the object that it was cut from.

    Bytes do not change, so a receiver that is handed this very chunk (a simulation's, a test's) has nothing to check
    and nothing to put together. What comes over a network is plain bytes, and every bit of it is checked.
    """

    preamble: Preamble
    whole: bytes

    def __new__(cls, data: bytes, preamble: Preamble, whole: bytes) -> Chunk:
        """Takes the bytes of the chunk, preamble included, what they say, and the whole object."""
        chunk = super().__new__(cls, data)
        chunk.preamble, chunk.whole = preamble, whole
        return chunk


def _check_numbers(p: Preamble, payload: int) -> None:
    least = MIN_PAYLOAD if p.count > 1 else 1
    if not least <= p.stride <= MAX_CHUNK - PREAMBLE_BYTES:
        raise WireFormatError(f"chunk: {p.stride} bytes per chunk, expected {least} to {MAX_CHUNK - PREAMBLE_BYTES}")
    if not 1 <= p.count <= MAX_COUNT or p.count != -(-p.total // p.stride):
        raise WireFormatError(f"chunk: {p.count} chunks of {p.stride} bytes do not make {p.total} bytes")
    if p.number >= p.count:
        raise WireFormatError(f"chunk: number {p.number}, expected 0 to {p.count - 1}")
    if payload != p.payload_bytes:
        raise WireFormatError(f"chunk {p.number} of {p.count}: {payload} bytes, expected {p.payload_bytes}")


def _crc(head: bytes, payload: memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(head))


def count_of(size: int, chunk_bytes: int = MAX_CHUNK) -> int:
    """Returns how many chunks an object of `size` bytes makes."""
    return -(-size // (chunk_bytes - PREAMBLE_BYTES))


def split(data: bytes, kind: str, key: bytes, *, chunk_bytes: int = MAX_CHUNK, digest: str = "") -> list[bytes]:
    """Returns an object as chunks, each of them a `Chunk`.

    Args:
        data: the encoded object, at least one byte.
        kind: "update", "model" or "task".
        key: (16,) from `update_key`, `model_key` or `task_key`.
        chunk_bytes: greatest chunk, preamble included.
        digest: blake2b-128 of data where it is known already; a receiver in this process takes the caller's word.
    """
    if not data or len(key) != 16 or kind not in _KINDS:
        raise WireFormatError(f"{len(data)} bytes of {kind!r} with a key of {len(key)} bytes cannot be sent in chunks")
    stride = min(chunk_bytes - PREAMBLE_BYTES, len(data))
    if stride < min(MIN_PAYLOAD, len(data)) or chunk_bytes > MAX_CHUNK:
        raise WireFormatError(
            f"chunks of {chunk_bytes} bytes; {PREAMBLE_BYTES + MIN_PAYLOAD} to {MAX_CHUNK} are allowed"
        )
    count = -(-len(data) // stride)
    digest = digest or _blake2b(data).hexdigest()
    name = bytes.fromhex(digest)
    view = memoryview(data)
    chunks: list[bytes] = []
    for number in range(count):
        payload = view[number * stride : (number + 1) * stride]
        head = _HEAD.pack(_MAGIC, PROTOCOL, _KINDS[kind], 0, key, number, count, len(data), name, stride)
        says = Preamble(kind, key, number, count, len(data), digest, stride)
        chunks.append(Chunk(b"".join((head, _CRC.pack(_crc(head, payload)), payload)), says, data))
    return chunks


__all__ = [
    "MAX_CHUNK",
    "MAX_COUNT",
    "MIN_PAYLOAD",
    "PREAMBLE_BYTES",
    "Chunk",
    "Preamble",
    "count_of",
    "is_chunk",
    "model_key",
    "split",
    "task_key",
    "update_key",
]

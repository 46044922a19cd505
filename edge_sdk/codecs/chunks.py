"""Large objects from chunks: in any order, twice, resumable, and within fixed memory.

The chunk itself is described in `codecs.preamble`; its names are offered here too.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from edge_sdk.codecs.preamble import (
    MAX_CHUNK,
    MAX_COUNT,
    MIN_PAYLOAD,
    PREAMBLE_BYTES,
    Chunk,
    Preamble,
    count_of,
    is_chunk,
    model_key,
    split,
    task_key,
    update_key,
)
from edge_sdk.core.errors import WireFormatError

_ENTRY_BYTES = 1024  # charged for an incomplete object beside its chunks
_CHUNK_BYTES = 320  # charged for a chunk beside its payload: preamble and Python's own
_blake2b = partial(hashlib.blake2b, digest_size=16)


@dataclass(frozen=True, slots=True)
class Assembled:
    """An object that is complete and has the digest it was announced with."""

    source: str  # who sent it
    kind: str  # "update" | "model" | "task"
    key: bytes  # (16,)
    digest: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Dropped:
    """An incomplete object that was given up."""

    source: str
    kind: str
    key: bytes
    missing: tuple[int, ...]


@dataclass(slots=True)
class _Partial:
    first: Preamble  # of the first chunk seen
    payloads: list[memoryview | None]  # of the chunks, None: still to come; not copied until the object is whole
    left: int  # chunks still to come
    touched_ns: int
    hashed: int = 0  # chunks hashed so far, always a prefix
    state: Any = field(default_factory=_blake2b)

    @property
    def cost(self) -> int:
        return _cost(self.first)


def _cost(p: Preamble) -> int:
    return p.total + p.count * _CHUNK_BYTES + _ENTRY_BYTES


class Assembler:
    """Puts objects together from chunks in any order, within fixed memory.

    The digest is computed as the beginning of the object grows, so that completing a large one does not stop the loop.
    Chunks that were cut in this process and handed over as they are give the object itself back, without a digest.
    A finished object is forgotten: a chunk that comes again begins a new one, which completes or expires.

    Args:
        quota_bytes: memory for the incomplete objects of one source.
        total_quota_bytes: memory for all of them together.
    """

    def __init__(self, quota_bytes: int, total_quota_bytes: int) -> None:
        self._quota = quota_bytes
        self._total_quota = total_quota_bytes
        self._sources: dict[str, OrderedDict[bytes, _Partial]] = {}  # least recently touched first
        self._used = 0
        self.refused = 0  # chunks not taken because all memory was in use; their senders ask again
        self.evicted = 0  # incomplete objects that gave way to a newer one of the same source

    @property
    def used_bytes(self) -> int:
        """Memory reserved now."""
        return self._used

    def add(self, source: str, chunk: bytes, now_ns: int, preamble: Preamble | None = None) -> Assembled | None:
        """Takes a chunk; returns its object when that was the last one.

        None may also mean that there was no memory (`refused`): to the sender this is a chunk lost on the way.

        Args:
            source: who sent it.
            chunk: the chunk.
            now_ns: monotonic time.
            preamble: what `Preamble.parse` gave for it, where somebody has looked already.

        Raises:
            WireFormatError: the chunk is damaged, contradicts an earlier one, or its object can never fit; or the
                object is complete and has the wrong digest, in which case all of it was dropped.
        """
        preamble = preamble or Preamble.parse(chunk)
        partial_object = self._sources.get(source, OrderedDict()).get(preamble.key)
        if partial_object is None:
            partial_object = self._reserve(source, preamble, now_ns)
            if partial_object is None:
                return None
        _check_same(partial_object.first, preamble)
        partial_object.touched_ns = now_ns
        self._sources[source].move_to_end(preamble.key)
        _place(partial_object, preamble, memoryview(chunk)[PREAMBLE_BYTES:])
        return self._finish(source, partial_object) if not partial_object.left else None

    def missing(self, source: str, key: bytes, limit: int = 1024) -> tuple[int, ...]:
        """Returns the first `limit` chunk numbers still to come; () if nothing is known of this object.

        1024 is what one Reply or Fetch may carry.
        """
        entry = self._sources.get(source, OrderedDict()).get(key)
        return () if entry is None else _missing(entry)[:limit]

    def expire(self, now_ns: int, timeout_ns: int) -> list[Dropped]:
        """Drops what has not grown for `timeout_ns` and returns it."""
        return [
            self._drop(source, entry)
            for source, entries in list(self._sources.items())
            for entry in list(entries.values())
            if now_ns - entry.touched_ns >= timeout_ns
        ]

    def forget(self, source: str) -> None:
        """Drops all incomplete objects of a source."""
        for entry in list(self._sources.get(source, {}).values()):
            self._drop(source, entry)

    def _reserve(self, source: str, preamble: Preamble, now_ns: int) -> _Partial | None:
        cost = _cost(preamble)
        if cost > min(self._quota, self._total_quota):
            limit = min(self._quota, self._total_quota)
            raise WireFormatError(
                f"{preamble.kind} of {preamble.total} bytes in {preamble.count} chunks; at most {limit} are allowed,"
                f" {_CHUNK_BYTES} of them for every chunk"
            )
        mine = self._sources.setdefault(source, OrderedDict())
        while mine and sum(entry.cost for entry in mine.values()) + cost > self._quota:
            self._drop(source, next(iter(mine.values())))
            self.evicted += 1
        if self._used + cost > self._total_quota:
            self.refused += 1
            if not mine:
                self._sources.pop(source, None)
            return None
        self._used += cost
        entry = _Partial(preamble, [None] * preamble.count, preamble.count, now_ns)
        self._sources.setdefault(source, mine)[preamble.key] = entry
        return entry

    def _drop(self, source: str, entry: _Partial) -> Dropped:
        entries = self._sources[source]
        del entries[entry.first.key]
        if not entries:
            del self._sources[source]
        self._used -= entry.cost
        return Dropped(source, entry.first.kind, entry.first.key, _missing(entry))

    def _finish(self, source: str, entry: _Partial) -> Assembled:
        self._drop(source, entry)
        first = entry.first
        payloads = [payload for payload in entry.payloads if payload is not None]
        whole = _cut_from(payloads)
        if whole is None:
            _hash(entry)
            if entry.state.hexdigest() != first.digest:
                raise WireFormatError(
                    f"{first.kind} of {first.total} bytes: wrong digest; send it again from the start"
                )
            whole = b"".join(payloads)
        return Assembled(source, first.kind, first.key, first.digest, whole)


def _check_same(first: Preamble, other: Preamble) -> None:
    """Chunks of one object differ in their number only."""
    a = (first.kind, first.count, first.total, first.digest, first.stride)
    if a != (other.kind, other.count, other.total, other.digest, other.stride):
        raise WireFormatError(f"chunk {other.number}: contradicts an earlier chunk of the same {first.kind}")


def _place(entry: _Partial, preamble: Preamble, payload: memoryview) -> None:
    before = entry.payloads[preamble.number]
    if before is not None:
        if before != payload:
            raise WireFormatError(f"chunk {preamble.number}: came twice with different contents")
        return
    entry.payloads[preamble.number] = payload
    entry.left -= 1
    if not isinstance(payload.obj, Chunk):
        _hash(entry)


def _hash(entry: _Partial) -> None:
    """Takes the chunks that follow on those hashed before into the digest."""
    while entry.hashed < len(entry.payloads) and (ready := entry.payloads[entry.hashed]) is not None:
        entry.state.update(ready)
        entry.hashed += 1


def _cut_from(payloads: list[memoryview]) -> bytes | None:
    """Returns the object that all of these chunks were cut from in this process; None: not all of them, or not one."""
    whole = getattr(payloads[0].obj, "whole", None)
    return whole if all(getattr(payload.obj, "whole", None) is whole for payload in payloads) else None


def _missing(entry: _Partial) -> tuple[int, ...]:
    return tuple(number for number, payload in enumerate(entry.payloads) if payload is None)


def join(chunks: Iterable[bytes]) -> bytes:
    """Returns the object that a complete set of chunks makes; for tools and tests."""
    assembler = Assembler(2**62, 2**62)
    for chunk in chunks:
        done = assembler.add("", chunk, 0)
        if done is not None:
            return done.data
    raise WireFormatError("the chunks do not make a whole object")


__all__ = [
    "MAX_CHUNK",
    "MAX_COUNT",
    "MIN_PAYLOAD",
    "PREAMBLE_BYTES",
    "Assembled",
    "Assembler",
    "Chunk",
    "Dropped",
    "Preamble",
    "count_of",
    "is_chunk",
    "join",
    "model_key",
    "split",
    "task_key",
    "update_key",
]

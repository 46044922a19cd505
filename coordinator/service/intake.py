"""Chunks of updates to whole updates, and what to ask for when some do not come."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.config import AdmissionConfig
from edge_sdk.codecs.chain import peek_update
from edge_sdk.codecs.chunks import PREAMBLE_BYTES, Assembled, Assembler, update_key
from edge_sdk.core.clock import NS
from edge_sdk.core.errors import CodecError
from edge_sdk.core.records import UpdateKey

_ASK_AT_ONCE = 64  # chunks
_KEY = slice(8, 24)  # of a chunk: its object
_NUMBER = slice(24, 28)


@dataclass(slots=True)
class _Waiting:
    """An object that has begun to come."""

    device: str
    key: bytes
    quiet_since_ns: int
    update: UpdateKey | None  # known once chunk 0 is here
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """What a device should send again."""

    device: str
    update: UpdateKey
    chunks: tuple[int, ...]


class Intake:
    """Assembles updates within a quota per device and over all.

    Args:
        config: the [admission] section.
    """

    def __init__(self, config: AdmissionConfig) -> None:
        self._assembler = Assembler(round(config.update_mb * 1e6), round(config.total_mb * 1e6))
        self._wait_ns = round(config.chunk_wait_s * NS)
        self._drop_ns = round(config.drop_after_s * NS)
        self._waiting: dict[tuple[str, bytes], _Waiting] = {}

    def add(self, device: str, chunk: bytes, now_ns: int) -> Assembled | None:
        """Takes a chunk; returns the update when it is whole. WireFormatError as `Assembler.add` says."""
        place = (device, bytes(chunk[_KEY]))
        try:
            done = self._assembler.add(device, chunk, now_ns)
        except CodecError:
            self._forget_done(place)
            raise
        if done is not None:
            self._waiting.pop(place, None)
            return done
        entry = self._waiting.setdefault(place, _Waiting(device, place[1], now_ns, None))
        entry.quiet_since_ns, entry.asked = now_ns, False
        if entry.update is None:
            entry.update = peek_key(chunk)
        return None

    def _forget_done(self, place: tuple[str, bytes]) -> None:
        if not self._assembler.missing(*place):
            self._waiting.pop(place, None)

    def missing(self, device: str, update: UpdateKey, digest: str) -> tuple[int, ...]:
        """Returns the chunks of an update that are still to come; () if none of it is here."""
        return self._assembler.missing(device, update_key(update, digest))[:_ASK_AT_ONCE]

    def quiet(self, now_ns: int) -> list[Missing]:
        """Returns what to ask for after a quiet time, once per quiet time; gives up what stayed quiet for long."""
        questions = []
        for place, entry in list(self._waiting.items()):
            if now_ns - entry.quiet_since_ns >= self._wait_ns and not entry.asked:
                entry.asked = True
                numbers = self._assembler.missing(*place)[:_ASK_AT_ONCE]
                if numbers and entry.update is not None:
                    questions.append(Missing(entry.device, entry.update, numbers))
        for dropped in self._assembler.expire(now_ns, self._drop_ns):
            self._waiting.pop((dropped.source, dropped.key), None)
        for place in [p for p in self._waiting if not self._assembler.missing(*p)]:
            del self._waiting[place]
        return questions

    @property
    def next_ns(self) -> int | None:
        """When `quiet` has something to do."""
        times = [e.quiet_since_ns + (self._drop_ns if e.asked else self._wait_ns) for e in self._waiting.values()]
        return min(times, default=None)


def peek_key(chunk: bytes) -> UpdateKey | None:
    """Returns whose update a first chunk begins; None for other chunks, and for what cannot be read."""
    if chunk[_NUMBER] != b"\0\0\0\0":
        return None
    try:
        return peek_update(bytes(chunk[PREAMBLE_BYTES:])).key
    except CodecError:
        return None


__all__ = ["Intake", "Missing", "peek_key"]

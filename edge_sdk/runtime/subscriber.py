"""Fetches published versions: chunks from their slot, or from the coordinator itself where the slot was overwritten.

A slot that is overwritten while we read it shows at once: its chunks carry another object key. After two such lost
races, and for versions that no head has announced to us, the coordinator is asked directly.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from edge_sdk.codecs import chain as codec
from edge_sdk.codecs import chunks
from edge_sdk.core.clock import Clock
from edge_sdk.core.compute import SHORT, Compute
from edge_sdk.core.errors import CodecError, WireFormatError
from edge_sdk.core.events import Observer
from edge_sdk.core.messages import Fetch, Head, Published, Reply
from edge_sdk.core.records import ModelLayout, ModelTensors, ModelVersion, VersionId
from edge_sdk.runtime.events import ModelFetched
from edge_sdk.runtime.link import Link

AT_ONCE = 64  # chunk subscriptions at a time
PATIENCE_S = 20.0  # without a chunk for this long we ask again
_RACES = 2  # lost races after which the coordinator is asked
_KEEP = 4  # decoded versions at most
_ANNOUNCED = 16  # newest versions whose slot we remember
_ATTEMPTS = 3  # of a version whose bytes cannot be decoded
_LARGEST = 1 << 30  # bytes of an object we are ready to assemble
_SLOTS = 4  # of the protocol
REPLY = -1  # in place of a slot: sent by the coordinator to us alone
_MISSING = 1024  # chunk numbers in one question

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk and where it came from."""

    data: bytes
    slot: int


class Nudge:
    """Stands among what came in for a connection that is new: what was on its way is lost."""


class Subscriber:
    """Knows what is published, and gets it.

    Args:
        link: the wire.
        layout: returns the model's modules.
        clock: what waiting is counted on.
        compute: its short lane decodes.
        emit: the observer.
    """

    def __init__(
        self, link: Link, layout: Callable[[], ModelLayout], *, clock: Clock, compute: Compute, emit: Observer
    ) -> None:  # fmt: skip
        self._link = link
        self._layout = layout
        self._clock = clock
        self._compute = compute
        self._emit = emit
        self._chains: dict[str, codec.Chain] = {}
        self._held: OrderedDict[VersionId, ModelVersion] = OrderedDict()
        self._heads: deque[Head] = deque(maxlen=_ANNOUNCED)  # the last ones, each with another newest version
        self._turn = asyncio.Lock()  # one fetch at a time
        self._mail: asyncio.Queue[Part | Reply | Nudge] | None = None  # of the fetch under way
        self._news = asyncio.Event()
        self.head: Head | None = None

    def announced(self, head: Head) -> None:
        """Takes a head from the wire."""
        self.head = head
        before, newest = self._heads[-1].newest.id if self._heads else None, head.newest.id
        if before is not None and before.number == newest.number and before == newest:
            self._heads.pop()
        self._heads.append(head)
        if self._held:
            named = {v for p in (head.best, head.newest) if p is not None for v in (p.id, p.base)}
            for version in self._held.keys() - named:  # whoever works with it has it; a fleet of idle devices need not
                del self._held[version]
        self._news.set()

    def _announced(self, wanted: VersionId) -> Published | None:
        """Returns what the last heads said of a version, the latest word; None if they did not name it."""
        named = (p for head in reversed(self._heads) for p in (head.newest, head.best) if p is not None)
        return next((p for p in named if p.id == wanted), None)

    def chunk(self, payload: bytes, slot: int = REPLY) -> None:
        """Takes a chunk of a model from the wire; `slot` says where it was published."""
        if self._mail is not None:
            self._mail.put_nowait(Part(payload, slot))

    def heard(self, reply: Reply) -> None:
        """Takes the coordinator's answer that it does not hold a version."""
        if self._mail is not None:
            self._mail.put_nowait(reply)

    def nudge(self) -> None:
        """The connection is back: what was on its way is lost."""
        if self._mail is not None:
            self._mail.put_nowait(Nudge())

    async def other_than(self, current: VersionId | None, *, best: bool = False) -> VersionId:
        """Waits until another version than `current` is the newest (or best) one."""
        while True:
            if self.head is not None:
                published = self.head.best if best and self.head.best is not None else self.head.newest
                if published.id != current:
                    return published.id
            self._news.clear()
            await self._news.wait()

    async def version(self, wanted: VersionId) -> ModelVersion | None:
        """Returns a version, decoded and verified; None if the coordinator does not hold it any more."""
        async with self._turn:
            return await self._version(wanted)

    async def _version(self, wanted: VersionId) -> ModelVersion | None:
        if wanted in self._held:
            self._held.move_to_end(wanted)
            return self._held[wanted]
        self._mail = asyncio.Queue()
        try:
            return await self._fetch(wanted)
        finally:
            self._mail = None

    async def _fetch(self, wanted: VersionId) -> ModelVersion | None:
        lost = 0
        for _ in range(_ATTEMPTS + _RACES):
            published = self._announced(wanted)
            if published is not None and lost < _RACES:
                data = await self._from_slot(published)
                if data is None:
                    lost += 1
                    continue
            else:
                data = await self._from_coordinator(wanted)
                if data is None:
                    return None
            version = await self._decode(wanted, data)
            if version is not None:
                self._hold(version)
                self._emit(ModelFetched(self._link.device, version.id, len(data), lost))
                return version
            lost += 1
        log.error("%s: version %d cannot be decoded; given up", self._link.device, wanted.number)
        return None

    def _hold(self, version: ModelVersion) -> None:
        self._held[version.id] = version
        while len(self._held) > _KEEP:
            self._held.popitem(last=False)

    async def _decode(self, wanted: VersionId, data: bytes) -> ModelVersion | None:
        """Returns the version; None if the bytes are not what was asked for."""
        try:
            header = codec.peek_model(data)
            if header.id != wanted:
                raise WireFormatError(f"asked for version {wanted.number}, found {header.id.number}")
            base: ModelTensors | None = None
            if header.base is not None:
                frame = await self._version_within(header.base)
                if frame is None:
                    return None
                base = frame.tensors
            chain = self._chains.get(header.chain) or codec.Chain(header.chain, self._layout())
            self._chains[header.chain] = chain
            return await self._compute.run(SHORT, 0, chain.decode_model, data, base)
        except CodecError as error:
            log.warning("%s: version %d: %s", self._link.device, wanted.number, error)
            return None

    async def _version_within(self, wanted: VersionId) -> ModelVersion | None:
        """Fetches the key frame of a delta while the delta's own fetch waits."""
        mail = self._mail
        try:
            return await self._version(wanted)
        finally:
            self._mail = mail

    async def _from_slot(self, published: Published) -> bytes | None:
        """Returns the object in a slot; None: the slot was overwritten, or is empty."""
        key = chunks.model_key(published.id, published.slot)
        topics = [self._link.topics.model_chunk(published.slot, n) for n in range(published.chunks)]
        assembler = chunks.Assembler(_LARGEST, _LARGEST)
        for start in range(0, len(topics), AT_ONCE):
            batch = topics[start : start + AT_ONCE]
            await self._link.transport.subscribe(*batch)
            try:
                data = await self._read_slot(assembler, published.slot, key, count=len(batch))
            finally:
                await self._link.transport.unsubscribe(*batch)
            if data is None or data:
                return data
        return None

    async def _read_slot(
        self, assembler: chunks.Assembler, slot: int, key: bytes, *, count: int
    ) -> bytes | None:  # fmt: skip
        """Takes `count` chunks; returns the object if it is whole then, b"" if not, None for a lost race."""
        seen: set[int] = set()
        while len(seen) < count:
            item = await self._next()
            if item is None and self._link.connected:
                return None  # nothing is retained there
            if not isinstance(item, Part) or item.slot != slot:
                continue  # a stray, or a new connection: the transport has subscribed anew and all of it comes again
            found = _preamble(item.data)
            if found is None or found.kind != "model":
                continue
            if found.key != key:
                return None
            seen.add(found.number)
            done = _assemble(assembler, "slot", item.data, self._clock.now_ns(), found)
            if done is not None:
                return done
        return b""

    async def _from_coordinator(self, wanted: VersionId) -> bytes | None:
        """Returns the object as the coordinator sends it to us alone; None: it does not hold it."""
        assembler = chunks.Assembler(_LARGEST, _LARGEST)
        keys = {chunks.model_key(wanted, slot) for slot in range(_SLOTS)}  # strays of other versions come as well
        key = b""
        topic = self._link.topics.fetch(self._link.device)
        while True:
            await self._link.up()
            missing = assembler.missing("reply", key) if key else ()
            await self._link.send(topic, Fetch("model", version=wanted, chunks=missing[:_MISSING]))
            while not isinstance(item := await self._next(), Nudge | None):
                if isinstance(item, Reply):
                    return None
                found = _preamble(item.data)
                if found is None or found.key not in keys:
                    continue
                key = found.key
                data = _assemble(assembler, "reply", item.data, self._clock.now_ns(), found)
                if data is not None:
                    return data

    async def _next(self) -> Part | Reply | Nudge | None:
        """Returns what came next; None: nothing for a while."""
        assert self._mail is not None
        try:
            async with self._clock.deadline(PATIENCE_S):
                return await self._mail.get()
        except TimeoutError:
            return None


def _assemble(
    assembler: chunks.Assembler, source: str, chunk: bytes, now_ns: int, preamble: chunks.Preamble
) -> bytes | None:  # fmt: skip
    try:
        done = assembler.add(source, chunk, now_ns, preamble)
    except WireFormatError as error:
        log.warning("a model that cannot be put together, it is fetched again: %s", error)
        return None
    return None if done is None else done.data


def _preamble(chunk: bytes) -> chunks.Preamble | None:
    try:
        return chunks.Preamble.parse(chunk)
    except WireFormatError as error:
        log.warning("a chunk that cannot be read: %s", error)
        return None


__all__ = ["AT_ONCE", "PATIENCE_S", "REPLY", "Nudge", "Part", "Subscriber"]

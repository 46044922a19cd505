"""Published versions: encoded once, held as bases, sent in slots, announced by the head.

Devices train from exactly the tensors that the broadcast codec decodes to, so these are what a version's digest names
and what is held. Chunks go out first, then the head; a slot is used again only after `min_hold_s`. Whatever could not
be sent because the broker was away is sent again, with all that is live, on the next connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from coordinator.config import PublishConfig
from coordinator.publish.sealing import Snapshot, seal
from coordinator.store import Rollback, Store, Stored
from edge_sdk.codecs import chunks, wire
from edge_sdk.codecs.chain import Chain
from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.compute import SHORT, Compute
from edge_sdk.core.errors import NotConnected, StoreError
from edge_sdk.core.interfaces import Transport
from edge_sdk.core.messages import Head
from edge_sdk.core.records import ModelLayout, ModelVersion, VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.transport.topics import Topics

SLOTS = 4
STORE = "store"  # the ordered lane on which the store and the arithmetic run
KEY_CHAIN = "fp32|zstd"  # of key frames, where the broadcast chain makes deltas
_AT_ONCE = 16  # chunks on their way to the broker
_RETRY_S = 5.0  # after the store refused

log = logging.getLogger(__name__)


class Publisher:
    """Owns what is published.

    Args:
        config: the [publish] section.
        spec: the federation's spec.
        layout: the model's modules.
        transport: how to reach the broker.
        clock: what intervals are counted on.
        compute: encodes and stores.
        store: holds versions.
        announced: called when a version is out; with None when everything was sent again, or nothing could be.
    """

    def __init__(
        self, config: PublishConfig, spec: FederationSpec, layout: ModelLayout, *, transport: Transport, clock: Clock,
        compute: Compute, store: Store, announced: Callable[[Stored | None], None],
    ) -> None:  # fmt: skip
        self._config = config
        self._spec = spec
        self._topics = Topics(spec.name)
        self._transport = transport
        self._clock = clock
        self._compute = compute
        self._store = store
        self._announced = announced
        self._chain = Chain(spec.codec.down, layout)
        self._key_chain = Chain(KEY_CHAIN, layout) if self._chain.is_delta else self._chain
        self._held: dict[int, Stored] = {}
        self._sent_ns: dict[int, int] = {}  # slot → when it was last filled
        self._pending: Snapshot | None = None
        self._released = False
        self._resend = False
        self._working = False
        self._wake = asyncio.Event()
        self.idle = asyncio.Event()  # nothing is on its way out
        self._retry_ns = 0
        self._busy_since_ns = 0
        self.newest: Stored | None = None
        self.best: Stored | None = None
        self.state = "running"

    def recover(self, versions: tuple[Stored, ...], rollbacks: tuple[Rollback, ...], lineage: str) -> None:
        """Takes over what an earlier run published under this lineage; what was undone is never the best."""
        for stored in versions:
            if stored.id.lineage != lineage:
                continue
            self._held[stored.id.number] = stored
            self.newest = stored
            undone = any(r.target < stored.id.number < r.made for r in rollbacks)
            if stored.acc is not None and not undone and (self.best is None or stored.acc > (self.best.acc or 0.0)):
                self.best = stored

    def held(self, number: int) -> VersionId | None:
        """Returns the version with this number if updates may still be based on it."""
        stored = self._held.get(number)
        return None if stored is None else stored.id

    def stored(self, version: VersionId) -> Stored | None:
        """Returns a held version."""
        stored = self._held.get(version.number)
        return stored if stored is not None and stored.id == version else None

    @property
    def busy(self) -> bool:
        """Says whether a version is on its way out."""
        return self._pending is not None or self._working or self._resend

    def waited_ns(self) -> int:
        """Returns for how long a version has been on its way out; 0: none is."""
        return self._clock.now_ns() - self._busy_since_ns if self.busy else 0

    @property
    def ready_ns(self) -> int:
        """The earliest time at which the next version may go out."""
        if self.newest is None:
            return self._retry_ns
        slot = (self.newest.order + 1) % SLOTS
        last_ns = max(self._sent_ns.values(), default=0)
        free_ns = self._sent_ns[slot] + round(self._config.min_hold_s * NS) if slot in self._sent_ns else 0
        interval_ns = last_ns + round(self._config.min_interval_s * NS) if self._sent_ns else 0
        return max(interval_ns, free_ns, self._retry_ns)

    def publish(self, snapshot: Snapshot) -> None:
        """Takes a snapshot on its way."""
        self._busy_since_ns = self._clock.now_ns()
        self._pending = snapshot
        self.idle.clear()
        self._wake.set()

    def hold(self) -> None:
        """The federation may be another coordinator's: nothing goes out until `release`."""
        self._released = False

    def release(self) -> None:
        """The federation is ours, on a new connection: an embedded broker has forgotten everything."""
        self._released = True
        self._busy_since_ns = self._busy_since_ns if self.busy else self._clock.now_ns()
        self._resend = True
        self.idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Sends whatever there is to send, for ever."""
        while True:
            self._wake.clear()
            if self._resend:
                self._working, self._resend = True, False
                await self._send_live()
                self._working = False
                self._announced(None)
            elif self._pending is not None:
                await self._publish(self._pending)
            else:
                self.idle.set()
                await self._wake.wait()

    async def _publish(self, snapshot: Snapshot) -> None:
        self._working, self._pending = True, None
        try:
            stored = await self._seal(snapshot)
        except StoreError as error:
            log.error("version %d cannot be published: %s", snapshot.number, error)
            self._retry_ns = self._clock.now_ns() + round(_RETRY_S * NS)
            self._working = False
            self._announced(None)
            return
        self._held[stored.id.number] = stored
        await self._send(stored)
        self.newest = stored
        await self.send_head()
        self._working = False
        self._announced(stored)

    async def _seal(self, snapshot: Snapshot) -> Stored:
        order = 0 if self.newest is None else self.newest.order + 1
        base = await self._base(order)
        chain = self._key_chain if base is None else self._chain
        sealed = await self._compute.run(
            "publish", 0, seal, chain, snapshot, lineage=self._store.lineage, slot=order % SLOTS, base=base
        )
        stored = Stored(sealed.published, order, snapshot.updates)
        await self._compute.run(STORE, 0, self._store.save_version, stored, sealed.tensors, sealed.data)
        return stored

    async def _base(self, order: int) -> ModelVersion | None:
        """Returns the key frame that the next version is a delta against; None: it is a key frame itself."""
        if not self._chain.is_delta or self.newest is None or order % self._config.key_every == 0:
            return None
        frame = self.newest.published.base or self.newest.id
        if self.stored(frame) is None:
            return None
        return ModelVersion(frame, await self._compute.run(STORE, 0, self._store.tensors, frame))

    async def _send(self, stored: Stored) -> bool:
        """Publishes the chunks of a version; False if the connection is or went down."""
        published = stored.published
        data = await self._compute.run(STORE, 0, self._store.data, stored.id)
        parts = await self._compute.run(
            SHORT, 0, chunks.split, data, "model", chunks.model_key(stored.id, published.slot),
            digest=published.object_digest,
        )  # fmt: skip
        self._sent_ns[published.slot] = self._clock.now_ns()
        topics = [self._topics.model_chunk(published.slot, n) for n in range(len(parts))]
        for start in range(0, len(parts), _AT_ONCE):
            batch = zip(topics[start : start + _AT_ONCE], parts[start : start + _AT_ONCE], strict=True)
            sent = await asyncio.gather(*(self._retain(topic, part) for topic, part in batch))
            if not all(sent):
                return False
        return True

    async def _retain(self, topic: str, payload: bytes) -> bool:
        if not self._released:
            return False  # everything goes out once more when the federation is ours
        try:
            await self._transport.publish(topic, payload, retain=True)
        except NotConnected:
            return False  # Connected comes, and with it everything once more
        return True

    async def _send_live(self) -> None:
        live: dict[int, Stored] = {}
        for stored in sorted(self._held.values(), key=lambda s: s.order):
            live[stored.published.slot] = stored
        for stored in sorted(live.values(), key=lambda s: s.order):
            if not await self._send(stored):
                return
        await self.send_head()

    async def send_head(self) -> None:
        """Announces newest, best and the state of the federation."""
        if self.newest is None:
            return
        best = None if self.best is None else self.best.published
        head = Head(self.newest.published, self._spec.digest, best, self.state)
        await self._retain(self._topics.head, wire.encode(head))

    async def chunks_of(self, version: VersionId, numbers: tuple[int, ...]) -> list[bytes]:
        """Returns chunks of a held version, () = all; [] if it is not held."""
        stored = self.stored(version)
        if stored is None:
            return []
        try:
            data = await self._compute.run(STORE, 0, self._store.data, version)
        except StoreError as error:
            log.error("version %d: %s", version.number, error)
            return []
        key = chunks.model_key(version, stored.published.slot)
        parts = await self._compute.run(
            SHORT, 0, chunks.split, data, "model", key, digest=stored.published.object_digest
        )
        return [parts[n] for n in numbers if n < len(parts)] if numbers else parts

    def evaluated(self, stored: Stored, acc: float) -> bool:
        """Remembers how a version did; returns whether it is the best so far."""
        scored = replace(stored, acc=acc)
        if stored.id.number in self._held:
            self._held[stored.id.number] = scored
        if self.newest is not None and self.newest.id == stored.id:
            self.newest = scored
        better = self.best is None or self.best.acc is None or acc > self.best.acc
        if better:
            self.best = scored
        return better

    async def prune(self, bases: frozenset[int]) -> bool:
        """Drops versions that nothing needs; returns whether a checkpoint would make room.

        Args:
            bases: numbers that open tasks name.
        """
        frames = {s.published.base.number for s in self._held.values() if s.published.base is not None}
        best = set() if self.best is None else {self.best.id.number}
        held, full = await self._compute.run(
            STORE, 0, self._store.prune, bases | frames | best,
            newest=self._config.versions, budget_bytes=int(self._config.base_budget_mb * 1e6),
        )  # fmt: skip
        for number in self._held.keys() - held:
            del self._held[number]
        if self.best is not None and self.best.id.number not in self._held:
            self.best = None
        return full


__all__ = ["SLOTS", "STORE", "Publisher"]

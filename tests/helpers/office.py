"""The coordinator's end of the wire, by hand: says what a test tells it to, and notes what it hears."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from edge_sdk.codecs import chunks, wire
from edge_sdk.codecs.chain import Chain
from edge_sdk.core.clock import Clock
from edge_sdk.core.errors import NotConnected
from edge_sdk.core.interfaces import Connected, Message, RoundSet, RoundSource, Transport
from edge_sdk.core.messages import Fetch, Head, Plan, Published, Reply, SpecMessage, Status, Task
from edge_sdk.core.records import (
    Array,
    Arrival,
    Dataset,
    ModelTensors,
    ModelVersion,
    RoundData,
    Segments,
    Update,
    UpdateKey,
    VersionId,
)  # fmt: skip
from edge_sdk.core.spec import FederationSpec, MethodSpec, ModalitySpec, ModelSpec, TrainingSpec, WindowSpec
from edge_sdk.methods.base import find
from edge_sdk.models import build
from edge_sdk.transport.topics import Topics

LINEAGE = "ab" * 16


def small_spec(
    *, method: str = "fedasync", up: str = "delta|int8|zstd", modalities: tuple[str, ...] = ("acc", "gyr")
) -> FederationSpec:
    return FederationSpec(
        name="home",
        modalities=tuple(ModalitySpec(name=m, shape=(3, 16), rate_hz=16.0) for m in modalities),
        classes=("sit", "walk"),
        window=WindowSpec(length_s=1.0, hop_s=0.5, deadline_s=4.0),
        model=ModelSpec(feature_dim=4),
        method=MethodSpec(name=method),
        training=TrainingSpec(epochs=1, batch_size=8, lr=0.05),
        codec={"up": up, "down": "fp32|zstd"},
    )


def small_data(spec: FederationSpec, n: int = 24, seed: int = 0) -> RoundData:
    rng = np.random.default_rng(seed)
    y = np.arange(n, dtype=np.int64) % len(spec.classes)
    x = {
        m.name: (rng.standard_normal((n, *m.shape)) + y.reshape(-1, *[1] * len(m.shape))).astype(np.float32)
        for m in spec.modalities
    }
    return RoundData(np.arange(n, dtype=np.int64), y, x, {m: np.ones(n, bool) for m in x})


class TableRound(RoundSet):
    """A round set whose modalities arrive after given seconds; None: never."""

    def __init__(self, data: RoundData, after_s: dict[str, float], clock: Clock) -> None:
        self.indices = data.indices
        self._data = data
        self._clock = clock
        self._start_ns = clock.now_ns()
        self._left = deque(sorted(after_s.items(), key=lambda item: item[1]))

    async def next_arrival(self) -> Arrival | None:
        if not self._left:
            return None
        m, after_s = self._left[0]
        await self._clock.sleep_until(self._start_ns + round(after_s * 1e9))
        self._left.popleft()
        return Arrival(m, self._clock.now_ns(), len(self.indices))

    def data(self, modalities: tuple[str, ...]) -> RoundData:
        d = self._data
        return RoundData(d.indices, d.y, {m: d.x[m] for m in modalities}, {m: d.has[m] for m in modalities})


class Table(RoundSource):
    """Round sets of one table, every modality of which arrives after given seconds."""

    def __init__(self, data: RoundData, clock: Clock, after_s: dict[str, float] | None = None) -> None:
        self.data = data
        self.clock = clock
        self.after_s = after_s or {m: 1.0 + i for i, m in enumerate(data.x)}
        self.asked: list[tuple[int, tuple[str, ...]]] = []

    async def freeze(self, task_number: int, modalities: tuple[str, ...]) -> TableRound:
        self.asked.append((task_number, modalities))
        return TableRound(self.data, {m: s for m, s in self.after_s.items() if m in modalities}, self.clock)


@dataclass
class Office:
    """One coordinator's worth of messages over a transport."""

    spec: FederationSpec
    transport: Transport
    clock: Clock
    tasks: int = 10**9  # to give in all
    deadline_s: float = 0.0
    verdict: list[Reply | None] = field(default_factory=list)  # replies to the next updates; then accepted
    mute: bool = False  # hears everything and says nothing
    updates: list[Update] = field(default_factory=list)
    heard: list[object] = field(default_factory=list)
    given: int = 0
    repeated: int = 0  # updates that came again after their reply
    chunk_bytes: int = chunks.MAX_CHUNK
    drop_chunks: set[int] = field(default_factory=set)  # chunk numbers that get lost once

    def __post_init__(self) -> None:
        self.topics = Topics(self.spec.name)
        needs = find(self.spec.method.name).needs
        self.layout = build.layout(self.spec, needs)
        self.up = Chain(self.spec.codec.up, self.layout)
        self.down = Chain(self.spec.codec.down, self.layout)
        self.tensors: ModelTensors = build.initial_tensors(self.spec, needs, 7)
        self.versions: dict[VersionId, tuple[bytes, int]] = {}
        self.head: Head | None = None
        self.version: VersionId | None = None
        self.open: dict[str, Task] = {}
        self.settled: dict[UpdateKey, Reply] = {}
        self.assembler = chunks.Assembler(1 << 28, 1 << 28)
        self.changed = asyncio.Event()

    async def run(self) -> None:
        await self.transport.start()
        await self.transport.subscribe(*self.topics.coordinator_filters)
        self.seal()
        async for event in self.transport.events():
            with suppress(NotConnected):  # lost with the connection; devices ask again when it is back
                if isinstance(event, Connected):
                    await self.publish()
                elif isinstance(event, Message):
                    await self.hear(event)

    def seal(self) -> VersionId:
        """Makes the tensors the next version."""
        number = len(self.versions)
        encoded = self.down.roundtrip_model(self.tensors)
        version = VersionId(LINEAGE, number, wire.tensors_digest(encoded.decoded))
        self.tensors = encoded.decoded
        self.versions[version] = (self.down.seal_model(encoded, version), number % 4)
        self.version = version
        return version

    async def publish(self, *, head: bool = True) -> None:
        message = SpecMessage(self.spec.canonical(), self.spec.digest, "office")
        await self.transport.publish(self.topics.spec, wire.encode(message), retain=True)
        assert self.version is not None
        data, slot = self.versions[self.version]
        parts = self.parts(self.version)
        for n, part in enumerate(parts):
            await self.transport.publish(self.topics.model_chunk(slot, n), part, retain=True)
        published = Published(self.version, len(data), len(parts), slot, wire.object_digest(data), self.spec.codec.down)
        if head:
            self.head = Head(published, self.spec.digest)
            await self.transport.publish(self.topics.head, wire.encode(self.head), retain=True)

    def parts(self, version: VersionId) -> list[bytes]:
        data, slot = self.versions[version]
        parts = chunks.split(data, "model", chunks.model_key(version, slot), chunk_bytes=self.chunk_bytes)
        return [bytes(part) for part in parts]  # as a network would bring them

    async def hear(self, message: Message) -> None:
        where = self.topics.parse(message.topic)
        if where.kind == "status":
            self.heard.append(wire.decode(Status, message.payload))
        elif where.kind == "fetch":
            fetch = wire.decode(Fetch, message.payload)
            self.heard.append(fetch)
            if not self.mute:
                await self.answer(where.device, fetch)
        elif where.kind == "update":
            await self.chunk(where.device, message.payload)
        self.changed.set()

    async def answer(self, device: str, fetch: Fetch) -> None:
        if fetch.want == "task":
            await self.give(device)
        elif fetch.want == "model" and fetch.version in self.versions:
            parts = self.parts(fetch.version)
            for n in fetch.chunks or range(len(parts)):
                await self.transport.publish(self.topics.reply(device), parts[n])
        elif fetch.want == "model":
            await self.reply(device, Reply("unknown", version=fetch.version))
        elif fetch.key in self.settled:
            await self.reply(device, self.settled[fetch.key])
        else:
            assert fetch.key is not None
            missing = self.assembler.missing(device, chunks.update_key(fetch.key, fetch.digest))
            kind = "missing" if missing else "unknown"
            await self.reply(device, Reply(kind, key=fetch.key, chunks=missing))

    async def give(self, device: str) -> None:
        task = self.open.get(device)
        if task is None:
            if self.given >= self.tasks:
                await self.reply(device, Reply("no_task"))
                return
            self.given += 1
            task = self.task(device)
        self.open[device] = task
        await self.transport.publish(self.topics.task(device), wire.encode(task))

    def task(self, device: str) -> Task:
        assert self.version is not None
        t = self.spec.training
        plan = Plan(self.spec.modality_names, t.epochs, t.lr, t.batch_size)
        return Task(f"t{self.given}-{device}", "train", self.version, plan, self.given, self.deadline_s)

    async def chunk(self, device: str, payload: bytes) -> None:
        number = chunks.Preamble.parse(payload).number
        if number in self.drop_chunks:
            self.drop_chunks.discard(number)
            return
        done = self.assembler.add(device, payload, self.clock.now_ns())
        if done is None or self.mute:
            return
        update = self.up.decode_update(done.data)
        if update.key in self.settled:
            self.repeated += 1
            await self.reply(device, self.settled[update.key])
            return
        self.updates.append(update)
        verdict = self.verdict.pop(0) if self.verdict else None
        reply = Reply("accepted", key=update.key, version=self.version)
        if verdict is not None:
            reply = Reply(verdict.kind, key=update.key, reason=verdict.reason, detail=verdict.detail)
        self.settled[update.key] = reply
        self.open.pop(device, None)
        await self.reply(device, reply)

    async def reply(self, device: str, reply: Reply) -> None:
        await self.transport.publish(self.topics.reply(device), wire.encode(reply))

    async def until(self, count: int) -> None:
        """Waits for so many updates."""
        while len(self.updates) < count:
            self.changed.clear()
            await self.changed.wait()


def equal(a: ModelTensors, b: ModelTensors) -> bool:
    return all(np.array_equal(a[m].params, b[m].params) for m in a) and sorted(a) == sorted(b)


__all__ = [
    "LINEAGE", "Array", "Dataset", "ModelVersion", "Office", "Segments", "Table", "TableRound", "equal", "small_data",
    "small_spec",
]  # fmt: skip

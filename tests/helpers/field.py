"""A coordinator and scripted devices on the memory broker: devices that speak the protocol but train nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from coordinator.config import (
    AdmissionConfig,
    CoordinatorConfig,
    EvaluateConfig,
    PublishConfig,
    ScheduleConfig,
    StopConfig,
    StoreConfig,
)  # fmt: skip
from coordinator.service import Coordinator
from coordinator.store import MemoryStore, Store
from edge_sdk.codecs import chunks, wire
from edge_sdk.codecs.chain import Chain
from edge_sdk.core.clock import Clock, VirtualClock, run_virtual
from edge_sdk.core.compute import InlineCompute
from edge_sdk.core.interfaces import Message, Transport
from edge_sdk.core.messages import Fetch, Head, Reply, Status, Task
from edge_sdk.core.records import Dataset, ModelTensors, ModelVersion, Segments, Update, UpdateKey, VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.models import build
from edge_sdk.transport.memory import MemoryBroker, MemoryTransport
from edge_sdk.transport.topics import Topics
from tests.helpers import learning

T = TypeVar("T")

PATIENCE_S = 30.0


def spec_of(**options: Any) -> FederationSpec:
    """Returns a small federation under FedAsync, whose rates are easy to work out: 0.5 (τ + 1)^−0.5."""
    return learning.spec(2, method="fedasync", config={"alpha": 0.5, "a": 0.5}, **options)


def config_of(**sections: Any) -> CoordinatorConfig:
    """Returns a configuration that publishes everything at once; sections replace these."""
    base = CoordinatorConfig(
        store=StoreConfig(checkpoint_every=3),
        schedule=ScheduleConfig(task_deadline_s=0.0),
        publish=PublishConfig(min_interval_s=0.0, min_hold_s=0.0),
        evaluate=EvaluateConfig(every_updates=1),
        stop=StopConfig(),
        admission=AdmissionConfig(enrolment="open", norm_factor=0.0),
    )
    return base.model_copy(update=sections)


def dataset(n: int = 60, seed: int = 3) -> Dataset:
    """Returns held-out rows for `spec_of`."""
    rows = learning.round_data(n, 2, seed=seed)
    return Dataset("held-out", rows.x, rows.y, ("a", "b", "c"), rows.has)


class Peer:
    """A scripted device."""

    def __init__(
        self, transport: Transport, spec: FederationSpec, device: str, clock: Clock, *, incarnation: int = 1
    ) -> None:  # fmt: skip
        self.transport = transport
        self.spec = spec
        self.device = device
        self.clock = clock
        self.incarnation = incarnation
        self.sequence = 0
        self.topics = Topics(spec.name)
        self.layout = build.layout(spec)
        self.chain = Chain(spec.codec.up, self.layout)
        self.replies: asyncio.Queue[Reply] = asyncio.Queue()
        self.tasks: asyncio.Queue[Task] = asyncio.Queue()
        self.parts: asyncio.Queue[bytes] = asyncio.Queue()
        self.head: Head | None = None
        self.heads: list[Head] = []
        self.assembler = chunks.Assembler(1 << 30, 1 << 30)

    async def run(self) -> None:
        async for event in self.transport.events():
            if isinstance(event, Message):
                kind = self.topics.parse(event.topic).kind
                if kind == "task":
                    self.tasks.put_nowait(wire.decode(Task, event.payload))
                elif kind == "head":
                    self.head = wire.decode(Head, event.payload)
                    self.heads.append(self.head)
                elif kind == "reply" and chunks.is_chunk(event.payload):
                    self.parts.put_nowait(event.payload)
                elif kind == "reply":
                    self.replies.put_nowait(wire.decode(Reply, event.payload))

    async def connect(self) -> None:
        t = self.topics
        await self.transport.subscribe(t.spec, t.head, t.task(self.device), t.reply(self.device))
        await self.transport.start()

    async def say(self, state: str = "online", **changes: Any) -> None:
        status = Status(self.device, state, self.incarnation, self.spec.digest, self.spec.modality_names)
        await self.transport.publish(
            self.topics.status(self.device), wire.encode(replace(status, **changes)), retain=True
        )

    async def ask(self, fetch: Fetch) -> None:
        await self.transport.publish(self.topics.fetch(self.device), wire.encode(fetch))

    async def task(self) -> Task:
        await self.ask(Fetch("task"))
        return await self.within(self.tasks.get)

    async def reply(self, kind: str = "") -> Reply:
        while True:
            reply = await self.within(self.replies.get)
            if (reply.kind == kind) if kind else reply.kind != "no_task":
                return reply

    async def within(self, get: Callable[[], Awaitable[T]]) -> T:
        async with self.clock.deadline(PATIENCE_S):
            return await get()

    async def model(self, version: VersionId) -> ModelVersion:
        """Fetches a version from the coordinator itself."""
        await self.ask(Fetch("model", version=version))
        while True:
            done = self.assembler.add("coordinator", await self.within(self.parts.get), self.clock.now_ns())
            if done is not None:
                return Chain(self.spec.codec.down, self.layout).decode_model(done.data)

    def update(self, task: Task, *, value: float | None = None, **changes: Any) -> Update:
        """Returns a made-up update of all modules: every param moves by `value`, or at random by (device, sequence)."""
        rng = np.random.default_rng([self.sequence, *self.device.encode()])
        tensors = {}
        for name, module in self.layout.items():
            step = rng.normal(0.0, 0.1, module.params) if value is None else np.full(module.params, value)
            stats, counters = np.zeros(module.stats, np.float32), np.zeros(module.counters, np.int64)
            tensors[name] = Segments(step.astype(np.float32), stats, counters)
        update = Update(
            UpdateKey(self.device, self.incarnation, self.sequence), task.id, task.base, self.spec.digest, "delta",
            tensors, 32, 4, task.plan.modalities,
        )  # fmt: skip
        self.sequence += 1
        return replace(update, **changes)

    def encode(self, update: Update) -> bytes:
        return self.chain.encode_update(update).data

    def split(self, data: bytes, key: UpdateKey, chunk_bytes: int = chunks.MAX_CHUNK) -> list[bytes]:
        parts = chunks.split(data, "update", chunks.update_key(key, wire.object_digest(data)), chunk_bytes=chunk_bytes)
        return [bytes(part) for part in parts]  # as a network would bring them

    async def send(self, data: bytes, key: UpdateKey, chunk_bytes: int = chunks.MAX_CHUNK) -> None:
        for part in self.split(data, key, chunk_bytes):
            await self.transport.publish(self.topics.update(self.device), part)

    async def deliver(self, update: Update) -> Reply:
        """Sends an update and returns its reply."""
        await self.send(self.encode(update), update.key)
        while True:
            reply = await self.reply()
            if reply.key == update.key:
                return reply

    async def contribute(self, **changes: Any) -> Reply:
        """Asks for a task and answers it."""
        return await self.deliver(self.update(await self.task(), **changes))


@dataclass
class Field:
    """A running federation."""

    clock: VirtualClock
    broker: MemoryBroker
    center: Coordinator
    spec: FederationSpec
    events: list[Any]
    group: Any
    running: asyncio.Task[None]
    peers: dict[str, Peer] = field(default_factory=dict)

    async def peer(self, device: str = "d1", *, client: str = "", online: bool = True, **options: Any) -> Peer:
        """Returns a device that is connected and has said so."""
        peer = Peer(MemoryTransport(self.broker, client or device), self.spec, device, self.clock, **options)
        self.group.start(peer.run(), name=f"peer {client or device}")
        await peer.connect()
        if online:
            await peer.say()
        self.peers[client or device] = peer
        return peer

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]

    async def settle(self) -> None:
        """Lets everything happen that takes no time."""
        await self.clock.sleep(1e-6)

    async def published(self, number: int) -> Head:
        """Waits until a version is out and returns the head."""
        async with self.clock.deadline(PATIENCE_S):
            while self.center.publisher.newest is None or self.center.publisher.newest.id.number < number:
                await self.clock.sleep(1e-3)
        await self.settle()
        return wire.decode(Head, self.broker.retained[Topics(self.spec.name).head])

    async def published_after(self, seconds: float) -> Head:
        """Returns the head when so much time and a moment has passed."""
        await self.clock.sleep(seconds + 0.1)
        return wire.decode(Head, self.broker.retained[Topics(self.spec.name).head])


@asynccontextmanager
async def federation(
    clock: VirtualClock, *, config: CoordinatorConfig | None = None, spec: FederationSpec | None = None,
    store: Store | None = None, test: Dataset | None = None, broker: MemoryBroker | None = None,
    init: ModelTensors | None = None, client: str = "coordinator", observer: Callable[[Any], None] | None = None,
) -> AsyncIterator[Field]:  # fmt: skip
    """Runs a coordinator for as long as the block lasts."""
    spec, broker = spec or spec_of(), broker or MemoryBroker(clock)
    events: list[Any] = []

    def observe(event: Any) -> None:
        events.append(event)
        if observer is not None:
            observer(event)

    center = Coordinator(
        config or config_of(), spec, transport=MemoryTransport(broker, client), clock=clock,
        compute=InlineCompute(), store=store or MemoryStore(), test=test, init=init, observer=observe,
    )  # fmt: skip
    async with clock.group() as group:
        running = group.start(center.run(), name="coordinator")
        await clock.sleep(1e-6)
        yield Field(clock, broker, center, spec, events, group, running)
        group.cancel()


def play(script: Callable[[Field], Awaitable[T]], **options: Any) -> T:
    """Runs a script against a federation under virtual time and returns what it returns."""

    async def main(clock: VirtualClock) -> T:
        async with federation(clock, **options) as world:
            return await script(world)

    return run_virtual(main)


__all__ = ["PATIENCE_S", "Field", "Peer", "config_of", "dataset", "federation", "play", "spec_of"]

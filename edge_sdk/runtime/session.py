"""What a device does under one spec: everything in here ends when the spec changes, and begins anew with the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from edge_sdk.codecs.chain import Chain
from edge_sdk.core.clock import Clock, Group
from edge_sdk.core.compute import SHORT, Compute
from edge_sdk.core.config import DeviceConfig
from edge_sdk.core.errors import EngineError, StoreError
from edge_sdk.core.events import Observer
from edge_sdk.core.interfaces import RoundSource
from edge_sdk.core.messages import Head, LabelMessage, Reply
from edge_sdk.core.records import ModelLayout, ModelTensors, ModelVersion, VersionId
from edge_sdk.core.running_mean import RunningMean
from edge_sdk.core.spec import FederationSpec
from edge_sdk.runtime import graphs
from edge_sdk.runtime.budget import Ask
from edge_sdk.runtime.desk import Desk
from edge_sdk.runtime.guard import Guard
from edge_sdk.runtime.inference import Predictor
from edge_sdk.runtime.link import Link
from edge_sdk.runtime.sensing import Labelling, Sensing
from edge_sdk.runtime.state import MODEL, SOLO, STATE, DeviceState
from edge_sdk.runtime.subscriber import REPLY, Subscriber
from edge_sdk.runtime.swapping import NOTE_CHARS, Swapper
from edge_sdk.runtime.timebase import StreamTime
from edge_sdk.runtime.upload import Uploader
from edge_sdk.runtime.workshop import Workshop

if TYPE_CHECKING:  # torch is imported only where training is enabled
    from edge_sdk.learn.records import PhaseJob
    from edge_sdk.streams.reservoir import Reservoir

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a device lends to its sessions."""

    config: DeviceConfig
    clock: Clock
    stream_clock: Clock
    compute: Compute
    state: DeviceState
    rounds: RoundSource | None  # None: the device's own reservoir
    cost: Callable[[PhaseJob], int]
    budget: Ask
    emit: Observer
    desk: Desk
    link: Link | None  # None: the device works by itself
    uploader: Uploader | None
    ask: Callable[[], None]
    announce: Callable[[], None]  # the device's status has changed

    @property
    def device(self) -> str:
        """The device's id."""
        return self.config.device.id


class Session:
    """A device under one spec.

    Args:
        parts: what the device lends.
        spec: the federation's spec.
        modalities: those of the spec that the device has.
    """

    def __init__(self, parts: Parts, spec: FederationSpec, modalities: tuple[str, ...]) -> None:
        self.spec = spec
        self.modalities = modalities
        self.sensing: Sensing | None = None
        self.labelling: Labelling | None = None
        self.predictor: Predictor | None = None
        self.swapper: Swapper | None = None
        self._parts = parts
        self._own_model: asyncio.Queue[ModelTensors] = asyncio.Queue(1)  # for follow = "local"
        self.subscriber: Subscriber | None = None
        if parts.link is not None:
            self.subscriber = Subscriber(
                parts.link, partial(layout, parts.config, spec), clock=parts.clock, compute=parts.compute,
                emit=parts.emit,
            )  # fmt: skip

    def head(self, head: Head) -> None:
        """Takes a head from the wire; one of another spec waits for that spec."""
        if self.subscriber is not None and head.spec_digest == self.spec.digest:
            self.subscriber.announced(head)

    def chunk(self, payload: bytes, slot: int = REPLY) -> None:
        """Takes a chunk of a model from the wire."""
        if self.subscriber is not None:
            self.subscriber.chunk(payload, slot)

    def heard(self, reply: Reply) -> None:
        """Takes the answer that a version is not held any more."""
        if self.subscriber is not None:
            self.subscriber.heard(reply)

    def nudge(self) -> None:
        """The connection is new."""
        if self.subscriber is not None:
            self.subscriber.nudge()

    def label(self, message: LabelMessage) -> None:
        """Takes a label from the wire."""
        if self.labelling is not None:
            self.labelling.feed(message)

    async def run(self) -> None:
        """Senses, predicts and trains, until it is cancelled."""
        parts = self._parts
        try:
            await parts.compute.run(STATE, 0, parts.state.keep_spec, self.spec)
        except StoreError as error:
            log.error("%s: the spec is not kept over a restart: %s", parts.device, error)
        async with parts.clock.group() as group:
            rounds = parts.rounds
            if rounds is None:
                rounds = self._sense(group)
            if parts.config.training.enabled:
                self._train(group, rounds)
            if self.swapper is not None:
                group.start(self._follow(self.swapper), name=f"{parts.device} follow")

    def _sense(self, group: Group) -> RoundSource:
        from edge_sdk.runtime.labels import LabelJoiner
        from edge_sdk.streams.journal import data_digest
        from edge_sdk.streams.pipeline import Streams
        from edge_sdk.streams.reservoir import Reservoir
        from edge_sdk.streams.watch import STATISTICS, Watches

        parts, config = self._parts, self._parts.config
        sensors = {m: config.sensors[m] for m in self.modalities if m in config.sensors}
        watches = Watches(config.health, parts.announce)
        streams = Streams(
            self.spec, sensors, parts.stream_clock, join_horizon_s=config.reservoir.join_horizon_s, watches=watches
        )  # fmt: skip
        folder = None if parts.state.folder is None else parts.state.folder / "reservoir"
        reservoir = Reservoir(self.spec, config.reservoir, parts.stream_clock, folder)
        if folder is not None and config.reservoir.persist:
            watches.keep(folder / STATISTICS, data_digest(self.spec))
        time = StreamTime(
            parts.clock, parts.stream_clock,
            1.0 if parts.stream_clock is parts.clock else config.device.stream_speed,
        )  # fmt: skip
        if config.inference.enabled:
            self._predict(time, reservoir)
        publish = parts.link if config.inference.publish else None
        self.sensing = Sensing(
            streams, reservoir, self.predictor, publish=publish, refine=config.inference.refine,
            device=parts.device, compute=parts.compute,
        )  # fmt: skip
        joiner = LabelJoiner(self.spec.window, self.spec.classes, horizon_s=config.reservoir.join_horizon_s)
        self.labelling = Labelling(
            config.labels, joiner, reservoir, clock=parts.stream_clock, epoch_ns=streams.epoch_ns, time=time,
            device=parts.device, compute=parts.compute,
        )  # fmt: skip
        group.start(self.sensing.run(), name=f"{parts.device} sense")
        for name, source in self.labelling.sources.items():
            group.start(self.labelling.run(source), name=f"{parts.device} labels {name}")
        if publish is not None:
            group.start(self.sensing.publish(publish), name=f"{parts.device} publish")
        return reservoir

    def _predict(self, time: StreamTime, reservoir: Reservoir) -> None:
        parts, config = self._parts, self._parts.config.inference
        self.predictor = Predictor(
            self.spec, parts.device, clock=parts.clock, time=time, emit=parts.emit, changed=parts.announce
        )
        workshop = Workshop(self.spec, parts.config, parts.state.folder, parts.compute)
        self.swapper = Swapper(
            self.predictor, workshop.tools, device=parts.device, clock=parts.clock, compute=parts.compute,
            emit=parts.emit, changed=parts.announce, heal=workshop.heal,
            guard=Guard(reservoir.labelled_windows, config.guard_windows, config.guard_margin),
        )  # fmt: skip

    @property
    def notes(self) -> tuple[str, ...]:
        """What is wrong with this device, for its status."""
        troubles = [part.trouble for part in (self.predictor, self.swapper) if part is not None]
        if self.sensing is not None:
            windower = self.sensing.streams.windower
            troubles += [*windower.watches.notes, *(lateness.note for lateness in windower.lateness.values())]
        return tuple(trouble[:NOTE_CHARS] for trouble in troubles if trouble)

    def _train(self, group: Group, rounds: RoundSource) -> None:
        from edge_sdk.runtime.solo import Solo
        from edge_sdk.runtime.trainer import Trainer
        from edge_sdk.runtime.training import TaskLoop

        parts = self._parts
        trainer = Trainer(
            self.spec, modalities=self.modalities, rounds=rounds, state=parts.state, device=parts.device,
            seed=parts.config.device.seed, clock=parts.clock, compute=parts.compute, cost=parts.cost,
            budget=parts.budget, emit=parts.emit,
        )  # fmt: skip
        if parts.link is None or parts.uploader is None or self.subscriber is None:
            solo = Solo(
                self.spec, trainer, state=parts.state, device=parts.device, seed=parts.config.device.seed,
                stream_clock=parts.stream_clock, compute=parts.compute, emit=parts.emit, own=self._own,
            )  # fmt: skip
            group.start(solo.run(), name=f"{parts.device} solo")
            return
        loop = TaskLoop(
            self.spec, trainer=trainer, chain=Chain(self.spec.codec.up, layout(parts.config, self.spec)),
            desk=parts.desk, subscriber=self.subscriber, uploader=parts.uploader, outbox=parts.state.outbox,
            link=parts.link, clock=parts.clock, compute=parts.compute, emit=parts.emit, ask=parts.ask, own=self._own,
        )  # fmt: skip
        group.start(loop.run(), name=f"{parts.device} train")

    def _own(self, tensors: ModelTensors) -> None:
        """The device has trained a model of its own; only the newest counts, and only for inference."""
        if not self._parts.config.inference.enabled:
            return
        if self._own_model.full():
            self._own_model.get_nowait()
        self._own_model.put_nowait(tensors)

    async def _follow(self, swapper: Swapper) -> None:
        """Puts models in place as they come."""
        parts = self._parts
        alone = self.subscriber is None
        kept = await parts.compute.run(STATE, 0, parts.state.model, SOLO if alone else MODEL, self.spec.shape_digest)
        current = None
        if kept is not None and await swapper.offer(None if alone else kept.id, kept.tensors) and not alone:
            current = kept.id
        if self.subscriber is not None:
            await self._follow_coordinator(swapper, self.subscriber, current)
        while True:
            await swapper.offer(None, await self._own_model.get())

    async def _follow_coordinator(self, swapper: Swapper, subscriber: Subscriber, current: VersionId | None) -> None:
        """Takes the newest or the best version, for ever; with follow = "local" only until there is an own model."""
        config = self._parts.config.inference
        follow, mean = config.follow, None
        if follow == "newest" and config.running_mean < 1.0:
            mean = RunningMean(config.running_mean)
        while True:
            wanted = await subscriber.other_than(current, best=follow == "best")
            if follow == "local" and not self._own_model.empty():
                return
            current = wanted
            try:
                version = await subscriber.version(wanted)
            except EngineError as error:  # the layout of a device without torch is told by its graph
                swapper.refuse(wanted, error)
                continue
            if version is not None and await swapper.offer(version.id, await self._served(version, mean)):
                await self._keep(version)
            if follow == "local":
                return

    async def _served(self, version: ModelVersion, mean: RunningMean | None) -> ModelTensors:
        """Returns what predicts after a version has come: itself, or the mean up to it."""
        if mean is None:
            return version.tensors
        return await self._parts.compute.run(SHORT, 0, mean.take, version.id, version.tensors)

    async def _keep(self, version: ModelVersion) -> None:
        """Keeps a model that serves, for a start without a coordinator."""
        parts = self._parts
        try:
            await parts.compute.run(STATE, 0, parts.state.keep_model, MODEL, version, self.spec.shape_digest)
        except StoreError as error:
            log.debug("%s: version %d is not kept: %s", parts.device, version.id.number, error)


def layout(config: DeviceConfig, spec: FederationSpec) -> ModelLayout:
    """Returns the layout of a spec's model: computed where the device trains, read from the graph where it does not."""
    if not config.training.enabled and config.inference.graph is not None:
        return graphs.layout_of(config.inference.graph)
    from edge_sdk.methods.base import find
    from edge_sdk.models import build

    return build.layout(spec, find(spec.method.name).needs)


__all__ = ["Parts", "Session", "layout"]

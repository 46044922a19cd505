"""One simulated run: the coordinator's and the devices' own code on one event loop, a clock and the memory transport.

Training is really computed; only its duration is modelled. The same world also runs under the wall clock, with the same
modelled durations slept out, which is how the tests hold the two against each other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

from coordinator.config import (
    AdmissionConfig,
    CoordinatorConfig,
    EvaluateConfig,
    PublishConfig,
    ScheduleConfig,
    StopConfig,
    StoreConfig,
)  # fmt: skip
from coordinator.evaluate import Evaluation, evaluate, unimodal, without
from coordinator.events import Evaluated, Published, RoundClosed, UpdateApplied, UpdateRejected
from coordinator.preparation import Split
from coordinator.service import Coordinator
from coordinator.simulation import ownership
from coordinator.simulation.online import OnlineProfile, OnlineSource
from coordinator.simulation.partition import partition
from coordinator.simulation.profiles import MBA, WorldProfile, link
from coordinator.simulation.regret import Running, running
from coordinator.simulation.report import Applied, Point, Report, Trace, last_median
from coordinator.simulation.world import ModelledCost, ScriptedSource
from coordinator.store import MemoryStore
from edge_sdk.codecs.wire import params_digest
from edge_sdk.core.clock import NS, Clock, WallClock, run_virtual
from edge_sdk.core.compute import ModelledCompute, Stacking
from edge_sdk.core.config import DeviceConfig, DeviceSection, InferenceConfig, SensorConfig
from edge_sdk.core.errors import DataError
from edge_sdk.core.interfaces import RoundSource, Transport
from edge_sdk.core.records import Dataset, Int64, ModelTensors, VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn.local_training import single_thread
from edge_sdk.learn.seeds import derive
from edge_sdk.methods.base import find
from edge_sdk.runtime import jobs
from edge_sdk.runtime.device import Device
from edge_sdk.runtime.state import DeviceState
from edge_sdk.transport.inbox import Traffic
from edge_sdk.transport.memory import MemoryBroker, MemoryTransport

COORDINATOR = "coordinator"
NEVER = 10**9  # updates
TRACES = 200  # at most about so many points of rates and figures in a report


class Link(Protocol):
    """A transport that counts: what a device of a simulation speaks through."""

    traffic: Traffic


Connect = Callable[[str], Transport]  # client's name → its transport, not started


@dataclass(frozen=True, slots=True)
class World:
    """What is simulated, besides spec and data."""

    devices: int
    updates: int
    seed: int
    partition: str | None = None  # None: by subject where there are enough, else IID
    ownership: str = "all"  # which modalities a device has at all: a name in ownership.CASES
    fraction: float = 0.25  # of the devices that is kept busy
    profile: WorldProfile = MBA
    evaluate_every: int = 10  # updates
    running_mean: float = 1.0  # weight of the newest version in the mean that is tested; 1: that version itself
    workers: int = 1  # training processes; 1: in this process
    stack: int = 1  # devices under way at the same time that are trained as one computation, at most; 1: each by itself
    train_on: str = "cpu"  # torch device of such a computation
    online: OnlineProfile | None = None  # a sliding buffer in place of a fixed data set


@dataclass(slots=True)
class Record:
    """Everything that was observed, in order."""

    clock: Clock
    applied: list[Applied] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)
    trace: list[Trace] = field(default_factory=list)
    every: int = 1  # updates between two traces
    rejected: int = 0
    rounds: int = 0  # synchronous ones that made a version
    versions: dict[int, ModelTensors] = field(default_factory=dict)  # by number, where the world asks for them
    keep: Callable[[Published], ModelTensors] | None = None  # reads a version that is to be kept
    progress: Callable[[int], None] = lambda updates: None

    def __call__(self, event: Any) -> None:
        now_s = self.clock.now_ns() / NS
        if isinstance(event, UpdateApplied):
            self.applied.append(Applied(event.device, event.sequence, event.base, event.staleness, now_s))
            if len(self.applied) % self.every == 0:
                said = {**event.figures, **event.payload}
                self.trace.append(Trace(len(self.applied), now_s, dict(event.rates), said, dict(event.norms)))
            self.progress(len(self.applied))
        elif isinstance(event, Evaluated):
            self.curve.append(Point(event.version, now_s, event.acc, dict(event.acc_by_modality)))
        elif isinstance(event, UpdateRejected):
            self.rejected += 1
        elif isinstance(event, Published) and self.keep is not None:
            self.versions[event.version] = self.keep(event)
        elif isinstance(event, RoundClosed):
            self.rounds += bool(event.devices)


class Simulation:
    """A federation in one process.

    Args:
        spec: the federation.
        data: training and test rows.
        world: what is simulated.
        progress: called with the number of updates applied so far.
    """

    def __init__(
        self, spec: FederationSpec, data: Split, world: World, *, progress: Callable[[int], None] | None = None
    ) -> None:
        self.spec = spec
        self.data = data
        self.world = world
        self.progress = progress or (lambda updates: None)

    def run(self) -> Report:
        """Runs under virtual time and returns the report."""
        single_thread()
        return run_virtual(self.play)

    def run_on_wall_clock(self, speed: float) -> Report:
        """Runs the same world in real time, `speed` times as fast."""
        single_thread()
        return asyncio.run(self.play(WallClock(speed)))

    def check(self) -> None:
        """Raises DataError before anything is trained if a device has too few rows for what the method does."""
        share = find(self.spec.method.name).client_rule(self.spec.method.config).held_out
        if not share:
            return
        fewest, device = min((len(data.y), name) for name, data in zip(self._names(), self._owned(), strict=True))
        if fewest * share < 1.0:
            raise DataError(
                f"{self.spec.method.name} holds out {share:g} of a device's rows for validation, and {device} has only "
                f"{fewest}: use fewer devices, more data, or --option validation={min(0.5, 1.0 / max(2, fewest)):.2g}"
            )

    async def play(self, clock: Clock, connect: Connect | None = None) -> Report:
        """Runs the world on a clock.

        Args:
            clock: virtual, or a wall clock.
            connect: makes transports to a real broker; None: everybody meets in memory.
        """
        wall = WallClock()
        start_ns, wall_ns = clock.now_ns(), wall.now_ns()
        if connect is None:
            numbers = {name: number for number, name in enumerate(self._names())}
            connect = partial(self._in_memory, MemoryBroker(clock), numbers)
        record = Record(clock, progress=self.progress, every=max(1, self.world.updates // TRACES))
        workers = self.world.workers if self.world.workers > 1 else 0
        together = partial(jobs.run_phases, place=self.world.train_on)
        stacking = Stacking(jobs.run_phase, jobs.stack_key, together, self.world.stack)
        compute = ModelledCompute(clock, workers, single_thread, stacking if self.world.stack > 1 else None)
        center = self._coordinator(connect(COORDINATOR), clock, compute, record)
        links = {name: connect(name) for name in self._names()}
        members = self._devices(links, clock, compute)
        try:
            async with clock.group() as group:
                for name, device in members.items():
                    group.start(device.run(), name=name)
                await center.run()
                group.cancel()
        finally:
            for device in members.values():
                device.state.close()
            await compute.aclose()
        final = center.tensors
        return self._report(
            record, final, final if self.world.running_mean == 1.0 else center.tested, _traffic(links),
            virtual_s=(clock.now_ns() - start_ns) / NS, wall_s=(wall.now_ns() - wall_ns) / NS,
        )  # fmt: skip

    def _coordinator(self, link: Transport, clock: Clock, compute: ModelledCompute, record: Record) -> Coordinator:
        world = self.world
        config = CoordinatorConfig(
            schedule=ScheduleConfig(
                policy="free" if world.fraction >= 1.0 else "sampled",
                fraction=world.fraction,
                task_deadline_s=0.0,
                round_deadline_s=0.0,
                seed=world.seed,
                min_devices=world.devices,
            ),
            store=StoreConfig(checkpoint_every=NEVER),
            publish=PublishConfig(every_updates=1, min_interval_s=0.0, min_hold_s=0.0, patience_s=0.0, versions=1),
            evaluate=EvaluateConfig(every_updates=world.evaluate_every, running_mean=world.running_mean),
            stop=StopConfig(updates=world.updates),
            admission=AdmissionConfig(enrolment="open"),
        )
        store = MemoryStore(keep="nothing", lineage=f"{derive(world.seed, 'lineage'):032x}")
        if world.online is not None:
            record.keep = lambda out: store.tensors(VersionId(store.lineage, out.version, out.digest))
        return Coordinator(
            config, self.spec, transport=link, clock=clock, compute=compute, store=store, test=self.data.test,
            observer=record,
        )  # fmt: skip

    def _in_memory(self, broker: MemoryBroker, numbers: Mapping[str, int], name: str) -> MemoryTransport:
        """Returns the transport of a client in memory; devices reach the broker as the world says."""
        seed = self.world.seed
        way = link(self.world.profile, seed=seed, device=numbers[name]) if name in numbers else None
        return MemoryTransport(broker, name, link=way, rng=random.Random(derive(seed, name, "link")))

    def _names(self) -> list[str]:
        width = len(str(self.world.devices - 1))
        return [f"device-{number:0{width}}" for number in range(self.world.devices)]

    def _devices(self, links: Mapping[str, Transport], clock: Clock, compute: ModelledCompute) -> dict[str, Device]:
        world, members = self.world, {}
        for number, (name, (rounds, owned)) in enumerate(zip(links, self._sources(clock), strict=True)):
            config = DeviceConfig(
                device=DeviceSection(id=name, federation=self.spec.name, seed=world.seed),
                inference=InferenceConfig(enabled=False),
                sensors={m: SensorConfig(driver="scripted") for m in owned},
            )
            members[name] = Device(
                config, transport=links[name], clock=clock, compute=compute, rounds=rounds,
                state=DeviceState.in_memory(name, incarnation=derive(world.seed, name, "incarnation")),
                cost=ModelledCost(world.profile, seed=world.seed, device=number, devices=world.devices),
            )  # fmt: skip
        return members

    def _sources(self, clock: Clock) -> Iterator[tuple[RoundSource, tuple[str, ...]]]:
        """Yields where the rounds of every device come from, and which modalities it has."""
        world, train, case = self.world, self.data.train, ownership.case_of(self.world.ownership)
        if world.online is None and case.whole == 1.0:
            for number, rows in enumerate(self._parts()):
                owned = tuple(m for m, has in train.has.items() if has[rows].any())
                yield self._scripted(train, clock, number, rows), owned
            return
        for number, data in enumerate(self._owned()):
            owned = tuple(m for m, has in data.has.items() if has.any())
            if world.online is None:
                yield self._scripted(data, clock, number, None), owned
            else:
                yield OnlineSource(data, world.online, world.profile, clock, seed=world.seed, device=number), owned

    def _scripted(self, data: Dataset, clock: Clock, number: int, rows: Int64 | None) -> ScriptedSource:
        world, case = self.world, ownership.case_of(self.world.ownership)
        return ScriptedSource(
            data, world.profile, clock, seed=world.seed, device=number, incomplete=case.incomplete, rows=rows
        )

    def _parts(self) -> list[Int64]:
        """Returns the numbers of the training rows of every device."""
        return partition(self.data.train, self.world.devices, self.world.partition, self.world.seed)

    def _owned(self) -> list[Dataset]:
        """Returns the training rows of every device, with the modalities that it has."""
        train = self.data.train
        return ownership.apply([train.take(rows) for rows in self._parts()], self.world.ownership, self.world.seed)

    def _running(self, record: Record) -> Running | None:
        """Returns the losses round by round of an online world; a round is K updates of an asynchronous method."""
        world, needs = self.world, find(self.spec.method.name).needs
        if world.online is None:
            return None
        step = max(1, round(world.fraction * world.devices)) if find(self.spec.method.name).mode == "async" else 1
        numbers = sorted(record.versions)  # of some updates at one instant only the last is published
        rounds = range(numbers[-1] // step if numbers else 0)
        versions = {t: record.versions[max(n for n in numbers if n <= t * step)] for t in rounds}
        return running(self.spec, needs, versions, self._owned(), world.online, seed=world.seed) if versions else None

    def _evaluate(self, tensors: ModelTensors) -> Evaluation:
        return evaluate(self.spec, find(self.spec.method.name).needs, tensors, self.data.test)

    def _report(
        self,
        record: Record,
        final: ModelTensors,
        tested: ModelTensors,
        traffic: Traffic,
        *,
        virtual_s: float,
        wall_s: float,
    ) -> Report:
        world, score = self.world, self._evaluate(tested)
        needs = find(self.spec.method.name).needs
        return Report(
            method=self.spec.method.name,
            dataset=self.data.train.name,
            seed=world.seed,
            devices=world.devices,
            updates=len(record.applied),
            acc=score.acc,
            acc_by_modality=score.acc_by_modality,
            acc_median=last_median([p.acc for p in record.curve]),
            virtual_seconds=virtual_s,
            wall_seconds=wall_s,
            bytes_up=traffic.bytes_up,
            bytes_down=traffic.bytes_down,
            mean_staleness=sum(a.staleness for a in record.applied) / max(1, len(record.applied)),
            digest=params_digest(final),
            rejected=record.rejected,
            rounds=record.rounds if find(self.spec.method.name).mode == "sync" else None,
            workers=world.workers,
            unimodal=unimodal(self.spec, needs, tested, self.data.train, self.data.test),
            missing=without(self.spec, needs, tested, self.data.test),
            running=self._running(record),
            curve=tuple(record.curve),
            trace=tuple(record.trace),
            applied=tuple(record.applied),
        )


def _traffic(links: Mapping[str, Transport]) -> Traffic:
    """Returns what all devices together sent and received."""
    total = Traffic()
    for one in cast("Mapping[str, Link]", links).values():
        total.bytes_up += one.traffic.bytes_up
        total.bytes_down += one.traffic.bytes_down
    return total


__all__ = ["COORDINATOR", "Record", "Simulation", "World"]

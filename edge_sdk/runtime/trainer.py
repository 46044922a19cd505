"""Carries out one task: a frozen round set, the phases that the client rule asks for, and one result.

Arrivals are awaited while phases run; the rule is asked again after every arrival and every finished phase. A phase
that runs is not interrupted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.compute import SHORT, TRAIN, Compute
from edge_sdk.core.errors import ComputeError, TrainingError
from edge_sdk.core.events import Observer
from edge_sdk.core.interfaces import RoundSet, RoundSource
from edge_sdk.core.messages import QUERY, Plan, Task
from edge_sdk.core.records import Array, Arrival, ModelTensors, Segments
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn.records import Effort, Phase, PhaseJob, PhaseResult, RoundView
from edge_sdk.learn.seeds import derive
from edge_sdk.methods.base import find
from edge_sdk.runtime import jobs
from edge_sdk.runtime.budget import Allowance, Ask, allowed, gentler
from edge_sdk.runtime.events import ModalityArrived, PhaseFinished, TrainingEased, TrainingWaits
from edge_sdk.runtime.state import STATE, DeviceState

BUDGET_WAIT_S = 5.0  # between two looks at a budget that says no

log = logging.getLogger(__name__)

Cost = Callable[[PhaseJob], int]  # modelled duration, ns
Schedule = Callable[[RoundView], tuple[Phase, ...]]


@dataclass(frozen=True, slots=True)
class Trained:
    """What a task came to."""

    tensors: ModelTensors  # trained modules, full values
    payload: Mapping[str, Array]
    modalities: tuple[str, ...]  # of the final phase
    num_samples: int
    num_steps: int
    loss: float
    train_s: float  # in phases, on the device's clock
    wait_s: float  # from acceptance to the end, less train_s


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A task that came to nothing."""

    reason: str


class Trainer:
    """Trains tasks of one spec, one at a time.

    Args:
        spec: the federation's spec.
        modalities: those of the spec that this device has.
        rounds: where data come from.
        state: keeps the method's private memory.
        device: id of the device, for events and random streams.
        seed: the device's seed.
        clock: what waiting is counted on.
        compute: its train lane runs the phases.
        cost: modelled duration of a phase.
        budget: returns what training may take, or why it must wait.
        emit: the observer.
    """

    def __init__(
        self,
        spec: FederationSpec,
        *,
        modalities: tuple[str, ...],
        rounds: RoundSource,
        state: DeviceState,
        device: str,
        seed: int,
        clock: Clock,
        compute: Compute,
        cost: Cost,
        budget: Ask,
        emit: Observer,
    ) -> None:
        self.spec = spec
        self.method = find(spec.method.name)
        rule, asked = self.method.client_rule(spec.method.config), self.method.query_rule(spec.method.config)
        self.schedules: Mapping[str, Schedule] = {"train": rule.schedule, QUERY: asked.inquire}
        self.modalities = modalities
        self.rounds = rounds
        self.state = state
        self.device = device
        self.seed = seed
        self.clock = clock
        self.compute = compute
        self.cost = cost
        self.budget = budget
        self.eased: tuple[str, ...] = ()  # why the last phase was gentler than planned
        self.emit = emit

    async def carry_out(
        self, task: Task, start: ModelTensors, extras: Mapping[str, Array], *, again: int = 0
    ) -> Trained | Abandoned:
        """Trains a task from `start`; `again` counts further rounds on the same task (off-line)."""
        planned = tuple(m for m in task.plan.modalities if m in self.modalities)
        if not planned:
            return Abandoned(f"the plan asks for {', '.join(task.plan.modalities)}; this device has none of them")
        began_ns = self.clock.now_ns()
        round_set = await self.rounds.freeze(task.number, planned)
        memory = await self.compute.run(STATE, 0, self.state.memory, self.method.name)
        work = _Round(self, task, round_set, planned, start=start, extras=extras, memory=memory, again=again)
        async with self.clock.group() as group:
            group.start(work.collect(), name=f"{self.device} arrivals")
            result = await work.train()
            group.cancel()
        if isinstance(result, Abandoned):
            return result
        await self.compute.run(STATE, 0, self.state.keep_memory, self.method.name, result.memory)
        return _trained(work, result, self.clock.now_ns() - began_ns)


class _Round:
    """The state of one task under way."""

    def __init__(
        self,
        trainer: Trainer,
        task: Task,
        round_set: RoundSet,
        planned: tuple[str, ...],
        *,
        start: ModelTensors,
        extras: Mapping[str, Array],
        memory: dict[str, Array],
        again: int,
    ) -> None:
        self.trainer = trainer
        self.task = task
        self.round_set = round_set
        self.planned = planned
        self.start = start
        self.extras = extras
        self.memory = memory
        self.again = again
        self.carry: dict[str, Array] = {}
        self.current: dict[str, Segments] = {}
        self.arrivals: list[Arrival] = []
        self.absent = tuple(m for m in task.plan.modalities if m not in planned)
        self.finished: list[Phase] = []
        self.closed = False  # no further arrival will come
        self.train_ns = 0
        self._changed = asyncio.Event()

    async def collect(self) -> None:
        """Takes arrivals as they come, and notes who will not come."""
        while len(self.arrivals) < len(self.planned):
            arrival = await self.round_set.next_arrival()
            if arrival is None:
                break
            self.arrivals.append(arrival)
            self._changed.set()
            self.trainer.emit(ModalityArrived(self.trainer.device, self.task.id, arrival.modality, arrival.count))
        here = {a.modality for a in self.arrivals}
        self.absent = tuple(m for m in self.task.plan.modalities if m not in here)
        self.closed = True
        self._changed.set()

    async def train(self) -> PhaseResult | Abandoned:
        """Runs phases until the final one is done."""
        while True:
            self._changed.clear()
            view = RoundView(self.task.plan, tuple(self.arrivals), self.absent, tuple(self.finished))
            phases = self.trainer.schedules[self.task.kind](view) if self.arrivals else ()
            if phases:
                result = await self._run(phases[0], view)
                if isinstance(result, Abandoned) or phases[0].final:
                    return result
            elif self.closed:
                return Abandoned(f"nothing to train on: {', '.join(self.absent) or 'no modality'} did not come")
            else:
                await self._changed.wait()

    async def _run(self, phase: Phase, view: RoundView) -> PhaseResult | Abandoned:
        trainer = self.trainer
        data = self.round_set.data(phase.modalities)
        if len(data.y) == 0:
            return Abandoned(f"no labelled window has all of {', '.join(phase.modalities)}")
        allowance = await _affordable(trainer)
        plan, effort = gentler(self.task.plan, allowance), _effort(phase, allowance)
        self._say_if_eased(allowance, plan, effort)
        job = PhaseJob(
            spec=trainer.spec, method=trainer.method.name, phase=phase, view=view, plan=plan,
            start=self.start, current=self.current, data=data, memory=self.memory, carry=self.carry,
            extras=self.extras, seed=self._seed(), effort=effort,
        )  # fmt: skip
        began_ns = trainer.clock.now_ns()
        try:
            result = await trainer.compute.run(TRAIN, trainer.cost(job), jobs.run_phase, job)
        except (ComputeError, TrainingError) as error:
            return Abandoned(str(error))
        took_ns = trainer.clock.now_ns() - began_ns
        self._take(phase, result, took_ns)
        return result

    def _say_if_eased(self, allowance: Allowance, plan: Plan, effort: Effort) -> None:
        """Tells when training becomes gentler, and when it is as planned again."""
        trainer = self.trainer
        if allowance.eased == trainer.eased:
            return
        trainer.eased = allowance.eased
        trainer.emit(
            TrainingEased(trainer.device, allowance.eased, plan.batch_size, effort.frozen, effort.precision)
        )  # fmt: skip

    def _seed(self) -> int:
        return derive(self.trainer.seed, self.trainer.device, "train", self.task.number, self.again)

    def _take(self, phase: Phase, result: PhaseResult, took_ns: int) -> None:
        self.finished.append(phase)
        self.current = dict(result.tensors)
        self.memory, self.carry = dict(result.memory), dict(result.carry)
        self.train_ns += took_ns
        self.trainer.emit(
            PhaseFinished(
                self.trainer.device, self.task.id, phase.name, phase.modalities, result.num_samples,
                result.num_steps, result.loss, took_ns / NS, phase.final,
            )
        )  # fmt: skip


def _trained(work: _Round, result: PhaseResult, total_ns: int) -> Trained:
    return Trained(
        tensors=result.tensors,
        payload=result.payload,
        modalities=work.finished[-1].modalities,
        num_samples=result.num_samples,
        num_steps=result.num_steps,
        loss=result.loss,
        train_s=work.train_ns / NS,
        wait_s=(total_ns - work.train_ns) / NS,
    )


def _effort(phase: Phase, allowance: Allowance) -> Effort:
    """Returns how a phase is trained; encoders are frozen only where something else is left to train."""
    encoders = tuple(name for name in phase.train if name.startswith("encoder."))
    spare = allowance.freeze_encoders and not phase.asks and len(encoders) < len(phase.train)
    return Effort(encoders if spare else (), allowance.precision)


async def _affordable(trainer: Trainer) -> Allowance:
    """Waits until the budget allows a phase; says why once per wait."""
    said = ""
    while reason := (allowance := allowed(await trainer.compute.run(SHORT, 0, trainer.budget))).wait:
        if not said:
            log.warning("%s: training waits: %s", trainer.device, reason)
            trainer.emit(TrainingWaits(trainer.device, reason))
        said = reason
        await trainer.clock.sleep(BUDGET_WAIT_S)
    if said:
        trainer.emit(TrainingWaits(trainer.device, ""))
    return allowance


__all__ = ["BUDGET_WAIT_S", "Abandoned", "Cost", "Trained", "Trainer"]

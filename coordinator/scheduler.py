"""Who trains, with what: the only place that decides it, whatever the method.

Policies: `free` gives every device that asks one open task; `sampled` keeps a share of the devices on line busy, drawn
uniformly from those that wait. Tasks are not queued for absent devices; a lost one lapses at its deadline.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from coordinator.config import ScheduleConfig
from coordinator.fleet import Fleet, Member
from coordinator.store import OpenTask
from edge_sdk.core.clock import NS
from edge_sdk.core.messages import QUERY, Plan, Task
from edge_sdk.core.records import VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn import seeds
from edge_sdk.learn.records import Assignment, Query


class Scheduler:
    """Open tasks, and who gets the next one.

    Args:
        config: the [schedule] section.
        spec: the federation's spec.
        tasks: open tasks that the store remembers.
        numbers: device → tasks given so far.
    """

    def __init__(
        self, config: ScheduleConfig, spec: FederationSpec, tasks: Iterable[OpenTask], numbers: Mapping[str, int]
    ) -> None:
        self._config = config
        self._spec = spec
        self._open: dict[str, OpenTask] = {}
        self._by_device: dict[str, str] = {}
        self._expiries: list[tuple[int, str]] = []
        self._numbers = dict(numbers)
        self._given = sum(self._numbers.values())
        self._pick: Mapping[str, Callable[[Fleet, Callable[[Member], bool]], list[Member]]] = {
            "free": self._all, "sampled": self._sample,
        }  # fmt: skip
        for task in tasks:
            self._add(task)

    @property
    def tasks(self) -> tuple[OpenTask, ...]:
        """Open tasks."""
        return tuple(self._open.values())

    def of(self, device: str) -> OpenTask | None:
        """Returns the device's open task."""
        return self._open.get(self._by_device.get(device, ""))

    def task(self, name: str) -> OpenTask | None:
        """Returns an open task by its id."""
        return self._open.get(name)

    def choose(self, fleet: Fleet) -> list[Member]:
        """Returns the waiting devices that get a task now."""
        if not self.enough(fleet):
            return []
        return self._pick[self._config.policy](fleet, self.fits)

    def enough(self, fleet: Fleet) -> bool:
        """Says whether as many devices are on line as have to be before anybody trains."""
        return fleet.online >= self._config.min_devices

    def fits(self, member: Member) -> bool:
        """Says whether a device can be given a task: one without a modality of the spec has nothing to train."""
        current = member.spec_digest in ("", self._spec.digest)
        return member.online and current and bool(member.modalities) and member.device not in self._by_device

    def _all(self, fleet: Fleet, fits: Callable[[Member], bool]) -> list[Member]:
        return [member for member in fleet.waiting if fits(member)]

    def _sample(self, fleet: Fleet, fits: Callable[[Member], bool]) -> list[Member]:
        chosen: dict[str, Member] = {}
        for turn in range(max(0, self.concurrency(fleet) - len(self._open))):
            rng = np.random.default_rng(seeds.derive(self._config.seed, "schedule", self._given + turn))
            member = fleet.draw(rng, lambda m: m.device not in chosen and fits(m))
            if member is None:
                break
            chosen[member.device] = member
        return list(chosen.values())

    def concurrency(self, fleet: Fleet) -> int:
        """K: how many devices are kept busy."""
        if self._config.policy == "free":
            return max(1, fleet.online)
        return max(1, round(self._config.fraction * fleet.online))

    def make(self, member: Member, base: VersionId, fleet: Fleet, *, utc_ns: int, lineage: str) -> OpenTask:
        """Returns a new task of an asynchronous method; `opened` makes it count."""
        # One round-equivalent is K server updates, so that sync and async runs decay alike; fixed at the download.
        rounds = base.number // self.concurrency(fleet)
        return self._task(
            member, base, utc_ns=utc_ns, lineage=lineage, rounds=rounds, deadline_s=self._config.task_deadline_s
        )

    def make_round(
        self, member: Member, base: VersionId, part: Assignment | Query, *, utc_ns: int, lineage: str
    ) -> OpenTask:
        """Returns a new task of a synchronous round: a device's part in it."""
        task = self._task(
            member, base, utc_ns=utc_ns, lineage=lineage, rounds=base.number, deadline_s=self._config.round_deadline_s
        )
        if isinstance(part, Query):
            modalities = part.modalities or member.modalities
            return replace(task, kind=QUERY, phase=part.phase, epochs=part.epochs, modalities=modalities)
        epochs, lr = part.epochs or task.epochs, task.lr * part.lr_scale
        return replace(task, phase=part.phase, epochs=epochs, lr=lr, modalities=part.modalities)

    def _task(
        self, member: Member, base: VersionId, *, utc_ns: int, lineage: str, rounds: int, deadline_s: float
    ) -> OpenTask:
        training = self._spec.training
        number = self._numbers.get(member.device, 0)
        deadline_ns = round(deadline_s * NS)
        return OpenTask(
            id=f"{seeds.derive(lineage, member.device, number):016x}",
            device=member.device,
            number=number,
            base=base,
            expires_utc_ns=utc_ns + deadline_ns if deadline_ns else 0,
            modalities=member.modalities,
            epochs=training.epochs,
            lr=training.lr * training.lr_decay**rounds,
            batch_size=training.batch_size,
        )

    def opened(self, task: OpenTask) -> None:
        """A task is in the store and goes out."""
        self._numbers[task.device] = task.number + 1
        self._given += 1
        self._add(task)

    def _add(self, task: OpenTask) -> None:
        self._open[task.id] = task
        self._by_device[task.device] = task.id
        if task.expires_utc_ns:
            heapq.heappush(self._expiries, (task.expires_utc_ns, task.id))

    def close(self, name: str) -> None:
        """A task was answered, or given up."""
        task = self._open.pop(name, None)
        if task is not None and self._by_device.get(task.device) == name:
            del self._by_device[task.device]

    def lapse(self, utc_ns: int) -> list[OpenTask]:
        """Closes the tasks whose deadline has passed and returns them."""
        lapsed = []
        while self._expiries and (self._expiries[0][0] <= utc_ns or self._expiries[0][1] not in self._open):
            task = self._open.get(heapq.heappop(self._expiries)[1])
            if task is not None:
                self.close(task.id)
                lapsed.append(task)
        return lapsed

    @property
    def next_lapse_utc_ns(self) -> int | None:
        """When the next task may lapse."""
        return self._expiries[0][0] if self._expiries else None


def message(task: OpenTask, extras: Mapping[str, bytes], utc_ns: int) -> Task:
    """Returns what the device is sent."""
    left_s = max(1e-3, (task.expires_utc_ns - utc_ns) / NS) if task.expires_utc_ns else 0.0
    plan = Plan(task.modalities, task.epochs, task.lr, task.batch_size)
    return Task(task.id, task.kind, task.base, plan, task.number, left_s, dict(extras))


def stop_message(base: VersionId) -> Task:
    """Returns the message that ends training."""
    return Task("stop", "stop", base, Plan((), 0, 0.0, 0), 0, 0.0)


__all__ = ["Scheduler", "message", "stop_message"]

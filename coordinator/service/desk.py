"""The desk at which tasks are handed out: the scheduler decides, the store remembers, the mail carries."""

from __future__ import annotations

import logging
from dataclasses import replace

from coordinator import events
from coordinator.config import CoordinatorConfig
from coordinator.fleet import Fleet, Member
from coordinator.publish import STORE, Publisher
from coordinator.scheduler import Scheduler, message, stop_message
from coordinator.service.ledger import Ledger
from coordinator.service.mail import Mail
from coordinator.store import Journal, OpenRound, OpenTask, Store
from edge_sdk.codecs.wire import pack_array
from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.compute import Compute
from edge_sdk.core.errors import StoreError
from edge_sdk.core.events import Observer
from edge_sdk.core.messages import Reply
from edge_sdk.core.spec import FederationSpec

_RETRY_S = 5.0  # after the store refused a task

log = logging.getLogger(__name__)


class Desk:
    """Gives tasks to devices that ask, takes back those that lapse."""

    def __init__(
        self, config: CoordinatorConfig, spec: FederationSpec, journal: Journal, *, ledger: Ledger, fleet: Fleet,
        publisher: Publisher, store: Store, mail: Mail, clock: Clock, compute: Compute, emit: Observer,
    ) -> None:  # fmt: skip
        self.scheduler = Scheduler(config.schedule, spec, journal.tasks, journal.task_numbers)
        self._patience_ns = round(config.publish.patience_s * NS)
        self._ledger = ledger
        self._fleet = fleet
        self._publisher = publisher
        self._store = store
        self._mail = mail
        self._clock = clock
        self._compute = compute
        self._emit = emit
        self._not_before_ns = 0

    @property
    def bases(self) -> frozenset[int]:
        """Numbers of the versions that open tasks start from."""
        return frozenset(task.base.number for task in self.scheduler.tasks)

    async def asked(self, device: str) -> None:
        """A device asks for a task: it gets the one it has been given, or waits for the next."""
        open_task = self.scheduler.of(device)
        if open_task is None:
            self._fleet.asks(device)
        elif self._publisher.stored(open_task.base) is None:
            await self.close(open_task)
            self._fleet.asks(device)
        else:
            self._send(open_task)

    async def offer(self) -> None:
        """Hands out what the scheduler gives now; tells those who get nothing."""
        newest = self._publisher.newest
        if newest is None or not self._fleet.waits or not self.may_open:
            return
        if self._fresh:
            await self.give(tuple(self._make(member) for member in self.scheduler.choose(self._fleet)))
        if not self._publisher.busy:
            self.tell()

    async def give(self, tasks: tuple[OpenTask, ...], stage: OpenRound | None = None) -> bool:
        """Opens tasks, all or none, with the stage of a round that they make up; says whether they went out."""
        if not tasks or not await self._open(tasks, stage):
            return False
        for task in tasks:
            self._fleet.served(self._fleet.member(task.device))
            self._send(task)
            self._emit(events.TaskGiven(task.device, task.id, task.number, task.base.number, task.modalities))
        return True

    @property
    def _fresh(self) -> bool:
        """A version on its way out is worth a moment: a task on it is fresher."""
        return not self._publisher.busy or self._publisher.waited_ns() > self._patience_ns

    @property
    def may_open(self) -> bool:
        """Says whether the store took the last tasks, or may be tried again."""
        return self._clock.now_ns() >= self._not_before_ns

    def _make(self, member: Member) -> OpenTask:
        newest = self._publisher.newest
        assert newest is not None
        return self.scheduler.make(
            member, newest.id, self._fleet, utc_ns=self._clock.utc_ns(), lineage=self._store.lineage
        )

    async def _open(self, tasks: tuple[OpenTask, ...], stage: OpenRound | None) -> bool:
        try:
            await self._compute.run(STORE, 0, self._store.open_tasks, tasks, stage)
        except StoreError as error:
            log.error("no tasks are given: %s", error)
            self._not_before_ns = self._clock.now_ns() + round(_RETRY_S * NS)
            return False
        for task in tasks:
            self.scheduler.opened(task)
        return True

    def _send(self, task: OpenTask) -> None:
        extras = {name: pack_array(value) for name, value in self._ledger.extras(task).items()}
        sent = message(task, extras, self._clock.utc_ns())
        self._mail.task(task.device, replace(sent, plan=replace(sent.plan, phase=self._ledger.stage(task))))

    def tell(self) -> None:
        """Tells those who wait and have not heard it yet that there is no task for them now."""
        for member in self._fleet.untold():
            self._mail.reply(member.device, Reply("no_task"))

    async def close(self, task: OpenTask) -> None:
        """A task is over without an update that was mixed in."""
        self.scheduler.close(task.id)
        try:
            await self._compute.run(STORE, 0, self._store.close_tasks, (task.id,))
        except StoreError as error:
            log.warning("task %s of %s stays in the store until it lapses: %s", task.id, task.device, error)

    async def lapse(self) -> None:
        """Takes back the tasks whose deadline has passed."""
        for task in self.scheduler.lapse(self._clock.utc_ns()):
            await self.close(task)
            self._emit(events.TaskLapsed(task.device, task.id))

    def stop_all(self) -> None:
        """Tells every device on line that training is over."""
        newest = self._publisher.newest
        if newest is not None:
            for member in self._fleet.members():
                if member.online:
                    self._mail.task(member.device, stop_message(newest.id))

    @property
    def next_ns(self) -> int | None:
        """When something is due here without a message."""
        times = []
        lapse_utc_ns = self.scheduler.next_lapse_utc_ns
        if lapse_utc_ns is not None:
            times.append(self._clock.now_ns() + lapse_utc_ns - self._clock.utc_ns())
        if self._fleet.waits and self._clock.now_ns() < self._not_before_ns:
            times.append(self._not_before_ns)
        elif self._fleet.waits and self._publisher.busy:
            left_ns = self._patience_ns - self._publisher.waited_ns()
            times += [self._clock.now_ns() + left_ns + 1] if left_ns >= 0 else []
        return min(times, default=None)


__all__ = ["Desk"]

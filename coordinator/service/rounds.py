"""Synchronous rounds: query, select, train, average; one at a time, without stragglers, through a restart.

A round has up to two stages, each a set of tasks: "query", where the rule asks anything, and "train". A stage is over
when none of its tasks is open: answered, refused or lapsed at `round_deadline_s`. What devices send is in the store
before they hear of it, and so is the stage, so that a coordinator that was killed goes on in the middle of a round.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from coordinator import events
from coordinator.config import ScheduleConfig
from coordinator.fleet import Fleet, Member
from coordinator.publish import STORE, Publisher
from coordinator.service.applied import applied
from coordinator.service.desk import Desk
from coordinator.service.ledger import Ledger
from coordinator.store import Journal, OpenRound, OpenTask, Received, RoundEntry, Store
from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.compute import SHORT, Compute
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.events import Observer
from edge_sdk.core.messages import QUERY
from edge_sdk.core.records import ModelTensors, Update, VersionId
from edge_sdk.learn import records as learn
from edge_sdk.learn import seeds
from edge_sdk.learn.aggregation import MEAN_KERNEL
from edge_sdk.methods.base import SyncServerRule

TRAIN = "train"
_RETRY_S = 5.0  # after the store refused a decision

log = logging.getLogger(__name__)


class Rounds:
    """Owns the round under way.

    Args:
        config: the [schedule] section.
        rule: the method's server rule.
        journal: what an earlier run left, perhaps a round in its middle.
        ledger: takes decisions.
        desk: gives tasks.
        fleet: the devices.
        publisher: says which version devices start from.
        store: keeps what a round receives.
        clock: what waiting is counted on.
        compute: where blocking work goes.
        emit: hears of rounds.
    """

    def __init__(
        self, config: ScheduleConfig, rule: SyncServerRule[Any], journal: Journal, *, ledger: Ledger, desk: Desk,
        fleet: Fleet, publisher: Publisher, store: Store, clock: Clock, compute: Compute, emit: Observer,
    ) -> None:  # fmt: skip
        self._config = config
        self._rule = rule
        self._ledger = ledger
        self._desk = desk
        self._fleet = fleet
        self._publisher = publisher
        self._store = store
        self._clock = clock
        self._compute = compute
        self._emit = emit
        self._stage: OpenRound | None = None
        self._received: dict[str, tuple[Received, Update | None]] = {}  # of the stage; None: not decoded again yet
        self._values: dict[str, ModelTensors] = {}  # of the stage's members
        self._asked: frozenset[str] = frozenset()  # devices of the stage
        self._heard = False  # the answers of the stage have changed the rule's state
        self._carried: learn.State = {}  # what they changed in abandoned rounds; the next decision journals it
        self._free_since_ns: int | None = None  # some devices wait while others are nearly free
        self._not_before_ns = 0  # the store refused; when to try again
        self._resumed = False  # the stage is one that an earlier run began
        self._back_since_ns: int | None = None  # some of those who answered an earlier run are here again, others not
        self._recover(journal)

    def _recover(self, journal: Journal) -> None:
        """Goes on with the round that the store remembers, if it still means something."""
        stage, spec = journal.round, self._ledger.spec
        if stage is None or stage.version != self._ledger.number + 1 or stage.spec_digest != spec.digest:
            return
        self._stage, self._resumed = stage, True
        self._ledger.learn(stage.patch)
        self._received = {received.key.device: (received, None) for received in journal.received}
        self._asked = frozenset(self._received) | {task.device for task in self._tasks()}
        log.info("round %d goes on: %d of %d devices have answered", self._round, len(self._received), len(self._asked))

    @property
    def _round(self) -> int:
        return self._ledger.number

    def _tasks(self) -> list[OpenTask]:
        """Returns the open tasks of the stage."""
        if self._stage is None:
            return []
        kind, number = self._stage.stage, self._stage.version - 1
        return [t for t in self._desk.scheduler.tasks if t.kind == kind and t.base.number == number]

    async def take(self, received: Received, update: Update, values: ModelTensors) -> None:
        """Makes an admitted update part of the round.

        Args:
            received: what the store keeps of it.
            update: decoded.
            values: full values of the modules that it trained.

        Raises:
            StoreError: it could not be made durable; nothing has changed.
        """
        await self._compute.run(STORE, 0, self._store.admit, received)
        self._received[received.key.device] = (received, update)
        self._values[received.key.device] = values

    @property
    def making(self) -> int:
        """Number of the version that the round under way is going to make."""
        return self._ledger.number + 1

    async def settle(self, *, running: bool) -> bool:
        """Ends the stage if nobody is at it any more; says whether a version was made.

        Args:
            running: False while the federation is paused: cohorts are still averaged, nobody is asked to train.

        Raises:
            StoreError: the decision could not be made durable; nothing has changed, and it is tried again later.
        """
        if self._stage is None or self._tasks() or self._clock.now_ns() < self._not_before_ns:
            return False
        if self._stage.stage == QUERY and not self._back():
            return False
        self._not_before_ns = self._clock.now_ns() + round(_RETRY_S * NS)  # if what follows fails
        if self._stage.stage == TRAIN:
            made = await self._average()
        else:
            made = False
            if running and not await self._after_answers(self._stage):
                return False
        self._not_before_ns = 0
        return made

    async def begin(self) -> None:
        """Starts a round if there is none and the devices are there; tells the others that there is nothing now."""
        newest = self._publisher.newest
        if self._stage is None and newest is not None and newest.id.number == self._ledger.number:
            await self._begin()
        if self._stage is not None:
            self._desk.tell()

    async def _begin(self) -> None:
        if not self._desk.may_open or not self._desk.scheduler.enough(self._fleet) or not self._gathered():
            return
        pool = [member for member in self._fleet.waiting if self._desk.scheduler.fits(member)]
        size = self._size(pool)
        candidates = _candidates(pool)
        queries = self._rule.query(self._ledger.state, candidates, size, self._rng("query"))
        if queries:
            await self._start(self._opened(QUERY), queries, pool)
        else:
            await self._select(self._opened(TRAIN), pool, ())

    def _opened(self, stage: str) -> OpenRound:
        return OpenRound(self.making, self._ledger.spec.digest, stage, self._carried)

    def _gathered(self) -> bool:
        """Says whether every device that is free has asked for work, or has been waited for long enough.

        The last device of a round asks a moment after the others; a round that began without it would be biased.
        """
        fitting = [member for member in self._fleet.members() if self._desk.scheduler.fits(member)]
        waiting = {member.device for member in self._fleet.waiting}
        missing = sum(member.device not in waiting for member in fitting)
        if not waiting & {member.device for member in fitting}:
            self._free_since_ns = None
            return False
        if self._free_since_ns is None:
            self._free_since_ns = self._clock.now_ns()
        return not missing or self._clock.now_ns() >= self._free_since_ns + round(self._config.gather_s * NS)

    def _back(self) -> bool:
        """Says whether those who had answered before a restart are here again, or have been waited for long enough.

        A selection from the first that come back would be another one than without the restart.
        """
        here = {member.device for member in self._fleet.members() if self._desk.scheduler.fits(member)}
        now_ns, since_ns = self._clock.now_ns(), self._back_since_ns
        if not here:
            since_ns = None  # a device that comes wakes the service
        elif since_ns is None:
            since_ns = now_ns
        long_enough = since_ns is not None and now_ns >= since_ns + round(self._config.gather_s * NS)
        self._resumed = self._resumed and not long_enough and not self._received.keys() <= here
        self._back_since_ns = since_ns if self._resumed else None
        return not self._resumed

    def _size(self, pool: Iterable[Member]) -> int:
        return min(self._desk.scheduler.concurrency(self._fleet), sum(1 for _ in pool))

    def _rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(seeds.derive(self._config.seed, "round", purpose, self._round))

    async def _after_answers(self, stage: OpenRound) -> bool:
        """Selects; False: the store refused, and it is tried again later."""
        answers = tuple(
            learn.Answer(device, received.modalities, received.num_samples, update.payload)
            for device, (received, update) in sorted((await self._decoded()).items())
        )
        if not self._heard:
            patch = self._rule.answered(self._ledger.state, answers)
            self._ledger.learn(patch)
            now = {name: np.asarray(value, np.float64) for name, value in patch.items()}
            self._stage = stage = replace(stage, patch={**stage.patch, **now})
            self._heard = True
        answered = {answer.device for answer in answers}
        waiting = {member.device for member in self._fleet.waiting}
        pool = [
            member
            for member in self._fleet.members()
            if member.device in answered | waiting and self._desk.scheduler.fits(member)
        ]
        if pool:
            return await self._select(replace(stage, stage=TRAIN), pool, answers)
        self._abandon()
        return True

    async def _select(self, stage: OpenRound, pool: list[Member], answers: tuple[learn.Answer, ...]) -> bool:
        chosen = learn.Pool(self._round, _candidates(pool), answers, self._size(pool))
        assignments = self._rule.select(self._ledger.state, chosen, self._rng("select"))
        _check(assignments, chosen, self._ledger.spec.method.name)
        return await self._start(stage, assignments, pool)

    async def _start(
        self, stage: OpenRound, parts: tuple[learn.Assignment, ...] | tuple[learn.Query, ...], pool: list[Member]
    ) -> bool:
        base = self._publisher.newest
        assert base is not None
        tasks = tuple(self._task(part, base.id) for part in parts)
        if not await self._desk.give(tasks, stage):
            return False
        self._stage, self._free_since_ns = stage, None
        self._received, self._values, self._heard = {}, {}, False
        self._resumed, self._back_since_ns = False, None
        self._asked = frozenset(task.device for task in tasks)
        self._emit(events.RoundStarted(self._round, stage.stage, tuple(sorted(self._asked))))
        return True

    def _task(self, part: learn.Assignment | learn.Query, base: VersionId) -> OpenTask:
        return self._desk.scheduler.make_round(
            self._fleet.member(part.device), base, part, utc_ns=self._clock.utc_ns(), lineage=self._store.lineage
        )

    async def _average(self) -> bool:
        if not self._received:
            self._abandon()
            return False
        received = await self._decoded()
        base = next(iter(received.values()))[0].base
        start = await self._compute.run(STORE, 0, self._store.tensors, base)
        members = tuple(self._member(*received[device]) for device in sorted(received))
        cohort = learn.Cohort(self._round, start, members, self._ledger.layout)
        weights, patch, replaced = await self._compute.run(SHORT, 0, self._ledger.decide_round, cohort)
        assert self._stage is not None
        entry = RoundEntry(
            version=self.making, base=base, kernel=MEAN_KERNEL, weights=weights.by_block, keep=weights.keep,
            replaced=replaced, patch={**self._stage.patch, **patch}, utc_ns=self._clock.utc_ns(),
            members=tuple(received[device][0] for device in sorted(received)),
        )  # fmt: skip
        await self._compute.run(STORE, 0, self._ledger.apply_round, entry, self._values)
        self._done(entry, {device: update for device, (_, update) in received.items()})
        return True

    async def _decoded(self) -> dict[str, tuple[Received, Update]]:
        """Returns what the stage received; updates of an earlier run are decoded again."""
        for device, (received, update) in tuple(self._received.items()):
            if update is None:
                base = await self._compute.run(STORE, 0, self._store.tensors, received.base)
                decoded, values = await self._compute.run(SHORT, 0, self._ledger.decode, received, base)
                self._received[device] = (received, decoded)
                self._values[device] = values
        return {
            device: (received, update) for device, (received, update) in self._received.items() if update is not None
        }

    def _member(self, received: Received, update: Update) -> learn.Member:
        device = received.key.device
        return learn.Member(
            device, received.modalities, received.num_samples, received.num_steps, update.payload, self._values[device]
        )

    def _done(self, entry: RoundEntry, updates: dict[str, Update]) -> None:
        came = tuple(member.key.device for member in entry.members)
        log.info("round %d made version %d from %d updates", entry.version - 1, entry.version, len(came))
        first = self._ledger.updates - len(came)
        for place, member in enumerate(entry.members, 1):
            device = member.key.device
            rates = {block: shares[device] for block, shares in entry.weights.items() if device in shares}
            self._emit(
                applied(
                    member, updates[device], rates=rates, staleness=0, count=first + place,
                    figures=self._ledger.figures(), latency_s=0.0,
                )
            )  # fmt: skip
        self._emit(events.RoundClosed(entry.version, came, tuple(sorted(self._asked - set(came)))))
        self._carried = {}
        self._forget()

    def _abandon(self) -> None:
        log.warning("round %d: no device answered in time; it begins again", self._round)
        self._emit(events.RoundClosed(self._round, (), tuple(sorted(self._asked))))
        if self._stage is not None:
            self._carried = self._stage.patch
        self._forget()

    def _forget(self) -> None:
        self._stage, self._received, self._values, self._asked, self._heard = None, {}, {}, frozenset(), False
        self._resumed, self._back_since_ns = False, None

    @property
    def next_ns(self) -> int | None:
        """When something is due here without a message."""
        if self._stage is not None and self._not_before_ns:
            return self._not_before_ns
        since_ns = self._free_since_ns if self._stage is None else self._back_since_ns
        return None if since_ns is None else since_ns + round(self._config.gather_s * NS)


def _candidates(pool: Iterable[Member]) -> tuple[learn.Candidate, ...]:
    return tuple(learn.Candidate(m.device, m.modalities) for m in sorted(pool, key=lambda member: member.device))


def _check(assignments: tuple[learn.Assignment, ...], pool: learn.Pool, method: str) -> None:
    """Raises ConfigError for a selection that cannot be carried out: a mistake in a rule, not of a device."""
    owned = {candidate.device: candidate.modalities for candidate in pool.fleet}
    devices = [assignment.device for assignment in assignments]
    if not devices or len(set(devices)) != len(devices):
        raise ConfigError(f"method {method!r} selected {devices}; expected at least one device, and none twice")
    for part in assignments:
        if not part.modalities or set(part.modalities) - set(owned.get(part.device, ())):
            raise ConfigError(
                f"method {method!r} assigned {list(part.modalities)} to {part.device!r}, "
                f"which has {list(owned.get(part.device, ()))}"
            )


__all__ = ["Rounds"]

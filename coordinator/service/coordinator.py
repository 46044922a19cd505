"""The coordinator: message → wire → admission → rule → commit → blend → reply → publish, in one order.

One handler runs at a time (`_turn`), so that what is decided does not depend on how long anything took. Sending is
left to tasks: a slow broker delays what goes out, never what is mixed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

from coordinator import events
from coordinator.config import CoordinatorConfig
from coordinator.evaluate import Evaluation
from coordinator.fleet import Fleet
from coordinator.publish import STORE, Publisher, Snapshot, wire_bytes
from coordinator.service.alarm import Alarm
from coordinator.service.claim import Claim
from coordinator.service.criteria import Criteria
from coordinator.service.desk import Desk
from coordinator.service.door import Door
from coordinator.service.evaluator import Evaluator
from coordinator.service.ledger import Ledger
from coordinator.service.mail import Mail
from coordinator.service.reception import Reception
from coordinator.service.rounds import Rounds
from coordinator.service.updates import Updates
from coordinator.store import Journal, Store, Stored
from edge_sdk.core.clock import Clock, Group
from edge_sdk.core.compute import Compute
from edge_sdk.core.errors import StoreError
from edge_sdk.core.events import Observer, ignore
from edge_sdk.core.interfaces import Transport
from edge_sdk.core.records import Dataset, ModelTensors, VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.transport.topics import Topics

log = logging.getLogger(__name__)


class Coordinator:
    """Runs one federation.

    Args:
        config: the coordinator's configuration; `config.federation` and `config.broker` are not looked at.
        spec: the federation.
        transport: not started yet; `run` starts and closes it.
        clock: wall or virtual.
        compute: where blocking work goes.
        store: not opened yet; `run` opens and closes it.
        test: held-out rows for evaluations.
        init: the first version of a new store; None: drawn from `schedule.seed`.
        observer: hears the records of `coordinator.events`.
    """

    def __init__(
        self, config: CoordinatorConfig, spec: FederationSpec, *, transport: Transport, clock: Clock, compute: Compute,
        store: Store, test: Dataset | None = None, init: ModelTensors | None = None, observer: Observer | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.spec = spec
        self.ledger = Ledger(spec, store)
        self.evaluations: list[tuple[int, Evaluation]] = []  # version number, result; in order
        self._transport = transport
        self._clock = clock
        self._compute = compute
        self._store = store
        self._init = init
        self._emit: Observer = observer or ignore
        self._topics = Topics(spec.name)
        self._turn = asyncio.Lock()
        self._over = asyncio.Event()
        self._alarm = Alarm(clock, self._look_again)
        self._criteria = Criteria(config.stop, clock)
        self._prune = False
        self._state = "running"
        self.publisher = Publisher(
            config.publish, spec, self.ledger.layout, transport=transport, clock=clock, compute=compute, store=store,
            announced=self._announced,
        )  # fmt: skip
        self._evaluator = Evaluator(
            config.evaluate, spec, self.ledger.method.needs, test=test, compute=compute, store=store,
            done=self._evaluated,
        )  # fmt: skip
        listed = None if config.admission.enrolment == "open" else config.admission.devices
        self.fleet = Fleet(spec, listed)
        self._group: Group | None = None

    @property
    def state(self) -> str:
        """Says "running", "paused" or "finished"."""
        return self._state

    async def run(self) -> None:
        """Serves until a stop criterion is met; then sends everybody home and returns.

        Raises:
            ConfigError: another coordinator has this federation.
            StoreError: the store cannot be opened.
        """
        try:
            await self._open()
            async with self._clock.group() as group:
                self._begin(group)
                await self._transport.subscribe(self._topics.spec, *self._topics.coordinator_filters)
                await self._transport.start()
                await self._over.wait()
                await self._finish()
                group.cancel()
        finally:
            await self._transport.aclose()
            await self._compute.run(STORE, 0, self._store.close)  # after whatever still runs there

    async def _open(self) -> None:
        opened = await self._compute.run(STORE, 0, self.ledger.open, self._init, self.config.schedule.seed)
        self._criteria.start()
        self._store.note(self._state)
        self.publisher.recover(opened.journal.versions, opened.journal.rollbacks, self._store.lineage)
        self.claim = Claim(secrets.token_hex(8), self._store.lineage, self.spec.name, self._clock)
        self.mail = Mail(self._transport, self._topics)
        self.door = Door(
            self.fleet, store=self._store, mail=self.mail, compute=self._compute, clock=self._clock, emit=self._emit
        )
        await self.door.read_list()
        self.desk = Desk(
            self.config, self.spec, opened.journal, ledger=self.ledger, fleet=self.fleet, publisher=self.publisher,
            store=self._store, mail=self.mail, clock=self._clock, compute=self._compute, emit=self._emit,
        )  # fmt: skip
        self.rounds = self._synchronous(opened.journal)
        self.updates = Updates(
            self.config, self.spec, opened.journal, ledger=self.ledger, desk=self.desk, fleet=self.fleet,
            publisher=self.publisher, store=self._store, mail=self.mail, clock=self._clock, compute=self._compute,
            emit=self._emit, rounds=self.rounds,
        )  # fmt: skip
        self.reception = Reception(
            self.spec, self.claim, door=self.door, updates=self.updates, publisher=self.publisher, mail=self.mail,
            lineage=self._store.lineage, clock=self._clock, emit=self._emit,
        )  # fmt: skip
        if not opened.new:
            self._emit(events.Recovered(self.ledger.number, opened.replayed, opened.same_bits))
        newest = self.publisher.newest
        if newest is None or newest.id.number != self.ledger.number:
            await self._publish()

    def _synchronous(self, journal: Journal) -> Rounds | None:
        """Returns who runs the rounds of a synchronous method."""
        rule = self.ledger.rounds
        if rule is None:
            return None
        return Rounds(
            self.config.schedule, rule, journal, ledger=self.ledger, desk=self.desk, fleet=self.fleet,
            publisher=self.publisher, store=self._store, clock=self._clock, compute=self._compute, emit=self._emit,
        )  # fmt: skip

    def _begin(self, group: Group) -> None:
        self._group = group
        self.mail.group = group
        group.start(self._receive(), name="coordinator: messages")
        group.start(self._alarm.run(), name="coordinator: alarm")
        group.start(self.publisher.run(), name="coordinator: publisher")
        group.start(self._evaluator.run(), name="coordinator: evaluator")

    async def _receive(self) -> None:
        async for event in self._transport.events():
            async with self._turn:
                if not self._over.is_set():
                    await self.reception.happened(event)
                    await self._after()

    async def _after(self) -> None:
        """What may have become possible or necessary, after every message and every alarm."""
        await self.reception.look_again()
        await self.desk.lapse()
        self.updates.ask_missing()
        await self._settle()
        await self._keep_house()
        if self._behind() and not self.publisher.busy and self._clock.now_ns() >= self.publisher.ready_ns:
            await self._publish()
        if self._state == "running" and self.claim.settled:
            await (self.desk.offer() if self.rounds is None else self.rounds.begin())
        self._check_stop()
        self._arm()

    async def _settle(self) -> None:
        """Ends the round, or its stage, that nobody is at any more."""
        if self.rounds is None:
            return
        try:
            await self.rounds.settle(running=self._state == "running")
        except StoreError as error:
            self.updates.store_failed(error)

    async def _keep_house(self) -> None:
        """Checkpoints and prunes where it is time to; a full disk is said once, and costs nothing but room."""
        try:
            if self.ledger.since_checkpoint >= self.config.store.checkpoint_every:
                await self._compute.run(STORE, 0, self.ledger.checkpoint)
                self._prune = True
            if self._prune:
                self._prune = False
                in_use = self.desk.bases | self._evaluator.in_use
                if await self.publisher.prune(in_use) and self.ledger.since_checkpoint:
                    await self._compute.run(STORE, 0, self.ledger.checkpoint)
        except StoreError as error:
            self.updates.store_failed(error)

    def _behind(self) -> bool:
        """Says whether enough has happened since the last publication for another one."""
        newest = self.publisher.newest
        if newest is None or self.rounds is not None:  # a round starts from the version that the last one made
            return newest is None or newest.id.number != self.ledger.number
        return self.ledger.updates - newest.updates >= self.config.publish.every_updates

    async def _publish(self) -> None:
        tensors = await self._compute.run(STORE, 0, self.ledger.copy)
        self.publisher.publish(Snapshot(self.ledger.number, self.ledger.updates, tensors, {}))

    def _announced(self, stored: Stored | None) -> None:
        if stored is not None:
            published = stored.published
            down = wire_bytes(published.size, published.chunks)
            self._emit(events.Published(stored.id.number, published.size, down, published.codec, stored.id.digest))
            self._evaluator.offer(stored)
            self._prune = True
        if self._group is not None and not self._over.is_set():
            self._group.start(self._look_again(), name="coordinator: after a publication")

    async def _evaluated(self, stored: Stored, result: Evaluation) -> None:
        self.evaluations.append((stored.id.number, result))
        self._criteria.evaluated(result.acc, None if self.publisher.best is None else self.publisher.best.acc)
        best = self.publisher.evaluated(stored, result.acc)
        self._emit(events.Evaluated(stored.id.number, result.acc, dict(result.acc_by_modality), result.n, best))
        try:
            await self._compute.run(STORE, 0, self._store.save_accuracy, stored.id.number, result.acc)
        except StoreError as error:
            self.updates.store_failed(error)
        if best:
            await self.publisher.send_head()
        if not self._over.is_set():
            self._check_stop()

    async def _look_again(self) -> None:
        async with self._turn:
            if not self._over.is_set():
                await self._after()

    def _check_stop(self) -> None:
        met = self._criteria.met(self.ledger.updates)
        if met:
            self.stop(met)

    def _arm(self) -> None:
        """Sets the alarm to the next moment at which something is due without a message."""
        now_ns = self._clock.now_ns()
        publish_ns = self.publisher.ready_ns if self._behind() and not self.publisher.busy else None
        probation_ns = self.claim.until_ns if self.claim.until_ns > now_ns else None
        lobby_ns = self.reception.lobby.next_ns if self.claim.settled else None
        rounds_ns = None if self.rounds is None else self.rounds.next_ns
        self._alarm.set(
            [
                self._criteria.due_ns, publish_ns, probation_ns, lobby_ns, rounds_ns, self.desk.next_ns,
                self.updates.next_ns,
            ]
        )  # fmt: skip

    def pause(self) -> None:
        """Gives out no more tasks; updates under way are still taken."""
        self._switch("running", "paused")

    def resume(self) -> None:
        """Gives out tasks again."""
        self._switch("paused", "running")

    def _switch(self, before: str, after: str) -> None:
        if self._state == before and self._group is not None:
            self._set_state(after, "")
            self._group.start(self.publisher.send_head(), name="coordinator: head")
            self._group.start(self._look_again(), name=f"coordinator: {after}")

    def _set_state(self, state: str, reason: str) -> None:
        if state != self._state:
            self._state = self.publisher.state = state
            self._store.note(state)
            self._emit(events.StateChanged(state, reason))

    def stop(self, reason: str = "asked to") -> None:
        """Ends the federation as a stop criterion would."""
        self._set_state("finished", reason)
        self._over.set()

    async def _finish(self) -> None:
        """Publishes and evaluates the last version, ends training everywhere, and leaves a checkpoint."""
        async with self._turn:  # whatever was being handled is done
            newest = self.publisher.newest
        await self._idle()
        if newest is None or newest.id.number != self.ledger.number:
            await self._publish()
            await self._idle()
        if self.publisher.newest is not None:
            self._evaluator.offer(self.publisher.newest, final=True)
        try:
            await self._compute.run(STORE, 0, self.ledger.checkpoint)
        except StoreError as error:
            log.error("no final checkpoint: %s", error)
        await self._idle()
        await self.publisher.send_head()
        self.desk.stop_all()
        await self.mail.empty()

    async def _idle(self) -> None:
        """Waits until nothing is on its way out, and no result is to come."""
        await self.publisher.idle.wait()
        await self._evaluator.idle.wait()

    @property
    def tensors(self) -> ModelTensors:
        """The model now: a copy."""
        return self.ledger.copy()

    @property
    def tested(self) -> ModelTensors:
        """What was tested last, a version or the mean up to it; the model now where nothing is tested."""
        return self.ledger.copy() if self._evaluator.tested is None else self._evaluator.tested

    def version(self) -> VersionId | None:
        """Returns the newest published version."""
        return None if self.publisher.newest is None else self.publisher.newest.id


__all__ = ["Coordinator"]

"""The training side of a device: tasks in, updates out. Imported only where training is enabled: it needs torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from edge_sdk.codecs import wire
from edge_sdk.codecs.chain import Chain
from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.compute import SHORT, Compute
from edge_sdk.core.errors import CodecError
from edge_sdk.core.events import Observer
from edge_sdk.core.messages import QUERY, Task
from edge_sdk.core.records import Array, ModelTensors, ModelVersion, Update, UpdateKey
from edge_sdk.core.spec import FederationSpec
from edge_sdk.runtime.desk import Desk, Offered
from edge_sdk.runtime.events import TaskAbandoned, TaskStarted, UpdateQueued
from edge_sdk.runtime.link import Link
from edge_sdk.runtime.outbox import Outbox, Pending, Residual
from edge_sdk.runtime.subscriber import Subscriber
from edge_sdk.runtime.trainer import Abandoned, Trained, Trainer
from edge_sdk.runtime.upload import Uploader

ABANDONED_S = 30.0  # after a task that came to nothing, before we ask for another
MAX_AGAIN = 4  # further rounds on one task while the coordinator cannot be reached

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Round:
    """A trained task, or the sum of several rounds on it."""

    task: Task
    base: ModelVersion
    trained: Trained


class TaskLoop:
    """Takes tasks from the desk, one after the other, and leaves updates in the outbox.

    Args:
        spec: the federation's spec.
        trainer: carries out tasks.
        chain: the codec chain of updates.
        desk: gives tasks.
        subscriber: gives versions.
        uploader: takes updates.
        outbox: numbers updates and keeps the residual.
        link: says whether the coordinator can be reached.
        clock: what deadlines are counted on.
        compute: its short lane encodes.
        emit: the observer.
        ask: called when the device wants another task.
        own: called with the device's own model after every round.
    """

    def __init__(
        self,
        spec: FederationSpec,
        *,
        trainer: Trainer,
        chain: Chain,
        desk: Desk,
        subscriber: Subscriber,
        uploader: Uploader,
        outbox: Outbox,
        link: Link,
        clock: Clock,
        compute: Compute,
        emit: Observer,
        ask: Callable[[], None],
        own: Callable[[ModelTensors], None],
    ) -> None:
        self._spec = spec
        self._trainer = trainer
        self._chain = chain
        self._desk = desk
        self._subscriber = subscriber
        self._uploader = uploader
        self._outbox = outbox
        self._link = link
        self._clock = clock
        self._compute = compute
        self._emit = emit
        self._ask = ask
        self._own = own

    async def run(self) -> None:
        """Works for ever."""
        while True:
            await self._uploader.idle.wait()  # the residual of the next update depends on the reply to the last one
            offered = await self._desk.take()
            abandoned = await self._do(offered)
            if abandoned is None:
                self._desk.hand_in()
                continue
            await self._abandon(offered.task, abandoned)
            self._desk.put_down()
            self._ask()

    async def _do(self, offered: Offered) -> Abandoned | None:
        outcome = await self._attempt(offered)
        return outcome if isinstance(outcome, Abandoned) else await self._hand_in(outcome)

    async def _attempt(self, offered: Offered) -> Round | Abandoned:
        """Trains a task within its deadline."""
        task = offered.task
        limit_s = task.deadline_s or math.inf
        left_s = limit_s - (self._clock.now_ns() - offered.t_ns) / NS
        try:
            async with self._clock.deadline(left_s):
                base = await self._subscriber.version(task.base)
                if base is None:
                    return Abandoned(f"version {task.base.number} is gone")
                self._emit(TaskStarted(self._link.device, task.id, task.number, task.base, task.plan))
                extras = _extras(task, base)
                trained = await self._trainer.carry_out(task, base.tensors, extras)
        except TimeoutError:
            return Abandoned(f"not done within {limit_s:g} s")
        if isinstance(trained, Abandoned):
            return trained
        if task.kind != QUERY:
            self._own({**base.tensors, **trained.tensors})
        return Round(task, base, trained)

    async def _hand_in(self, done: Round) -> Abandoned | None:
        """Puts the update into the outbox; off-line, trains on and replaces it until its first chunk is sent."""
        key: UpdateKey | None = None
        for again in range(1, MAX_AGAIN + 2):
            queued = await self._queue(done, key)
            if isinstance(queued, Abandoned):
                return queued if key is None else None  # what was queued before stays
            key = queued
            if key is None or self._link.connected or again > MAX_AGAIN or done.task.kind == QUERY:
                return None
            more = await self._again(done, again)
            if more is None:
                return None
            done = more
        return None

    async def _again(self, done: Round, again: int) -> Round | None:
        """Trains another round on the same task, from the device's own weights."""
        start = {**done.base.tensors, **done.trained.tensors}
        more = await self._trainer.carry_out(done.task, start, _extras(done.task, done.base), again=again)
        if isinstance(more, Abandoned):
            return None
        self._own({**start, **more.tensors})
        return Round(done.task, done.base, _sum(done.trained, more))

    async def _queue(self, done: Round, replacing: UpdateKey | None) -> UpdateKey | Abandoned | None:
        """Returns the key under which the update is queued; None: the one it was to replace has been sent."""
        store = self._uploader.store
        key = await store(self._outbox.next_key)
        residual = await store(self._outbox.residual, done.base.id.lineage)
        update = _update(done, key, self._spec.digest)
        try:
            pending, raw_bytes = await self._compute.run(
                SHORT, 0, encode, self._chain, update, residual, done.base.tensors
            )
        except CodecError as error:
            return Abandoned(f"the update cannot be encoded: {error}")
        if not await self._uploader.queue(pending, replacing=replacing):
            return None
        self._emit(
            UpdateQueued(
                self._link.device, done.task.id, key, done.base.id, len(pending.data), raw_bytes,
                replaced=replacing is not None,
            )
        )  # fmt: skip
        return key

    async def _abandon(self, task: Task, outcome: Abandoned) -> None:
        log.warning("%s: task %s abandoned: %s", self._link.device, task.id, outcome.reason)
        self._emit(TaskAbandoned(self._link.device, task.id, outcome.reason))
        await self._clock.sleep(ABANDONED_S)


def encode(chain: Chain, update: Update, residual: Residual, base: ModelTensors) -> tuple[Pending, int]:
    """Returns an update ready for the outbox, and its size as float32."""
    encoded = chain.encode_update(update, residual, base)
    whole: Residual = encoded.residual  # full tensors stand for themselves: nothing is owed for them
    if chain.is_delta or update.kind == "delta":
        whole = {**residual, **{m: encoded.residual[m] + x for m, x in encoded.decoded.items()}}
    pending = Pending(
        key=update.key,
        task=update.task,
        base=update.base,
        digest=wire.object_digest(encoded.data),
        data=encoded.data,
        residual=encoded.residual,
        whole=whole,
    )
    return pending, encoded.raw_bytes


def _update(done: Round, key: UpdateKey, spec_digest: str) -> Update:
    trained = done.trained
    return Update(
        key=key,
        task=done.task.id,
        base=done.base.id,
        spec_digest=spec_digest,
        kind="full",  # the chain makes it a delta where it begins with one
        tensors=trained.tensors,
        num_samples=trained.num_samples,
        num_steps=trained.num_steps,
        modalities=trained.modalities,
        payload=trained.payload,
        train_s=trained.train_s,
        wait_s=trained.wait_s,
    )


def _extras(task: Task, base: ModelVersion) -> dict[str, Array]:
    return {**base.extras, **{name: wire.unpack_array(data) for name, data in task.extras.items()}}


def _sum(first: Trained, more: Trained) -> Trained:
    """Returns two rounds on one task as one update; the later weights and payload count."""
    return Trained(
        tensors={**first.tensors, **more.tensors},
        payload=more.payload,
        modalities=more.modalities,
        num_samples=first.num_samples + more.num_samples,
        num_steps=first.num_steps + more.num_steps,
        loss=more.loss,
        train_s=first.train_s + more.train_s,
        wait_s=first.wait_s + more.wait_s,
    )


__all__ = ["ABANDONED_S", "MAX_AGAIN", "Round", "TaskLoop", "encode"]

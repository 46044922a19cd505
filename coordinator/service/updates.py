"""Updates and questions of devices: from a chunk to the reply."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping

from coordinator import events
from coordinator.admission import Admission, Inspected, inspect
from coordinator.config import CoordinatorConfig
from coordinator.fleet import Fleet
from coordinator.publish import STORE, Publisher
from coordinator.service.applied import applied
from coordinator.service.desk import Desk
from coordinator.service.intake import Intake, peek_key
from coordinator.service.ledger import Ledger, full_values
from coordinator.service.mail import Mail
from coordinator.service.rounds import Rounds
from coordinator.store import Entry, Journal, OpenTask, Received, Store
from coordinator.store.base import Floats
from edge_sdk.codecs import wire
from edge_sdk.codecs.chain import peek_update
from edge_sdk.codecs.chunks import Assembled, Preamble
from edge_sdk.codecs.headers import UpdateHeader
from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.compute import SHORT, Compute
from edge_sdk.core.errors import (
    CodecError,
    EdgeError,
    NonFinite,
    Reason,
    ShapeMismatch,
    StoreError,
    UpdateRejected,
    WireFormatError,
)  # fmt: skip
from edge_sdk.core.events import Observer
from edge_sdk.core.messages import Fetch, Reply
from edge_sdk.core.records import ModelTensors, Update, UpdateKey, VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn.blending import KERNEL
from edge_sdk.learn.records import Rates, UpdateView

_BASES = 8  # mapped at the same time
# The device still has its task after these: nothing was wrong with the update, or it was not this task's.
_TASK_STAYS = frozenset(
    (Reason.STORE, Reason.DUPLICATE, Reason.SEQUENCE_REUSED, Reason.UNKNOWN_DEVICE, Reason.UNKNOWN_TASK)
)

log = logging.getLogger(__name__)


class Updates:
    """Takes what devices send."""

    def __init__(
        self, config: CoordinatorConfig, spec: FederationSpec, journal: Journal, *, ledger: Ledger, desk: Desk,
        fleet: Fleet, publisher: Publisher, store: Store, mail: Mail, clock: Clock, compute: Compute, emit: Observer,
        rounds: Rounds | None = None,
    ) -> None:  # fmt: skip
        self._rounds = rounds
        self.admission = Admission(config.admission, spec, ledger.method, journal)
        self._intake = Intake(config.admission)
        self._ledger = ledger
        self._desk = desk
        self._fleet = fleet
        self._publisher = publisher
        self._store = store
        self._mail = mail
        self._clock = clock
        self._compute = compute
        self._emit = emit
        self._bases: OrderedDict[VersionId, ModelTensors] = OrderedDict()
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._trouble = ""

    async def chunk(self, device: str, payload: bytes) -> None:
        """Takes a chunk of an update, and the update if it is whole now."""
        now_ns = self._clock.now_ns()
        try:
            done = self._intake.add(device, payload, now_ns)
        except CodecError as error:
            self._refuse(device, _sender(payload), "", error)
            return
        if done is not None:
            await self._take(device, done, now_ns)

    async def _take(self, device: str, done: Assembled, seen_ns: int) -> None:
        """The one place at which whatever is wrong with an update ends."""
        key: UpdateKey | None = None
        task = ""
        try:
            header = peek_update(done.data)
            key, task = header.key, header.task
            self.admission.check_sender(key, self._fleet.member(device))
            reply = self.admission.known(key, done.digest) or await self._apply(header, done, seen_ns)
        except (UpdateRejected, CodecError, StoreError) as error:
            reason = self._refuse(device, key, done.digest, error)
            open_task = self._desk.scheduler.task(task)
            if open_task is not None and open_task.device == device and reason not in _TASK_STAYS:
                await self._desk.close(open_task)
            return
        self._mail.reply(device, reply)

    async def _apply(self, header: UpdateHeader, done: Assembled, seen_ns: int) -> Reply:
        admission, ledger = self.admission, self._ledger
        member, task = self._fleet.member(done.source), self._desk.scheduler.task(header.task)
        admission.check_header(header)
        staleness = admission.check_base(
            header.base, self._publisher.held(header.base.number), lineage=self._store.lineage, number=ledger.number
        )
        task = admission.check_task(header, task, now_ns=self._clock.now_ns())
        base = await self._base(header.base)
        inspected = await self._compute.run(SHORT, 0, inspect, ledger.chain, ledger.layout, done.data, base)
        admission.check_payload(inspected.update, task)
        admission.check_norm(inspected.norm)
        if self._rounds is not None:
            return await self._take_part(self._rounds, done, inspected, task, base)
        rates, patch = ledger.decide(_view(inspected.update, ledger.number, staleness))
        entry = self._entry(done, inspected, rates, patch, staleness=staleness)
        await self._compute.run(STORE, 0, ledger.apply, entry, inspected.update, base)
        self._trouble = ""
        reply = admission.applied(entry, self._store.lineage)
        self._desk.scheduler.close(entry.task)
        member.may_renew = False
        log.info(
            "%s: update %d made version %d (staleness %d, %s)", entry.key.device, entry.key.sequence, entry.version,
            staleness, ", ".join(entry.modalities),
        )  # fmt: skip
        self._emit(
            applied(
                entry, inspected.update, rates=entry.rates, staleness=staleness, count=ledger.updates,
                figures=ledger.figures(), norms=inspected.norms, latency_s=(self._clock.now_ns() - seen_ns) / NS,
            )
        )  # fmt: skip
        return reply

    async def _take_part(
        self, rounds: Rounds, done: Assembled, inspected: Inspected, task: OpenTask, base: ModelTensors
    ) -> Reply:
        """Makes an update part of the round under way; it is weighed with its cohort."""
        update = inspected.update
        received = Received(
            version=rounds.making, kind=task.kind, key=update.key, task=task.id, base=update.base, digest=done.digest,
            chain=self._ledger.chain.text, num_samples=update.num_samples, num_steps=update.num_steps,
            modalities=update.modalities, norm=inspected.norm, utc_ns=self._clock.utc_ns(), body=done.data,
        )  # fmt: skip
        values = await self._compute.run(SHORT, 0, full_values, update, base)
        await rounds.take(received, update, values)
        self._trouble = ""
        reply = self.admission.applied(received, self._store.lineage)
        self._desk.scheduler.close(task.id)
        self._fleet.member(task.device).may_renew = False
        return reply

    async def _base(self, version: VersionId) -> ModelTensors:
        if version not in self._bases:
            self._bases[version] = await self._compute.run(STORE, 0, self._store.tensors, version)
            while len(self._bases) > _BASES:
                self._bases.popitem(last=False)
        self._bases.move_to_end(version)
        return self._bases[version]

    def _entry(
        self, done: Assembled, inspected: Inspected, rates: Rates, patch: Mapping[str, Floats], *, staleness: int
    ) -> Entry:  # fmt: skip
        update = inspected.update
        return Entry(
            version=self._ledger.number + 1, key=update.key, task=update.task, base=update.base, digest=done.digest,
            chain=self._ledger.chain.text, kernel=KERNEL, op=rates.op,
            rates={m: float(rates.by_module[m]) for m in update.tensors}, patch=patch, staleness=staleness,
            num_samples=update.num_samples, num_steps=update.num_steps, modalities=update.modalities,
            norm=inspected.norm, utc_ns=self._clock.utc_ns(), body=done.data,
        )  # fmt: skip

    def _refuse(self, device: str, key: UpdateKey | None, digest: str, error: EdgeError) -> Reason:
        reason, detail = _reason(error)
        if reason is Reason.STORE:
            self.store_failed(error)
        if reason is Reason.SEQUENCE_REUSED:
            self._fleet.member(device).may_renew = True
        log.warning("%s: update %s refused: %s", device, "?" if key is None else key.sequence, error)
        self._emit(events.UpdateRejected(device, -1 if key is None else key.sequence, reason.value, detail))
        if key is not None:
            newest = self._publisher.newest
            reply = Reply("rejected", key, reason.value, detail[:1000], None if newest is None else newest.id)
            if reason is not Reason.STORE and digest:  # a full disk is no verdict on the update
                self.admission.refused(key, digest, reply)
            self._mail.reply(device, reply)
        return reason

    def store_failed(self, error: EdgeError) -> None:
        """Says that the store refuses, once until it works again."""
        if not self._trouble:
            self._trouble = str(error)
            log.error("the store refuses; updates are not taken until it works again: %s", error)
            self._emit(events.StoreFailed(str(error)))

    def turn_away(self, device: str, payload: bytes) -> None:
        """Answers the update of a device that may not take part."""
        key = peek_key(payload)
        if key is not None:
            detail = f"{device!r} is not enrolled with this coordinator"
            self._refuse(device, key, "", UpdateRejected(Reason.UNKNOWN_DEVICE, detail))

    async def question(self, device: str, payload: bytes) -> None:
        """Answers a device's question."""
        fetch = wire.decode(Fetch, payload)
        if fetch.want == "task":
            await self._desk.asked(device)
        elif fetch.want == "model" and fetch.version is not None:
            await self._send_model(device, fetch.version, fetch.chunks)
        elif fetch.want == "update" and fetch.key is not None:
            self._what_became(device, fetch.key, fetch.digest)
        else:
            raise WireFormatError(f"a question for {fetch.want!r} lacks what it is about")

    def _what_became(self, device: str, key: UpdateKey, digest: str) -> None:
        try:
            self.admission.check_sender(key, self._fleet.member(device))
            reply = self.admission.known(key, digest)
        except UpdateRejected as error:
            self._refuse(device, key, digest, error)
            return
        if reply is None:
            missing = self._intake.missing(device, key, digest)
            reply = Reply("missing", key, chunks=missing) if missing else Reply("unknown", key)
        self._mail.reply(device, reply)

    async def _send_model(self, device: str, version: VersionId, numbers: tuple[int, ...]) -> None:
        sending = self._sending.get(device)
        if sending is not None and not sending.done():
            return  # its question came twice
        parts = await self._publisher.chunks_of(version, numbers)
        if not parts:
            self._mail.reply(device, Reply("unknown", version=version))
            return
        self._sending[device] = self._mail.chunks(device, parts)
        self._emit(events.ModelSent(device, version.number, len(parts), sum(len(part) for part in parts)))

    def ask_missing(self) -> None:
        """Asks for chunks that did not come."""
        for question in self._intake.quiet(self._clock.now_ns()):
            self._mail.reply(question.device, Reply("missing", question.update, chunks=question.chunks))

    @property
    def next_ns(self) -> int | None:
        """When `ask_missing` has something to do."""
        return self._intake.next_ns


def _reason(error: EdgeError) -> tuple[Reason, str]:
    if isinstance(error, UpdateRejected):
        return error.reason, error.detail
    if isinstance(error, StoreError):
        return Reason.STORE, str(error)
    kinds = ((ShapeMismatch, Reason.SHAPE), (NonFinite, Reason.NON_FINITE))
    return next((reason for kind, reason in kinds if isinstance(error, kind)), Reason.MALFORMED), str(error)


def _sender(chunk: bytes) -> UpdateKey | None:
    """Returns whose update a refused chunk belongs to; one that was damaged on the way counts as lost instead."""
    try:
        Preamble.parse(chunk)
    except WireFormatError:
        return None
    return peek_key(chunk)


def _view(update: Update, number: int, staleness: int) -> UpdateView:
    return UpdateView(
        device=update.key.device, version=number, staleness=staleness, modules=tuple(update.tensors),
        modalities=update.modalities, num_samples=update.num_samples, num_steps=update.num_steps,
        payload=update.payload,
    )  # fmt: skip


__all__ = ["Updates"]

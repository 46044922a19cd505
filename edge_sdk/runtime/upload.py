"""Brings updates from the outbox to the coordinator: chunks up, reply down, whatever breaks in between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from edge_sdk.codecs import chunks
from edge_sdk.core.clock import Clock
from edge_sdk.core.compute import SHORT, Compute
from edge_sdk.core.errors import Reason, StoreError
from edge_sdk.core.events import Observer
from edge_sdk.core.messages import Fetch, Reply
from edge_sdk.core.records import UpdateKey
from edge_sdk.runtime.events import TrainingWaits, UpdateAccepted, UpdateRefused
from edge_sdk.runtime.link import Link
from edge_sdk.runtime.outbox import Outbox, Pending, Settlement, settlement
from edge_sdk.runtime.state import STATE

P = ParamSpec("P")
T = TypeVar("T")

REPLY_S = 60.0  # without a reply for this long we ask what became of the update
_LONGEST_REPLY_S = 600.0
STORE_RETRY_S = 30.0

log = logging.getLogger(__name__)


class Uploader:
    """One update at a time, oldest first.

    Args:
        link: the wire; None where there is no coordinator.
        outbox: what is owed.
        clock: what waiting is counted on.
        compute: its state lane runs the outbox.
        emit: the observer.
        settled: called with (task, accepted) when an update has its reply.
    """

    def __init__(
        self,
        link: Link,
        outbox: Outbox,
        *,
        clock: Clock,
        compute: Compute,
        emit: Observer,
        settled: Callable[[str, bool], None],
    ) -> None:
        self._link = link
        self._outbox = outbox
        self._clock = clock
        self._compute = compute
        self._emit = emit
        self._settled = settled
        self._offered = asyncio.Event()
        self._mail: asyncio.Queue[Reply | None] = asyncio.Queue()  # None: ask again now
        self._trouble = ""
        self.idle = asyncio.Event()  # nothing is pending

    def heard(self, reply: Reply) -> None:
        """Takes a reply from the wire."""
        self._mail.put_nowait(reply)

    def nudge(self) -> None:
        """The coordinator or the connection is back: what it knows of our update has to be asked."""
        self._mail.put_nowait(None)

    async def queue(self, update: Pending, *, replacing: UpdateKey | None = None) -> bool:
        """Stores an update; False if it was to replace one that has been sent meanwhile."""
        self.idle.clear()
        stored = await self.store(self._outbox.put, update, replacing)
        self._offered.set()
        return stored

    async def store(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a call on the state lane; while the disk refuses, waits and tries again, and says so once."""
        while True:
            try:
                result = await self._compute.run(STATE, 0, call, *args, **kwargs)
            except StoreError as error:
                if not self._trouble:
                    log.error("%s: training waits: %s", self._link.device, error)
                    self._trouble = str(error)
                    self._emit(TrainingWaits(self._link.device, self._trouble))
                await self._clock.sleep(STORE_RETRY_S)
                continue
            if self._trouble:
                self._trouble = ""
                self._emit(TrainingWaits(self._link.device, ""))
            return result

    async def run(self) -> None:
        """Delivers whatever is pending, for ever."""
        while True:
            self._offered.clear()
            pending = await self.store(self._outbox.oldest)
            if pending is not None:
                await self._deliver(pending)
                continue
            self.idle.set()
            await self._offered.wait()
            self.idle.clear()

    async def _deliver(self, pending: Pending) -> None:
        await self._link.up()
        self._forget_mail()
        if pending.sent:
            await self._ask(pending)
        elif not await self.store(self._outbox.mark_sent, pending.key):
            return  # replaced by a newer one while we waited for the connection
        else:
            await self._send(pending, ())
        patience_s = REPLY_S
        while True:
            reply = await self._reply(pending.key, patience_s)
            if reply is None:
                patience_s = min(2 * patience_s, _LONGEST_REPLY_S)
                await self._link.up()
                await self._ask(pending)
            elif reply.kind in ("missing", "unknown"):
                await self._send(pending, reply.chunks if reply.kind == "missing" else ())
            else:
                await self._settle(pending, reply)
                return

    async def _ask(self, pending: Pending) -> None:
        topic = self._link.topics.fetch(self._link.device)
        await self._link.send(topic, Fetch("update", key=pending.key, digest=pending.digest))

    async def _send(self, pending: Pending, numbers: tuple[int, ...]) -> None:
        """Sends the chunks with these numbers, () = all; what does not get through is asked for later."""
        key = chunks.update_key(pending.key, pending.digest)
        whole = await self._compute.run(SHORT, 0, chunks.split, pending.data, "update", key, digest=pending.digest)
        wanted = [whole[n] for n in numbers if n < len(whole)] if numbers else whole
        if not await self._link.send_chunks(wanted):
            self._mail.put_nowait(None)

    async def _reply(self, key: UpdateKey, patience_s: float) -> Reply | None:
        """Returns the reply to an update; None: ask for it."""
        try:
            async with self._clock.deadline(patience_s):
                while True:
                    reply = await self._mail.get()
                    if reply is None or reply.key == key:
                        return reply
        except TimeoutError:
            return None

    async def _settle(self, pending: Pending, reply: Reply) -> None:
        accepted = reply.kind == "accepted"
        outcome = Settlement.KEEP if accepted else settlement(reply.reason)
        if reply.reason == Reason.SEQUENCE_REUSED.value:
            log.error("%s: its sequence numbers were used by another program; was its disk copied?", pending.key.device)
            await self.store(self._outbox.renew)
        await self.store(self._outbox.settle, pending.key, outcome)
        device = pending.key.device
        if accepted:
            self._emit(UpdateAccepted(device, pending.key, reply.version))
        else:
            log.warning("%s: update %d refused: %s %s", device, pending.key.sequence, reply.reason, reply.detail)
            self._emit(UpdateRefused(device, pending.key, reply.reason, reply.detail))
        self._settled(pending.task, accepted)

    def _forget_mail(self) -> None:
        while not self._mail.empty():
            self._mail.get_nowait()


__all__ = ["REPLY_S", "STORE_RETRY_S", "Uploader"]

"""What comes in from the broker, and to whom it goes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from coordinator import events
from coordinator.publish import Publisher
from coordinator.service.claim import Claim
from coordinator.service.door import Door
from coordinator.service.lobby import Lobby
from coordinator.service.mail import Mail
from coordinator.service.updates import Updates
from edge_sdk.codecs import wire
from edge_sdk.core.clock import Clock
from edge_sdk.core.errors import WireFormatError
from edge_sdk.core.events import Observer
from edge_sdk.core.interfaces import Connected, Message, TransportEvent
from edge_sdk.core.messages import SpecMessage
from edge_sdk.core.spec import FederationSpec
from edge_sdk.transport.topics import Topics

log = logging.getLogger(__name__)


class Reception:
    """Takes what the transport delivers.

    Args:
        spec: said on every connection.
        claim: on the federation.
        door: takes statuses.
        updates: takes updates and questions.
        publisher: sends everything again on every connection.
        mail: carries the spec.
        lineage: of our store.
        clock: of the lobby.
        emit: the observer.
    """

    def __init__(
        self, spec: FederationSpec, claim: Claim, *, door: Door, updates: Updates, publisher: Publisher, mail: Mail,
        lineage: str, clock: Clock, emit: Observer,
    ) -> None:  # fmt: skip
        self._spec = spec
        self._claim = claim
        self._door = door
        self._updates = updates
        self._publisher = publisher
        self._mail = mail
        self._lineage = lineage
        self._emit = emit
        self._held = True
        self.lobby = Lobby(clock)
        self._topics = Topics(spec.name)
        self._handlers: Mapping[str, Callable[[str, bytes], Awaitable[None]]] = {
            "status": door.status, "update": updates.chunk, "fetch": updates.question,
        }  # fmt: skip

    async def happened(self, event: TransportEvent) -> None:
        """Takes an event; a message that breaks the format is said and passed over.

        Raises:
            ConfigError: another coordinator has this federation.
        """
        if isinstance(event, Connected):
            self._claim.connected()
            self._publisher.hold()
            self._held = True
            self._say_spec()
        elif isinstance(event, Message):
            try:
                await self._message(event)
            except WireFormatError as error:
                log.warning("%s: %s", event.topic, error)

    async def _message(self, message: Message) -> None:
        where = self._topics.parse(message.topic)
        if where.kind == "spec":
            self._spec_message(message)
        elif where.kind not in self._handlers or not message.payload:
            return
        elif not self._claim.settled:
            self.lobby.put(where.kind, where.device, message.payload)
            self.lobby.hurry()
        elif await self._door.welcome(where.device):
            await self._let_in(where.device)  # what it said before comes before what it says now
            await self._handlers[where.kind](where.device, message.payload)
        else:
            self.lobby.put(where.kind, where.device, message.payload)
            if where.kind == "update":
                self._updates.turn_away(where.device, message.payload)

    async def look_again(self) -> None:
        """Serves who waited outside and may come in by now; until the federation is ours nobody is told anything."""
        if not self._claim.settled:
            return
        if self._held:
            self._held = False
            self._publisher.release()
        for device in self.lobby.devices():
            if await self._door.welcome(device):
                await self._let_in(device)

    async def _let_in(self, device: str) -> None:
        for kind, payload in self.lobby.take(device):
            try:
                await self._handlers[kind](device, payload)
            except WireFormatError as error:
                log.warning("%s of %s: %s", kind, device, error)

    def _spec_message(self, message: Message) -> None:
        if not message.payload:  # somebody has cleared it
            self._say_spec()
            return
        spec = wire.decode(SpecMessage, message.payload)
        if self._claim.heard(spec, retained=message.retained):
            detail = f"another coordinator (id {spec.coordinator}) tried to take federation {self._spec.name!r}"
            log.warning("%s", detail)
            self._emit(events.Conflict(spec.coordinator, detail))
            self._say_spec()
            self._publisher.release()

    def _say_spec(self) -> None:
        stats = {"lineage": self._lineage}
        message = SpecMessage(self._spec.canonical(), self._spec.digest, self._claim.me, stats)
        self._mail.post(self._topics.spec, wire.encode(message), retain=True)


__all__ = ["Reception"]

"""The device's end of the wire: what it says, to whom, and whether anybody is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from edge_sdk.codecs import wire
from edge_sdk.core.clock import Clock
from edge_sdk.core.errors import NotConnected
from edge_sdk.core.interfaces import Transport
from edge_sdk.transport.topics import Topics

_AT_ONCE = 16  # chunks on their way to the broker
_BREATH_S = 0.1  # after a lost connection, so that the transport can notice

log = logging.getLogger(__name__)


class Link:
    """Sends a device's messages.

    Args:
        transport: how to reach the broker.
        federation: its name.
        device: our id.
        clock: what pauses are counted on.
    """

    def __init__(self, transport: Transport, federation: str, device: str, clock: Clock) -> None:
        self.transport = transport
        self.topics = Topics(federation)
        self.device = device
        self._clock = clock
        self._changed = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Says whether the broker is connected now."""
        return self.transport.connected

    def changed(self) -> None:
        """Called when the connection came or went."""
        self._changed.set()

    async def up(self) -> None:
        """Waits until the broker is connected."""
        while not self.transport.connected:
            self._changed.clear()
            await self._changed.wait()

    async def send(self, topic: str, message: Any, *, retain: bool = False) -> bool:
        """Publishes a message; False if the connection is or went down."""
        return await self._publish(topic, wire.encode(message), retain=retain)

    async def send_chunks(self, chunks: Sequence[bytes]) -> bool:
        """Publishes chunks of an update, several at a time; False if the connection is or went down."""
        topic = self.topics.update(self.device)
        for start in range(0, len(chunks), _AT_ONCE):
            batch = chunks[start : start + _AT_ONCE]
            if len(batch) == 1:
                sent = [await self._publish(topic, batch[0])]
            else:
                sent = await asyncio.gather(*(self._publish(topic, chunk) for chunk in batch))
            if not all(sent):
                return False
        return True

    async def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        try:
            await self.transport.publish(topic, payload, retain=retain)
        except NotConnected:
            await self._clock.sleep(_BREATH_S)
            return False
        return True


__all__ = ["Link"]

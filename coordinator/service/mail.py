"""What goes out to devices: handed to tasks, so that a slow broker never holds up the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from edge_sdk.codecs import tasks, wire
from edge_sdk.core.clock import Group
from edge_sdk.core.errors import TransportError
from edge_sdk.core.interfaces import Transport
from edge_sdk.core.messages import Reply, Task
from edge_sdk.transport.topics import Topics

log = logging.getLogger(__name__)


class Mail:
    """Sends messages; one that the broker did not get is lost, and its device asks again.

    Args:
        transport: how to reach the broker.
        topics: of the federation.
    """

    def __init__(self, transport: Transport, topics: Topics) -> None:
        self._transport = transport
        self._topics = topics
        self._tasks: set[asyncio.Task[Any]] = set()
        self.group: Group | None = None  # tasks live in it

    def reply(self, device: str, reply: Reply) -> None:
        """Answers a device."""
        self.post(self._topics.reply(device), wire.encode(reply))

    def task(self, device: str, task: Task) -> None:
        """Gives a device work."""
        self._start(self._all(self._topics.task(device), tasks.encode(device, task)), f"task for {device}")

    def chunks(self, device: str, parts: Sequence[bytes]) -> asyncio.Task[None]:
        """Sends chunks to one device, one after the other: it shares its link with everybody else."""
        return self._start(self._all(self._topics.reply(device), parts), f"chunks for {device}")

    def post(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publishes something."""
        self._start(self._publish(topic, payload, retain=retain), f"message to {topic}")

    def _start(self, coroutine: Any, name: str) -> asyncio.Task[None]:
        assert self.group is not None, "mail goes out while the coordinator runs"
        task: asyncio.Task[None] = self.group.start(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _all(self, topic: str, parts: Sequence[bytes]) -> None:
        for part in parts:
            if not await self._publish(topic, part):
                return

    async def _publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        try:
            await self._transport.publish(topic, payload, retain=retain)
        except TransportError as error:
            log.debug("%s: not sent: %s", topic, error)
            return False
        return True

    async def empty(self) -> None:
        """Waits until everything is with the broker, or lost."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))


__all__ = ["Mail"]

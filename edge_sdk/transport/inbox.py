"""What a transport has received and its one consumer has not taken yet."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.interfaces import Message, TransportEvent

_DEFERRED = 64  # events that wait for one of another kind before the consumer is woken for them alone

Will = tuple[str, bytes, bool]  # topic, payload, retain: what the broker publishes when the client is lost


@dataclass(slots=True)
class Traffic:
    """What a client has sent and received, counted in whole MQTT PUBLISH packets."""

    bytes_up: int = 0
    bytes_down: int = 0
    messages_up: int = 0
    messages_down: int = 0
    dropped: int = 0  # received, but not kept: the consumer is too far behind


class Inbox(AsyncIterator[TransportEvent]):
    """An ordered stream of events for one consumer; an event may be due only later (a modelled link).

    An iterator and not a generator: a consumer may give up waiting (a deadline) and go on later.

    Args:
        clock: what due times refer to.
        on_take: called whenever the consumer takes an event.
    """

    def __init__(self, clock: Clock, on_take: Callable[[], None] | None = None) -> None:
        self._clock = clock
        self._on_take = on_take
        self._items: deque[tuple[int, TransportEvent]] = deque()  # due_ns, event
        self._wake: asyncio.Future[None] | None = None
        self._closed = False
        self._quiet = False  # the last event was deferred
        self.bytes = 0  # payload bytes that wait here

    def put(self, event: TransportEvent, due_ns: int = 0, *, deferred: bool = False) -> None:
        """Adds an event at the end.

        The first deferred one after another kind wakes the consumer, which may let go of what it holds; those that
        come after it wait for an event of another kind, or until there are many.
        """
        self._items.append((due_ns, event))
        if isinstance(event, Message):
            self.bytes += len(event.payload)
        if not (deferred and self._quiet) or len(self._items) >= _DEFERRED:
            self._notify()
        self._quiet = deferred

    def drop_undelivered(self) -> None:
        """Takes back what is not due yet: it was on the way when the connection broke."""
        now_ns = self._clock.now_ns()
        while self._items and self._items[-1][0] > now_ns:
            self._count_out(self._items.pop()[1])

    def close(self) -> None:
        """Lets the consumer take what is left, and ends the stream."""
        self.drop_undelivered()
        self._closed = True
        self._notify()

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> TransportEvent:
        """Returns the next event when it is due; StopAsyncIteration after `close`."""
        while not self._items or self._items[0][0] > self._clock.now_ns():
            if self._closed and not self._items:
                raise StopAsyncIteration
            await self._changed()
        event = self._items.popleft()[1]
        self._count_out(event)
        if self._on_take is not None:
            self._on_take()
        return event

    def _wait_s(self) -> float:
        due_ns = self._items[0][0]
        return (due_ns - self._clock.now_ns()) / NS if due_ns else 0.0

    async def _changed(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        try:
            if not self._items:
                await self._wake
                return
            async with self._clock.deadline(self._wait_s()):
                await self._wake
        except TimeoutError:
            pass  # the first event is due now
        finally:
            self._wake = None

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _count_out(self, event: TransportEvent) -> None:
        if isinstance(event, Message):
            self.bytes -= len(event.payload)


__all__ = ["Inbox", "Traffic", "Will"]

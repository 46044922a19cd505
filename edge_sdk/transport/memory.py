"""A broker and its clients inside one event loop, with MQTT's semantics and a modelled link.

As good as the real one: QoS 1, retained messages, last will, clean sessions, wildcards, take-over of a client id.
A `Link` gives each client a one-way latency, rates up and down, loss and off-line spans on the `Clock`, so that
the same code runs under virtual time and on the wall clock. Without a link a message takes no time.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator
from contextlib import suppress

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.errors import NotConnected
from edge_sdk.core.interfaces import Connected, Disconnected, Message, Transport, TransportEvent
from edge_sdk.transport.inbox import Inbox, Traffic, Will
from edge_sdk.transport.link import Link
from edge_sdk.transport.topics import check_filter, check_topic, matches, packet_bytes


class MemoryBroker:
    """The broker of the memory transport.

    Args:
        clock: what links are timed on.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.retained: dict[str, bytes] = {}
        self._members: dict[str, MemoryTransport] = {}  # started clients by id, in the order of their start
        self._listeners: dict[str, set[MemoryTransport]] = {}  # topic → who subscribes to it by name
        self._wild: set[MemoryTransport] = set()  # who subscribes with wildcards
        self._audience: dict[str, tuple[MemoryTransport, ...]] = {}  # topic → subscribers, as long as nobody changes
        self._started = 0
        self._up = True

    @property
    def running(self) -> bool:
        """False between stop() and start()."""
        return self._up

    def stop(self, *, forget: bool = True) -> None:
        """Goes down: everybody is disconnected; `forget` loses the retained messages, as an embedded broker does."""
        self._up = False
        for member in tuple(self._members.values()):
            member.lose("the broker stopped", publish_will=False)
        if forget:
            self.retained.clear()

    def start(self) -> None:
        """Comes back: everybody whose link is up connects again."""
        self._up = True
        for member in tuple(self._members.values()):
            member.connect_again()

    def drop(self, client_id: str, *, reason: str = "the connection broke") -> None:
        """Cuts one client's connection, as a cable pulled out would; it is back only at `reconnect`."""
        self._members[client_id].lose(reason, publish_will=True)

    def reconnect(self, client_id: str) -> None:
        """Lets a dropped client connect again."""
        self._members[client_id].connect_again()

    def attach(self, member: MemoryTransport) -> None:
        """Takes a client in; another one under its id loses its connection for good."""
        before = self._members.pop(member.client_id, None)
        if before is not None:
            before.lose("another client connected under the same id", publish_will=True)
        self._started += 1
        member.place = self._started
        self._members[member.client_id] = member
        self._audience.clear()

    def detach(self, member: MemoryTransport) -> None:
        """Lets a client go."""
        self._wild.discard(member)
        self._audience.clear()
        if self._members.get(member.client_id) is member:
            del self._members[member.client_id]

    def route(self, message: Message, size: int, *, retain: bool) -> None:
        """Delivers a message of `size` bytes that has reached the broker to all that subscribe to it."""
        if retain and message.payload:
            self.retained[message.topic] = message.payload
        elif retain:
            self.retained.pop(message.topic, None)
        for member in [m for m in self._subscribers(message.topic) if m.connected]:
            member.deliver(message, size)

    def _subscribers(self, topic: str) -> tuple[MemoryTransport, ...]:
        """Returns who subscribes to a topic, in the order of their start."""
        found = self._audience.get(topic)
        if found is None:
            wild = (m for m in self._wild if m.wants(topic))
            found = tuple(sorted({*self._listeners.get(topic, ()), *wild}, key=_place))
            self._audience[topic] = found
        return found

    def _changed(self, topic_filter: str) -> None:
        """Forgets the subscribers that a change to this filter concerns, and no others: every fetch changes some."""
        if _is_wild(topic_filter):
            self._audience.clear()
        else:
            self._audience.pop(topic_filter, None)

    def listen(self, member: MemoryTransport, topic_filter: str) -> None:
        """Notes whom messages to a topic may concern, so that finding them costs no look at every client."""
        self._changed(topic_filter)
        if _is_wild(topic_filter):
            self._wild.add(member)
        else:
            self._listeners.setdefault(topic_filter, set()).add(member)

    def ignore(self, member: MemoryTransport, topic_filter: str) -> None:
        """Forgets that a client subscribes to a topic."""
        self._changed(topic_filter)
        listeners = self._listeners.get(topic_filter, set())
        listeners.discard(member)
        if not listeners:
            self._listeners.pop(topic_filter, None)

    def kept(self, filters: tuple[str, ...]) -> list[Message]:
        """Returns the retained messages that these filters cover, oldest topic first."""
        named = set(filters)
        if len(named) == 1 and not _is_wild(filters[0]):
            topics = [filters[0]] if filters[0] in self.retained else []
        elif not any(_is_wild(f) for f in named):
            topics = [topic for topic in self.retained if topic in named]
        else:
            topics = [topic for topic in self.retained if any(matches(f, topic) for f in named)]
        return [Message(topic, self.retained[topic], retained=True) for topic in topics]


def _place(member: MemoryTransport) -> int:
    return member.place


def _is_wild(topic_filter: str) -> bool:
    return "+" in topic_filter or "#" in topic_filter


class MemoryTransport(Transport):
    """A client of a `MemoryBroker`.

    Args:
        broker: the broker.
        client_id: its id there.
        will: topic, payload, retain flag of the last will.
        link: how it reaches the broker; None: messages take no time.
        rng: decides losses; None: seeded with the client id.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        *,
        will: Will | None = None,
        link: Link | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.client_id = client_id
        self.traffic = Traffic()
        self.place = 0  # among the clients that were started
        self._broker = broker
        self._clock = broker.clock
        self._will = will
        self._link = link
        self._rng = rng or random.Random(client_id)
        self._inbox = Inbox(broker.clock)
        self._exact: set[str] = set()
        self._wild: dict[str, None] = {}
        self._deferred: set[str] = set()
        self._broken: asyncio.Event | None = None  # set when the present connection is lost; None: not connected
        self._connections = 0
        self._up_free_ns = 0
        self._down_free_ns = 0
        self._off = False  # inside an off-line span
        self._spans: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Connects at once, unless the broker is down or the link begins off-line."""
        self._broker.attach(self)
        if self._link is not None and self._link.offline:
            self._off = self._link.offline[0][0] == 0
            self._spans = asyncio.get_running_loop().create_task(
                self._follow(self._link.offline, self._clock.now_ns()), name=f"link of {self.client_id}"
            )
        self.connect_again()

    async def aclose(self) -> None:
        """Disconnects for good; the last will is not sent."""
        if self._spans is not None:
            self._spans.cancel()
            with suppress(asyncio.CancelledError):
                await self._spans
            self._spans = None
        self._closed = True
        self.lose("closed", publish_will=False)
        for topic in self._exact:
            self._broker.ignore(self, topic)
        self._broker.detach(self)
        self._inbox.close()

    @property
    def connected(self) -> bool:
        """True between Connected and Disconnected."""
        return self._broken is not None

    async def subscribe(self, *filters: str) -> None:
        """Subscribes now and after every reconnect; what is retained there is delivered (again)."""
        for topic_filter in filters:
            check_filter(topic_filter)
            if _is_wild(topic_filter):
                self._wild[topic_filter] = None
            else:
                self._exact.add(topic_filter)
            self._broker.listen(self, topic_filter)
        if self.connected:
            await self._round_trip()
            self._deliver_retained(filters)

    async def unsubscribe(self, *filters: str) -> None:
        """Takes subscriptions back."""
        for topic_filter in filters:
            self._exact.discard(topic_filter)
            self._wild.pop(topic_filter, None)
            self._broker.ignore(self, topic_filter)
        if self.connected:
            await self._round_trip()

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Returns after the modelled time to the broker and back; NotConnected if the link is or goes down."""
        check_topic(topic)
        broken = self._broken
        if broken is None:
            raise NotConnected(f"{self.client_id} is not connected; the message to {topic} was not sent")
        message = Message(topic, payload if isinstance(payload, bytes) else bytes(payload))
        size = packet_bytes(topic, payload)
        again = True
        while again:  # a copy more for every acknowledgement that is lost
            arrival_ns = self._send(size)
            await self._pass(arrival_ns, broken, topic)
            self._broker.route(message, size, retain=retain)
            again = self._lost()
            if self._link is not None:
                wait_s = self._link.resend_s if again else self._link.latency_s
                await self._pass(self._clock.now_ns() + round(wait_s * NS), broken, topic)

    def events(self) -> AsyncIterator[TransportEvent]:
        """Yields what happened, in order; ends after aclose()."""
        return self._inbox

    def connect_again(self) -> None:
        """Called by the broker and by the link: connects if nothing is in the way."""
        if self._broken is not None or self._off or self._closed or not self._broker.running:
            return
        self._broken = asyncio.Event()
        self._connections += 1
        self._up_free_ns = self._down_free_ns = self._clock.now_ns()
        self._inbox.put(Connected(self._connections))
        self._deliver_retained((*sorted(self._exact), *self._wild))

    def lose(self, reason: str, *, publish_will: bool) -> None:
        """Called by the broker and by the link: the connection is gone, with all that was on the way."""
        if self._broken is None:
            return
        self._broken.set()
        self._broken = None
        self._inbox.drop_undelivered()
        self._inbox.put(Disconnected(reason))
        if publish_will and self._will is not None:
            topic, payload, retain = self._will
            self._broker.route(Message(topic, payload), packet_bytes(topic, payload), retain=retain)

    def defer(self, *topics: str) -> None:
        """Lets messages to these topics wait for the next event of another kind."""
        self._deferred |= {*topics}

    def wants(self, topic: str) -> bool:
        """Says whether a wildcard of this client covers a topic."""
        return any(matches(f, topic) for f in self._wild)

    def deliver(self, message: Message, size: int) -> None:
        """Called by the broker: sends a message of `size` bytes down the link."""
        if self._link is None:
            self._receive(message, size, 0)
            return
        for _ in range(2 if self._lost() else 1):  # twice: its PUBACK was lost
            self._down_free_ns = self._transmit(self._down_free_ns, size, self._link.down_bytes_per_s)
            self._receive(message, size, self._down_free_ns + round(self._link.latency_s * NS))

    def _receive(self, message: Message, size: int, due_ns: int) -> None:
        self.traffic.bytes_down += size
        self.traffic.messages_down += 1
        self._inbox.put(message, due_ns, deferred=message.topic in self._deferred)

    def _deliver_retained(self, filters: tuple[str, ...]) -> None:
        for message in self._broker.kept(filters):
            self.deliver(message, packet_bytes(message.topic, message.payload))

    def _send(self, size: int) -> int:
        """Puts a packet on the way up; returns when it reaches the broker, ns."""
        self.traffic.bytes_up += size
        self.traffic.messages_up += 1
        if self._link is None:
            return self._clock.now_ns()
        self._up_free_ns = self._transmit(self._up_free_ns, size, self._link.up_bytes_per_s)
        return self._up_free_ns + round(self._link.latency_s * NS)

    def _transmit(self, free_ns: int, size: int, rate: float) -> int:
        """Returns when the last bit has left, ns; every loss costs `resend_s`."""
        assert self._link is not None
        end_ns = max(free_ns, self._clock.now_ns()) + round(size / rate * NS)
        while self._lost():
            end_ns += round(self._link.resend_s * NS)
        return end_ns

    def _lost(self) -> bool:
        return self._link is not None and self._link.loss > 0 and self._rng.random() < self._link.loss

    async def _round_trip(self) -> None:
        broken = self._broken
        if broken is not None and self._link is not None:
            with suppress(NotConnected):  # a lost subscription is made again with the next connection
                await self._pass(self._clock.now_ns() + 2 * round(self._link.latency_s * NS), broken, "")

    async def _pass(self, until_ns: int, broken: asyncio.Event, topic: str) -> None:
        """Waits, but not longer than the connection lives."""
        left_ns = until_ns - self._clock.now_ns()
        if left_ns <= 0:
            await self._clock.sleep(0)
        else:
            with suppress(TimeoutError):
                async with self._clock.deadline(left_ns / NS):
                    await broken.wait()
        if broken.is_set():
            raise NotConnected(f"{self.client_id} lost its connection; the message to {topic} may not have arrived")

    async def _follow(self, spans: tuple[tuple[float, float], ...], origin_ns: int) -> None:
        for begin_s, end_s in spans:
            await self._clock.sleep_until(origin_ns + round(begin_s * NS))
            self._off = True
            self.lose("the link is down", publish_will=True)
            if not math.isfinite(end_s):
                return
            await self._clock.sleep_until(origin_ns + round(end_s * NS))
            self._off = False
            self.connect_again()


__all__ = ["Link", "MemoryBroker", "MemoryTransport"]

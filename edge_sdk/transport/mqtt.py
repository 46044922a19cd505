"""The transport of real devices: MQTT 3.1.1, QoS 1, clean sessions, through the running event loop.

What is sent while there is no connection is not kept: `publish` raises NotConnected and the outbox (or whoever
asks) tries again. Trouble that repeats is logged once and counted.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator

from paho.mqtt.client import MQTTMessage

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.compute import SHORT, Compute
from edge_sdk.core.config import BrokerConfig
from edge_sdk.core.errors import NotConnected, TransportError
from edge_sdk.core.interfaces import Connected, Disconnected, Message, Transport, TransportEvent
from edge_sdk.transport.connection import Connection
from edge_sdk.transport.inbox import Inbox, Traffic, Will
from edge_sdk.transport.topics import check_filter, check_topic, packet_bytes

WINDOW = 20  # messages in flight at most; brokers' usual limit
_ANSWER_S = 15.0  # how long a broker may take to answer CONNECT and SUBSCRIBE
_FIRST_DELAY_S = 0.25
_LONGEST_DELAY_S = 30.0
_STABLE_S = 10.0  # a connection that lived shorter does not reset the back-off
_FILTERS_AT_ONCE = 8  # per SUBSCRIBE; AWS IoT allows no more
_HOLD_BYTES = 16 << 20  # received and not taken: beyond it, arrivals are not acknowledged
_DROP_BYTES = 256 << 20  # beyond it, arrivals are dropped and counted

log = logging.getLogger(__name__)


class MqttTransport(Transport):
    """A client of an MQTT broker.

    Args:
        config: where the broker is.
        client_id: our id there; a second client with the same id throws the first one out.
        clock: what back-off and time-outs are counted on.
        compute: its short lane resolves names, connects and shakes hands.
        will: topic, payload, retain flag of the last will; sent unless `aclose` was called.
        window: messages in flight at most.
        rng: jitter of the back-off; None: seeded with the client id.
    """

    def __init__(
        self,
        config: BrokerConfig,
        client_id: str,
        *,
        clock: Clock,
        compute: Compute,
        will: Will | None = None,
        window: int = WINDOW,
        rng: random.Random | None = None,
    ) -> None:
        self.traffic = Traffic()
        self.client_id = client_id
        self._config = config
        self._clock = clock
        self._compute = compute
        self._will = will
        self._window = window
        self._rng = rng or random.Random(client_id)
        self._inbox = Inbox(clock, on_take=self._acknowledge_held)
        self._early: list[Message] = []  # arrived before Connected was announced
        self._unacknowledged: deque[int] = deque()  # packet ids held back from the broker
        self._filters: dict[str, None] = {}
        self._connection: Connection | None = None  # set between Connected and Disconnected
        self._connections = 0
        self._since_ns = 0  # when the present connection was announced
        self._trouble = ""  # what was last said about not being connected
        self._attempts = 0  # in vain, since the last lasting connection
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to connect; returns at once."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"mqtt {self.client_id}")

    async def aclose(self) -> None:
        """Disconnects for good; the last will is not sent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        self._inbox.close()

    @property
    def connected(self) -> bool:
        """True between Connected and Disconnected."""
        return self._connection is not None

    async def subscribe(self, *filters: str) -> None:
        """Subscribes now and after every reconnect.

        Raises:
            TransportError: the broker refuses; it is asked again after the next reconnect.
        """
        for topic_filter in filters:
            check_filter(topic_filter)
            self._filters[topic_filter] = None
        if self._connection is not None:
            try:
                await self._subscribe(self._connection, list(filters))
            except NotConnected:
                return  # made again with the next connection

    async def unsubscribe(self, *filters: str) -> None:
        """Takes subscriptions back."""
        for topic_filter in filters:
            self._filters.pop(topic_filter, None)
        if self._connection is not None:
            try:
                await self._connection.unsubscribe(list(filters))
            except NotConnected:
                return  # and the next connection will not subscribe to them

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Returns when the broker has it (PUBACK); NotConnected if the connection is or goes down."""
        check_topic(topic)
        if self._connection is None:
            raise NotConnected(f"{self._name} is not connected; the message to {topic} was not sent")
        self.traffic.bytes_up += packet_bytes(topic, payload)
        self.traffic.messages_up += 1
        await self._connection.publish(topic, payload, retain=retain)

    def events(self) -> AsyncIterator[TransportEvent]:
        """Yields what happened, in order; ends after aclose()."""
        return self._inbox

    @property
    def _name(self) -> str:
        return f"{self.client_id} at {self._config.host}:{self._config.port}"

    async def _run(self) -> None:
        while True:
            reason = await self._live()
            self._say(reason)
            self._attempts += 1
            delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** min(self._attempts - 1, 10))
            await self._clock.sleep(delay_s * self._rng.uniform(0.5, 1.0))

    async def _live(self) -> str:
        """Lives one connection from dialling to its end; returns why it ended."""
        connection = Connection(
            self._config, self.client_id, will=self._will, on_message=self._arrived, window=self._window
        )
        try:
            await self._connect(connection)
            self._announce(connection)
            await self._keep(connection)
            return connection.reason
        except NotConnected:
            return connection.reason
        except TimeoutError:
            return f"the broker did not answer within {_ANSWER_S:g} s"
        except (OSError, ValueError) as error:
            return f"cannot connect: {error}; is the broker running, and are host, port and files right?"
        except asyncio.CancelledError:
            connection.farewell()
            self._withdraw("closed")
            raise
        finally:
            connection.abandon("gave up")
            self._withdraw(connection.reason)

    async def _connect(self, connection: Connection) -> None:
        await self._compute.run(SHORT, 0, connection.dial)
        connection.attach()
        async with self._clock.deadline(_ANSWER_S):
            await connection.accepted
            try:
                await self._subscribe(connection, list(self._filters))
            except NotConnected:
                raise
            except TransportError as error:
                log.error("%s: %s", self._name, error)

    def _announce(self, connection: Connection) -> None:
        self._connection = connection
        self._since_ns = self._clock.now_ns()
        self._connections += 1
        if self._trouble:
            log.info("%s: connected, after %d attempts in vain", self._name, self._attempts)
        else:
            log.info("%s: connected", self._name)
        self._trouble = ""
        self._inbox.put(Connected(self._connections))
        for message in self._early:
            self._inbox.put(message)
        self._early.clear()

    async def _keep(self, connection: Connection) -> None:
        tick_s = max(0.5, self._config.keepalive_s / 4)
        while not connection.closed.is_set():
            try:
                async with self._clock.deadline(tick_s):
                    await connection.closed.wait()
            except TimeoutError:
                connection.tick()

    def _withdraw(self, reason: str) -> None:
        self._early.clear()
        self._unacknowledged.clear()
        if self._connection is not None:
            self._connection = None
            if self._clock.now_ns() - self._since_ns > _STABLE_S * NS:
                self._attempts = 0
            self._trouble = reason
            self._inbox.put(Disconnected(reason))

    def _say(self, reason: str) -> None:
        """Logs trouble when it is new, and tells the consumer about it if a lost connection has not."""
        if self._attempts == 0 or reason != self._trouble:
            log.warning("%s: %s; trying again with growing pauses of up to %g s", self._name, reason, _LONGEST_DELAY_S)
        else:
            log.debug("%s: %s (%d attempts)", self._name, reason, self._attempts + 1)
        if reason != self._trouble:
            self._trouble = reason
            self._inbox.put(Disconnected(reason))

    async def _subscribe(self, connection: Connection, filters: list[str]) -> None:
        for first in range(0, len(filters), _FILTERS_AT_ONCE):
            await connection.subscribe(filters[first : first + _FILTERS_AT_ONCE])

    def _arrived(self, connection: Connection, packet: MQTTMessage) -> None:
        try:
            message = Message(packet.topic, bytes(packet.payload), retained=packet.retain)
        except UnicodeDecodeError:
            self.traffic.dropped += 1
            self._acknowledge(connection, packet)
            return
        self.traffic.bytes_down += packet_bytes(message.topic, message.payload)
        self.traffic.messages_down += 1
        if self._inbox.bytes > _DROP_BYTES:
            self._drop()
        elif self._connection is None:
            self._early.append(message)
        else:
            self._inbox.put(message)
        self._acknowledge(connection, packet)

    def _drop(self) -> None:
        self.traffic.dropped += 1
        if self.traffic.dropped == 1:
            log.error("%s: %d MB wait for the consumer; messages are dropped", self._name, self._inbox.bytes >> 20)

    def _acknowledge(self, connection: Connection, packet: MQTTMessage) -> None:
        if packet.qos == 0:
            return
        if self._unacknowledged or self._inbox.bytes > _HOLD_BYTES:
            self._unacknowledged.append(packet.mid)
        else:
            connection.acknowledge(packet.mid)

    def _acknowledge_held(self) -> None:
        if not self._unacknowledged or self._inbox.bytes > _HOLD_BYTES // 2:
            return
        held = tuple(self._unacknowledged)
        self._unacknowledged.clear()
        if self._connection is not None:
            for mid in held:
                self._connection.acknowledge(mid)
            self._connection.flush()


__all__ = ["WINDOW", "MqttTransport"]

"""One life of an MQTT connection: a paho client driven by the running event loop, never by a thread.

Decisions that cost time to find out:
- A fresh paho client per connection: what paho keeps of the last one (queue, in-flight window, dup flags) would be
  sent again behind our back after a reconnect. Whoever publishes learns of the loss and decides.
- Nagle's algorithm and delayed acknowledgements add 44 ms to every QoS 1 round trip; TCP_NODELAY is set before CONNECT.
- Packets are written at once where the socket takes them; the loop watches for writability only while it does not.
- Acknowledgements of what arrives are ours to send: a consumer far behind holds the broker back.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_sdk.core.config import BrokerConfig
from edge_sdk.core.credentials import password, tls_context
from edge_sdk.core.errors import NotConnected, TransportError
from edge_sdk.transport.dialling import DiallingClient
from edge_sdk.transport.inbox import Will

_CONNECT_S = 10.0  # TCP and TLS, in the worker thread
_READS = 16  # packets taken per wake-up at most, so that other tasks have their turn

log = logging.getLogger(__name__)


class Connection:
    """A paho client on the running loop; used once.

    Args:
        config: where the broker is.
        client_id: our id there.
        will: topic, payload, retain flag of the last will.
        on_message: called for each message that arrives; whoever takes it calls `acknowledge`.
        window: messages in flight at most.
    """

    def __init__(
        self,
        config: BrokerConfig,
        client_id: str,
        *,
        will: Will | None,
        on_message: Callable[[Connection, MQTTMessage], None],
        window: int,
    ) -> None:
        self.closed = asyncio.Event()
        self.reason = ""  # why it ended
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._config = config
        self._window = window
        self._puback: dict[int, asyncio.Future[None]] = {}
        self._suback: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._turns: deque[asyncio.Future[None]] = deque()  # publishers that wait for a place in the window
        self._socket: Any = None
        self._writing = False
        self._on_message = on_message
        self._client = self._make(client_id, will)

    def _make(self, client_id: str, will: Will | None) -> Client:
        client = DiallingClient(
            self.closed.is_set,
            callback_api_version=CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=True,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.max_inflight_messages_set(0)  # the window is ours; 0: paho never queues
        client.connect_timeout = _CONNECT_S
        if will is not None:
            client.will_set(will[0], will[1], qos=1, retain=will[2])
        client.on_socket_open = _no_delay
        client.on_socket_close = self._socket_closed
        client.on_socket_register_write = _leave_to_flush  # without it paho would write from inside its calls
        client.on_connect = self._connack
        client.on_disconnect = self._disconnected
        client.on_publish = self._published
        client.on_subscribe = self._subscribed
        client.on_unsubscribe = self._unsubscribed
        client.on_message = self._message
        return client

    def dial(self) -> None:
        """Resolves the name, connects and shakes hands for TLS; blocks, so it runs in a worker thread.

        Raises:
            OSError: what the network or TLS said, or a file of the configuration cannot be read.
        """
        config = self._config
        if config.username:
            self._client.username_pw_set(config.username, password(config))
        if config.ca_file is not None:
            self._client.tls_set_context(tls_context(config))
        self._client.connect(config.host, config.port, keepalive=config.keepalive_s)
        if self.closed.is_set():  # given up while we were dialling: nobody else would close it
            self._hang_up()

    def attach(self) -> None:
        """Takes the dialled socket into the event loop."""
        self._socket = self._client.socket()
        self._loop.add_reader(self._socket, self._readable)
        self.flush()

    def tick(self) -> None:
        """Sends a ping when it is time to, and notices a silent broker; called every few seconds."""
        self._client.loop_misc()
        self.flush()

    def abandon(self, reason: str) -> None:
        """Ends the connection without a farewell: the broker publishes the last will."""
        self._end(reason)
        self._hang_up()

    def _hang_up(self) -> None:
        sock = self._client.socket()
        if sock is not None:
            with suppress(OSError):
                cast(socket.socket, sock).shutdown(socket.SHUT_RDWR)
            self._client.disconnect()
            self._client.loop_write()  # fails, and so closes the socket

    def farewell(self) -> None:
        """Sends DISCONNECT, so that the last will is not published."""
        if self._socket is not None and not self.closed.is_set():
            self._client.disconnect()
            self.flush()

    async def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Returns on PUBACK; NotConnected when the connection is lost before."""
        await self._turn()
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._next_turn()
            raise NotConnected(f"the message to {topic} was not sent: {self.reason or info.rc.name}")
        done = self._puback[info.mid] = self._loop.create_future()
        self.flush()
        await done

    async def subscribe(self, filters: list[str]) -> None:
        """Returns on SUBACK.

        Raises:
            TransportError: the broker refused a filter.
            NotConnected: the connection is gone.
        """
        rc, mid = self._client.subscribe([(f, 1) for f in filters])
        codes = await self._acknowledged(rc, mid)
        refused = [f for f, code in zip(filters, codes, strict=False) if code.is_failure]
        if refused:
            raise TransportError(f"the broker refuses subscriptions to {', '.join(refused)}; check its access rules")

    async def unsubscribe(self, filters: list[str]) -> None:
        """Returns on UNSUBACK."""
        await self._acknowledged(*self._client.unsubscribe(filters))

    def acknowledge(self, mid: int) -> None:
        """Sends PUBACK for a message that arrived."""
        if not self.closed.is_set():
            self._client.ack(mid, 1)

    async def _acknowledged(self, rc: MQTTErrorCode, mid: int | None) -> list[ReasonCode]:
        if rc != MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None:
            raise NotConnected(f"not connected: {self.reason or rc.name}")
        done = self._suback[mid] = self._loop.create_future()
        self.flush()
        codes: list[ReasonCode] = await done
        return codes

    async def _turn(self) -> None:
        if self.closed.is_set():
            raise NotConnected(f"not connected: {self.reason}")
        if not self._turns and len(self._puback) < self._window:
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._turns.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._next_turn()  # our place goes to the next one
            raise

    def _next_turn(self) -> None:
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _readable(self) -> None:
        try:
            for _ in range(_READS):
                if self._client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS or not self._more():
                    break
            self.flush()
        except Exception as error:  # noqa: BLE001  what a broken or hostile broker sends must not end the program
            log.warning("the broker sent something that cannot be read: %r", error)
            self.abandon(f"protocol error: {error!r}")

    def _more(self) -> bool:
        """TLS may hold decrypted bytes that no longer make the socket readable."""
        return isinstance(self._socket, ssl.SSLSocket) and not self.closed.is_set() and self._socket.pending() > 0

    def flush(self) -> None:
        """Writes what waits, as far as the socket takes it."""
        if self._socket is None or self.closed.is_set():
            return
        self._client.loop_write()
        waiting = self._socket is not None and self._client.want_write()
        if waiting and not self._writing:
            self._loop.add_writer(self._socket, self.flush)
        elif self._writing and not waiting and self._socket is not None:
            self._loop.remove_writer(self._socket)
        self._writing = waiting

    def _socket_closed(self, _client: Client, _userdata: object, sock: Any) -> None:
        if self._socket is not None:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            self._socket = None

    def _connack(
        self, _client: Client, _userdata: object, _flags: ConnectFlags, code: ReasonCode, _properties: Properties | None
    ) -> None:
        if code.is_failure:
            c = self._config
            self._end(
                f"the broker at {c.host}:{c.port} refused user {c.username or '(none)'!r}: {code}; enrol the "
                "device again (`edge-coordinator enroll`) or correct broker.username and broker.password_file"
            )
        elif not self.accepted.done():
            self.accepted.set_result(None)

    def _disconnected(
        self,
        _client: Client,
        _userdata: object,
        _flags: DisconnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._end("the broker closed the connection" if str(code) == "Unspecified error" else str(code))

    def _published(
        self, _client: Client, _userdata: object, mid: int, _code: ReasonCode, _properties: Properties
    ) -> None:
        done = self._puback.pop(mid, None)
        if done is not None and not done.done():
            done.set_result(None)
        self._next_turn()

    def _subscribed(
        self, _client: Client, _userdata: object, mid: int, codes: list[ReasonCode], _properties: Properties | None
    ) -> None:
        done = self._suback.pop(mid, None)
        if done is not None and not done.done():
            done.set_result(codes)

    _unsubscribed = _subscribed

    def _message(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        if not self.closed.is_set():
            self._on_message(self, message)

    def _end(self, reason: str) -> None:
        if self.closed.is_set():
            return
        self.reason = reason
        self.closed.set()
        lost = NotConnected(f"the connection was lost: {reason}")
        waiting = [self.accepted, *self._puback.values(), *self._suback.values(), *self._turns]
        self._puback.clear()
        self._suback.clear()
        self._turns.clear()
        for future in cast("list[asyncio.Future[Any]]", waiting):
            if not future.done():
                future.set_exception(lost)
        if not self.accepted.cancelled():
            self.accepted.exception()  # nobody may be waiting for it


def _no_delay(_client: Client, _userdata: object, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _leave_to_flush(_client: Client, _userdata: object, _sock: Any) -> None:
    """`Connection.flush` looks for itself what waits to be written."""


__all__ = ["Connection"]

"""Lines of text from an MQTT topic, through a client of its own on the pump's thread.

The device's own connection belongs to the event loop and lives and dies with the federation; a driver is opened, fails
and comes back by itself. So this is a second connection, which may be to another broker: MQTT 3.1.1, QoS 1, clean
session. What is published while it is down is not heard.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from typing import Any

from edge_sdk.core.clock import NS, monotonic_ns
from edge_sdk.core.config import BrokerConfig
from edge_sdk.core.credentials import password, tls_context
from edge_sdk.core.errors import ConfigError, PluginError, SensorUnavailable
from sensors.lines import MAX_LINE, Line, Lines

logger = logging.getLogger(__name__)

OPEN_S = 4.0  # until the broker has answered; less than a pump waits for its driver
WAY_NS = 50_000_000  # how long a message may have been under way
QUEUE = 1024  # lines that wait to be read
NOT_UTF8, TOO_LONG, RETAINED, OVERRUN = "not_utf8", "too_long", "retained", "overrun"
_MEANING = {
    NOT_UTF8: "is not UTF-8",
    TOO_LONG: f"is longer than {MAX_LINE} bytes",
    RETAINED: "is a retained one, said at a time that nobody knows",
    OVERRUN: f"came while {QUEUE} lines were waiting",
}


class TopicLines(Lines):
    """Lines of the messages of a topic; a message may hold several.

    Args:
        topic: or a filter with + and #.
        broker: where it is published.
        stream: modality name, for messages and the client's id.
    """

    err_ns = WAY_NS

    def __init__(self, topic: str, broker: BrokerConfig, stream: str) -> None:
        self.refused: dict[str, int] = {}  # reason → messages that were not used, since the program began
        self._topic, self._broker, self._stream = topic, broker, stream
        self._mqtt = _library(stream)
        self._name = f"{topic} at {broker.host}:{broker.port}"
        self._lines: deque[Line] = deque()
        self._lost = False  # something was refused since the last line
        self._client: Any = None
        self._trouble = ""  # why there is no connection
        self._heard = False  # the broker has accepted the subscription

    def open(self) -> None:
        self.close()
        self._trouble, self._heard = "", False
        self._lines.clear()
        self._client = client = self._made()
        end_ns = monotonic_ns() + round(OPEN_S * NS)
        try:
            client.connect(self._broker.host, self._broker.port, keepalive=self._broker.keepalive_s)
        except (OSError, ValueError) as error:
            raise SensorUnavailable(
                f"{self._name}: cannot connect: {error}; is the broker running, and is "
                f"sensors.{self._stream}.options.broker right?"
            ) from error
        while not self._heard:
            self._turn(0.1)
            if monotonic_ns() > end_ns:
                raise SensorUnavailable(f"{self._name}: the broker did not answer within {OPEN_S:g} s")

    def next(self, timeout_s: float) -> Line | None:
        if not self._lines:
            self._turn(timeout_s)
        return self._lines.popleft() if self._lines else None

    def close(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client.loop(0.0)  # sends the farewell, and lets go of the socket
            self._client = None
            if self.refused:
                said = ", ".join(f"{reason} {count}" for reason, count in sorted(self.refused.items()))
                logger.info("sensor %s: messages not used: %s", self._stream, said)

    def _made(self) -> Any:
        mqtt, broker = self._mqtt, self._broker
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, f"edge-text-{secrets.token_hex(6)}", clean_session=True,
            protocol=mqtt.MQTTv311, reconnect_on_failure=False,
        )  # fmt: skip
        client.connect_timeout = OPEN_S
        try:
            if broker.username:
                client.username_pw_set(broker.username, password(broker))
            if broker.ca_file is not None:
                client.tls_set_context(tls_context(broker))
        except OSError as error:
            raise SensorUnavailable(f"{self._name}: {error}; see sensors.{self._stream}.options.broker") from error
        client.on_connect, client.on_subscribe = self._connected, self._subscribed
        client.on_disconnect, client.on_message = self._disconnected, self._arrived
        return client

    def _turn(self, timeout_s: float) -> None:
        """Lets the client read and write; SensorUnavailable: the connection is gone."""
        code = self._client.loop(timeout_s)
        if self._trouble or code != self._mqtt.MQTT_ERR_SUCCESS:
            raise SensorUnavailable(f"{self._name}: {self._trouble or self._mqtt.error_string(code)}")

    def _connected(self, client: Any, _userdata: object, _flags: object, code: Any, _properties: object) -> None:
        if code.is_failure:
            user = self._broker.username or "(none)"
            self._trouble = (
                f"the broker refused user {user!r}: {code}; correct username and password_file in "
                f"sensors.{self._stream}.options.broker"
            )
            return
        try:
            client.subscribe(self._topic, qos=1)
        except ValueError as error:
            raise ConfigError(f"sensors.{self._stream}.options.topic: {self._topic!r}: {error}") from error

    def _subscribed(self, _client: Any, _userdata: object, _mid: int, codes: list[Any], _properties: object) -> None:
        if any(code.is_failure for code in codes):
            self._trouble = "the broker refuses the subscription; check its access rules"
        self._heard = True

    def _disconnected(self, _client: Any, _userdata: object, _flags: object, code: Any, _properties: object) -> None:
        self._trouble = self._trouble or f"the connection was lost ({code})"

    def _arrived(self, _client: Any, _userdata: object, message: Any) -> None:
        reason = _refusal(message)
        lines = [] if reason else [line for line in message.payload.split(b"\n") if line.strip()]
        for line in lines:
            if len(self._lines) >= QUEUE:
                reason = OVERRUN
                break
            self._lines.append(Line(line, after_lost=self._lost))
            self._lost = False
        if reason:
            self._refuse(reason, len(message.payload))

    def _refuse(self, reason: str, size: int) -> None:
        """Counts a message that is not used; each reason is said once."""
        first = reason not in self.refused
        self.refused[reason] = self.refused.get(reason, 0) + 1
        self._lost |= reason != RETAINED
        level = logging.WARNING if first else logging.DEBUG
        logger.log(
            level, "sensor %s: a message of %d bytes on %s %s; not used, and counted", self._stream, size, self._name,
            _MEANING[reason],
        )  # fmt: skip


def _refusal(message: Any) -> str:
    """Returns why a message is not used; "": it is."""
    if message.retain:
        return RETAINED
    if len(message.payload) > MAX_LINE:
        return TOO_LONG
    try:
        message.payload.decode("utf-8")
    except UnicodeDecodeError:
        return NOT_UTF8
    return ""


def _library(stream: str) -> Any:
    """Returns paho's client; PluginError says what to install."""
    try:
        from paho.mqtt import client
    except ImportError as error:
        raise PluginError(f"sensors.{stream}: text from a topic needs paho: pip install paho-mqtt") from error
    return client


__all__ = ["NOT_UTF8", "OVERRUN", "QUEUE", "RETAINED", "TOO_LONG", "TopicLines"]

"""Text from an MQTT topic: the driver's own client against real brokers, under a real pump."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.core.clock import WallClock
from edge_sdk.core.config import DeviceConfig, SensorConfig, load_toml
from edge_sdk.core.errors import ConfigError, SensorUnavailable
from edge_sdk.core.interfaces import Connected
from edge_sdk.core.records import Chunk
from edge_sdk.streams.pump import Backoff, Pump, State
from edge_sdk.streams.sources import sources
from edge_sdk.transport.mqtt import MqttTransport
from sensors.text import AFTER_LOST, MAX_LINE, TextDriver
from sensors.topic_lines import NOT_UTF8, OVERRUN, QUEUE, RETAINED, TOO_LONG, TopicLines
from tests.helpers.brokers import Embedded, Mosquitto, broker, dead_port, mqtt  # noqa: F401  fixture

TOPIC = "notes/kitchen"


def words(chunk: Chunk) -> str:
    return bytes(int(token) - 1 for token in chunk.data[0] if token).decode()


def options(running: Mosquitto | Embedded, **more: Any) -> dict[str, Any]:
    config = running.config("alice")
    where = {"host": config.host, "port": config.port, "username": "alice", "password": config.password}
    return {"topic": TOPIC, "broker": where, **more}


def lines(driver: TextDriver) -> TopicLines:
    assert isinstance(driver.lines, TopicLines)
    return driver.lines


class Listening:
    """A pump over the driver, and what it handed over."""

    def __init__(self, driver: TextDriver) -> None:
        self.chunks: list[Chunk] = []
        self._changed = asyncio.Event()
        self.pump = Pump(
            driver, SensorConfig(driver="text"), WallClock(), self._take, backoff=Backoff(0.01, 0.1),
            changed=self._changed.set,
        )  # fmt: skip

    def _take(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


async def connected(transport: MqttTransport) -> None:
    await transport.start()
    async for event in transport.events():
        if isinstance(event, Connected):
            return


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


def test_lines_of_messages_and_a_broker_that_comes_back(broker: Mosquitto | Embedded) -> None:  # noqa: F811
    async def main() -> None:
        driver = TextDriver("note", options(broker))
        heard, speaker = Listening(driver), mqtt(broker, "bob")
        await heard.pump.start()
        await heard.until(lambda: heard.pump.state is State.STREAMING)
        await connected(speaker)
        await speaker.publish(TOPIC, "grüße\n\n  two  \n".encode())
        await speaker.publish("notes/cellar", b"not for us")
        await heard.until(lambda: len(heard.chunks) == 2)
        await speaker.aclose()

        await asyncio.to_thread(broker.stop)
        await heard.until(lambda: heard.pump.state is State.FAILED)
        assert "notes/kitchen at" in heard.pump.error
        await asyncio.to_thread(broker.start)
        await heard.until(lambda: heard.pump.state is State.STREAMING)
        speaker = mqtt(broker, "bob")
        await connected(speaker)
        await speaker.publish(TOPIC, b"again")
        await heard.until(lambda: len(heard.chunks) == 3)
        await speaker.aclose()
        await heard.pump.aclose()
        assert heard.pump.counters.reconnects >= 1
        assert [words(c) for c in heard.chunks] == ["grüße", "two", "again"]
        assert [c.gap_before for c in heard.chunks] == [False, False, True]

    run(main)


def test_messages_that_are_no_text_are_counted_and_said_once(
    broker: Mosquitto | Embedded, caplog: pytest.LogCaptureFixture  # noqa: F811
) -> None:  # fmt: skip
    async def main() -> None:
        speaker = mqtt(broker, "bob")
        await connected(speaker)
        await speaker.publish(TOPIC, b"from yesterday", retain=True)
        driver = TextDriver("note", options(broker, topic="notes/+"))
        heard = Listening(driver)
        await heard.pump.start()
        await heard.until(lambda: heard.pump.state is State.STREAMING)
        for payload in (b"\xff\xfe", b"x" * (MAX_LINE + 1), b"\x80", b"good", b"better"):
            await speaker.publish(TOPIC, payload)
        await heard.until(lambda: len(heard.chunks) == 2)
        await speaker.aclose()
        await heard.pump.aclose()
        assert lines(driver).refused == {NOT_UTF8: 2, TOO_LONG: 1, RETAINED: 1}
        assert [(words(c), c.flags) for c in heard.chunks] == [("good", AFTER_LOST), ("better", 0)]

    caplog.set_level(logging.INFO)
    run(main)
    said = [r.getMessage() for r in caplog.records if "sensor note: a message" in r.getMessage()]
    assert len(said) == 3
    assert any("2 bytes on notes/+ at" in line and "is not UTF-8" in line for line in said)
    assert "sensor note: messages not used: not_utf8 2, retained 1, too_long 1" in caplog.text


def test_a_flood_is_bounded(broker: Mosquitto | Embedded) -> None:  # noqa: F811
    driver = TextDriver("note", options(broker))
    driver.open()

    async def flood() -> None:
        speaker = mqtt(broker, "bob")
        await connected(speaker)
        await speaker.publish(TOPIC, b"\n".join(b"%d" % n for n in range(QUEUE + 10)))
        await speaker.aclose()

    run(flood)
    first = [driver.read(0.0) or driver.read(2.0)]
    chunks = [chunk for chunk in first + [driver.read(0.0) for _ in range(QUEUE + 10)] if chunk is not None]
    driver.close()
    assert [words(c) for c in chunks] == [str(n) for n in range(QUEUE)]
    assert lines(driver).refused == {OVERRUN: 1}


def test_a_wrong_password_names_user_and_key(broker: Mosquitto | Embedded) -> None:  # noqa: F811
    plain = options(broker)
    plain["broker"]["password"] = "guessed"
    driver = TextDriver("note", plain)
    said = r"refused user 'alice': .*username and password_file in sensors\.note\.options\.broker"
    with pytest.raises(SensorUnavailable, match=said) as caught:
        driver.open()
    driver.close()
    assert "guessed" not in str(caught.value)


def test_no_broker_and_no_password_file_are_said(tmp_path: Path) -> None:
    with dead_port() as port:
        driver = TextDriver("note", {"topic": TOPIC, "broker": {"port": port}})
        with pytest.raises(SensorUnavailable, match=rf"kitchen at 127\.0\.0\.1:{port}: cannot connect: .*running"):
            driver.open()
        driver.close()
    missing = {"username": "alice", "password_file": str(tmp_path / "none")}
    with pytest.raises(SensorUnavailable, match=r"none'; see sensors\.note\.options\.broker"):
        TextDriver("note", {"topic": TOPIC, "broker": missing}).open()


def test_a_filter_that_is_none_is_a_configuration_error(broker: Mosquitto | Embedded) -> None:  # noqa: F811
    driver = TextDriver("note", options(broker, topic="notes/#/all"))
    with pytest.raises(ConfigError, match=r"sensors\.note\.options\.topic: 'notes/#/all'"):
        driver.open()
    driver.close()


def test_the_password_comes_by_environment_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the device's own broker; a file wins over both."""
    secret = tmp_path / "secret"
    secret.write_text("from the file\n")
    file = tmp_path / "device.toml"
    file.write_text(
        '[device]\nid = "d"\nfederation = "f"\n[sensors.note]\ndriver = "text"\n'
        'options = { topic = "notes", broker = { username = "d", password = "in the open" } }\n'
    )
    monkeypatch.setenv("EDGE_SENSORS__NOTE__OPTIONS__BROKER__PASSWORD", "from outside")
    config = load_toml(file, DeviceConfig)
    (source,) = sources(config.sensors)
    assert isinstance(source.driver, TextDriver)
    made = lines(source.driver)._made()
    assert made._password == b"from outside"
    file.write_text(file.read_text().replace('"in the open"', f'"", password_file = "{secret}"'))
    (source,) = sources(load_toml(file, DeviceConfig).sensors)
    assert isinstance(source.driver, TextDriver)
    assert lines(source.driver)._made()._password == b"from the file"

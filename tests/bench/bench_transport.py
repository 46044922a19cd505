"""Round trips and throughput over real brokers on loopback, beside a bare paho loop over the same broker.

A round trip is publish → broker → echo client → broker → back, all QoS 1; both clients live in one process, in ours
as in the bare loop.
"""

from __future__ import annotations

import asyncio
import select
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from edge_sdk.core.interfaces import Connected, Message, TransportEvent
from edge_sdk.transport.mqtt import MqttTransport
from tests.helpers.brokers import MOSQUITTO, Embedded, Mosquitto, make_broker, mqtt

SIZES = {"64 B": (64, 400), "51 kB": (51_000, 300)}
CHUNK = 96 * 1024
CHUNKS = 500
Row = dict[str, Any]
Broker = Mosquitto | Embedded


class Bare:
    """Two paho clients in one select loop: as little around paho as possible."""

    def __init__(self, broker: Broker) -> None:
        self.got = 0
        self.acked = 0
        self.ask, self.echo = (self._client(broker, user) for user in ("alice", "bob"))
        self.ask.on_message = self._count
        self.echo.on_message = self._answer
        self.ask.on_publish = self._acked
        self.ask.subscribe("a/x", 1)
        self.echo.subscribe([("c/x", 1), ("c/sink", 1)])
        self._turn(0.3)

    def round_trip_ms(self, size: int, count: int) -> float:
        payload = bytes(size)
        times = []
        for _ in range(count):
            start, before = time.perf_counter(), self.got
            self.ask.publish("c/x", payload, 1)
            while self.got == before:
                self._turn(1.0)
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e3

    def mb_per_s(self, size: int, count: int) -> float:
        payload = bytes(size)
        start, first, acked = time.perf_counter(), self.got, self.acked
        sent = 0
        while self.got - first < count:
            while sent < count and sent - (self.acked - acked) < 20:
                self.ask.publish("c/sink", payload, 1)
                sent += 1
            self._turn(1.0)
        return size * count / (time.perf_counter() - start) / 1e6

    def close(self) -> None:
        for client in (self.ask, self.echo):
            client.disconnect()
            client.loop_write()

    def _client(self, broker: Broker, user: str) -> Client:
        client = Client(CallbackAPIVersion.VERSION2, client_id=user)
        client.username_pw_set(user, broker.passwords[user])
        client.on_socket_open = lambda _c, _u, s: s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[union-attr]
        client.connect(broker.host, broker.port)
        while not client.is_connected():
            client.loop(0.1)
        return client

    def _turn(self, timeout_s: float) -> None:
        clients = {c.socket(): c for c in (self.ask, self.echo)}
        writing = [s for s, c in clients.items() if c.want_write()]
        readable, writable, _ = select.select(list(clients), writing, [], timeout_s)
        for sock in readable:
            clients[sock].loop_read()
        for sock, client in clients.items():
            if client.want_write() or sock in writable:
                client.loop_write()

    def _count(self, _client: Client, _userdata: object, _message: MQTTMessage) -> None:
        self.got += 1

    def _answer(self, client: Client, _userdata: object, message: MQTTMessage) -> None:
        if message.topic == "c/x":
            client.publish("a/x", message.payload, 1)
        else:
            self.got += 1

    def _acked(self, *_: object) -> None:
        self.acked += 1


async def _start(transport: MqttTransport, *filters: str) -> AsyncIterator[TransportEvent]:
    await transport.subscribe(*filters)
    await transport.start()
    events = transport.events()
    while not isinstance(await events.__anext__(), Connected):
        pass
    return events


async def _ours(broker: Broker) -> dict[str, float]:
    ask, echo = mqtt(broker, "alice"), mqtt(broker, "bob")
    answers, questions = await _start(ask, "a/x"), await _start(echo, "c/x", "c/sink")
    sunk = asyncio.Semaphore(0)

    async def serve() -> None:
        async for event in questions:
            if isinstance(event, Message) and event.topic == "c/x":
                await echo.publish("a/x", event.payload)
            else:
                sunk.release()

    serving = asyncio.ensure_future(serve())
    found: dict[str, float] = {}
    for name, (size, count) in SIZES.items():
        times, payload = [], bytes(size)
        for _ in range(count):
            start = time.perf_counter()
            await asyncio.gather(ask.publish("c/x", payload), answers.__anext__())
            times.append(time.perf_counter() - start)
        found[name] = statistics.median(times) * 1e3
    payload = bytes(CHUNK)
    start = time.perf_counter()
    await asyncio.gather(*(ask.publish("c/sink", payload) for _ in range(CHUNKS)))
    for _ in range(CHUNKS):
        await sunk.acquire()
    found["MB/s"] = CHUNK * CHUNKS / (time.perf_counter() - start) / 1e6
    serving.cancel()
    await ask.aclose()
    await echo.aclose()
    return found


def _bare(broker: Broker) -> dict[str, float]:
    bare = Bare(broker)
    found = {name: bare.round_trip_ms(size, count) for name, (size, count) in SIZES.items()}
    found["MB/s"] = bare.mb_per_s(CHUNK, CHUNKS)
    bare.close()
    return found


def _rows(kind: str, folder: Path) -> list[Row]:
    broker = make_broker(kind, folder)
    broker.start()
    try:
        pairs = [(asyncio.run(_ours(broker)), _bare(broker)) for _ in range(3)]
    finally:
        broker.stop()
    rows: list[Row] = []
    for name in (*SIZES, "MB/s"):
        ours, bare = (statistics.median(pair[i][name] for pair in pairs) for i in (0, 1))
        speed = name == "MB/s"
        rows.append(
            {
                "name": f"transport {kind}: "
                + ("96 KiB messages, one way" if speed else f"round trip of {name}, median"),
                "value": round(ours, 3),
                "unit": "MB/s" if speed else "ms",
                "reference": f"bare paho select loop over the same broker: {bare:.3f}",
                "ratio": round(ours / bare, 3),
            }
        )
    return rows


def run() -> list[Row]:
    """Returns the rows of `bench.json`."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("mosquitto", "embedded"):
            if kind == "embedded" or MOSQUITTO is not None:
                rows += _rows(kind, Path(folder) / kind)
    return rows


if __name__ == "__main__":
    for row in run():
        sys.stdout.write(
            f"{row['name']:55} {row['value']:10} {row['unit']:5} ratio {row['ratio']} ({row['reference']})\n"
        )

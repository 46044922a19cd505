"""Real brokers on loopback for tests: mosquitto of the system and the embedded one, with users and passwords.

Use from a test module:

    from tests.helpers.brokers import broker, embedded, mosquitto  # noqa: F401  fixtures

`broker` runs a test against both; `broker.restart()` comes back on the same port.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import pytest

from edge_sdk.core.clock import WallClock
from edge_sdk.core.compute import InlineCompute
from edge_sdk.core.config import BrokerConfig
from edge_sdk.transport.embedded import EmbeddedBroker
from edge_sdk.transport.inbox import Will
from edge_sdk.transport.mqtt import MqttTransport
from edge_sdk.transport.passwords import make_password_file

USERS = ("alice", "bob", "coordinator", *(f"d{i}" for i in range(8)))
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


class TestBroker(Protocol):
    """What tests do with a broker."""

    __test__ = False
    host: str
    port: int

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def config(self, user: str) -> BrokerConfig: ...


def free_port() -> int:
    """Returns a TCP port of the loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def dead_port() -> Iterator[int]:
    """A port that refuses connections for as long as it is held (a free one might connect to itself)."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


class Mosquitto:
    """The system's mosquitto with its own configuration file."""

    def __init__(self, state_dir: Path, *, port: int | None = None, tls: tuple[Path, Path] | None = None) -> None:
        assert MOSQUITTO is not None
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self.passwords = make_password_file(state_dir / "passwd", USERS)
        self._file = state_dir / "mosquitto.conf"
        self._log = state_dir / "mosquitto.log"
        self._process: subprocess.Popen[bytes] | None = None
        lines = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous false",
            f"password_file {state_dir / 'passwd'}",
            "persistence false",
            "set_tcp_nodelay true",
            "max_queued_messages 0",
            "max_inflight_messages 100",
            "log_dest stderr",
            "user root",
        ]
        if tls is not None:
            lines += [f"certfile {tls[0]}", f"keyfile {tls[1]}"]
        self._file.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([str(MOSQUITTO), "-c", str(self._file)], stderr=log, stdout=log)
        for _ in range(200):
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex((self.host, self.port)) == 0:
                    return
            try:
                self._process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError(f"mosquitto ended: {self._log.read_text()}")
        raise RuntimeError("mosquitto does not accept connections")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(10)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(10)

    def restart(self) -> None:
        """Comes back on the same port; everything that was retained is forgotten."""
        self.stop()
        self.start()

    def config(self, user: str) -> BrokerConfig:
        return BrokerConfig(host=self.host, port=self.port, username=user, password=self.passwords[user])


class Embedded(EmbeddedBroker):
    """The embedded broker on a free port, with the test users."""

    def __init__(self, state_dir: Path, *, port: int | None = None) -> None:
        super().__init__("127.0.0.1", port or free_port(), state_dir=state_dir, users=USERS)

    def restart(self) -> None:
        """Comes back on the same port; everything that was retained is forgotten."""
        self.stop()
        self.start()


def make_broker(kind: str, state_dir: Path) -> Mosquitto | Embedded:
    """Returns a broker that is not started yet; skips the test where it cannot be had."""
    state_dir.mkdir(parents=True, exist_ok=True)
    if kind == "mosquitto":
        if MOSQUITTO is None:
            pytest.skip("mosquitto is not on PATH: apt-get install mosquitto")
        return Mosquitto(state_dir)
    pytest.importorskip("amqtt", reason="amqtt is not installed: pip install 'edge-sdk[broker]'")
    return Embedded(state_dir)


def _running(kind: str, state_dir: Path) -> Iterator[Mosquitto | Embedded]:
    running = make_broker(kind, state_dir)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto | Embedded]:
    yield from _running("mosquitto", tmp_path / "mosquitto")


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Mosquitto | Embedded]:
    yield from _running("embedded", tmp_path / "embedded")


@pytest.fixture(params=["mosquitto", "embedded"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mosquitto | Embedded]:
    yield from _running(request.param, tmp_path / request.param)


def mqtt(broker: Mosquitto | Embedded, user: str, *, will: Will | None = None) -> MqttTransport:
    """Returns a transport for a user, not started; the client id is the user's name."""
    return MqttTransport(broker.config(user), user, clock=WallClock(), compute=InlineCompute(), will=will)


class Proxy:
    """A TCP proxy in front of a broker, to cut cables and to let packets vanish."""

    def __init__(self, target: TestBroker) -> None:
        self.port = free_port()
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.swallow = False  # True: bytes from the client no longer reach the broker, nor back

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Breaks every connection; the next one goes through again."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(self._target.host, self._target.port)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, far_writer}
        with suppress(asyncio.CancelledError):  # the streams of asyncio cannot stand a cancelled handler
            await asyncio.gather(self._pipe(reader, far_writer), self._pipe(far_reader, writer))
        self._writers -= {writer, far_writer}

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if not self.swallow:
                    writer.write(data)
                    await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


class ScriptedBroker:
    """A broker that does what a test tells it: answers CONNECT and nothing else, or sends bytes of its own."""

    def __init__(self, *, connack: bytes = b"\x20\x02\x00\x00", greeting: bytes = b"") -> None:
        self.host = "127.0.0.1"
        self.port = free_port()
        self.received: list[bytes] = []
        self._answer = connack + greeting
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> ScriptedBroker:
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        self.hang_up()
        await self._server.wait_closed()

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def send(self, data: bytes) -> None:
        for writer in self._writers:
            writer.write(data)
            await writer.drain()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(1)
                length, shift = 0, 0
                while True:
                    byte = (await reader.readexactly(1))[0]
                    length |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                self.received.append(head + await reader.readexactly(length))
                if head[0] >> 4 == 1:
                    writer.write(self._answer)
        writer.close()

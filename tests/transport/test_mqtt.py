"""What goes wrong with real connections. Time-outs and back-off run on virtual time, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from edge_sdk.core.clock import VirtualClock, WallClock, run_virtual
from edge_sdk.core.compute import FieldCompute, InlineCompute
from edge_sdk.core.config import BrokerConfig
from edge_sdk.core.errors import NotConnected, TransportError
from edge_sdk.core.interfaces import Disconnected
from edge_sdk.transport import mqtt as module
from edge_sdk.transport.mqtt import MqttTransport
from edge_sdk.transport.passwords import add_user
from tests.helpers.brokers import (  # noqa: F401
    MOSQUITTO,
    Embedded,
    Mosquitto,
    Proxy,
    ScriptedBroker,
    broker,
    dead_port,
    make_broker,
    mqtt,
)
from tests.helpers.peers import Peer

Broker = Mosquitto | Embedded
T = TypeVar("T")


def peer_of(config: BrokerConfig, name: str = "alice", *, window: int = 20) -> Peer:
    clock = WallClock()
    return Peer(MqttTransport(config, name, clock=clock, compute=InlineCompute(), window=window), clock)


def to(scripted: ScriptedBroker | Proxy, **more: object) -> BrokerConfig:
    return BrokerConfig.model_validate({"host": "127.0.0.1", "port": scripted.port, **more})


def test_unreachable_broker_is_said_once_and_tried_with_growing_pauses(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "edge_sdk.transport")
    attempts: list[float] = []

    class Counting(InlineCompute):
        async def run(self, lane: str, cost_ns: int, job: Callable[..., T], *args: Any, **kwargs: Any) -> T:
            attempts.append(clocks[0].now_ns() / 1e9)
            return await super().run(lane, cost_ns, job, *args, **kwargs)

    clocks: list[VirtualClock] = []

    async def main(clock: VirtualClock) -> None:
        clocks.append(clock)
        config = BrokerConfig(host="127.0.0.1", port=port)
        transport = MqttTransport(config, "alice", clock=clock, compute=Counting())
        peer = Peer(transport, clock)
        await transport.start()
        assert "is the broker running" in (await peer.disconnected()).reason
        await peer.nothing(3600.0)
        assert peer.seen[1:] == []  # one Disconnected, not one per attempt
        await transport.aclose()

    with dead_port() as port:
        run_virtual(main)
    pauses = [b - a for a, b in itertools.pairwise(attempts)]
    assert 0.12 <= pauses[0] <= 0.25
    assert all(15 <= pause <= 30 for pause in pauses[10:])
    assert len({round(p, 6) for p in pauses[10:]}) > 20  # jitter
    said = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "alice at 127.0.0.1:" in said[0].getMessage()


def test_broker_that_starts_late_is_found(tmp_path: Path) -> None:
    broker = make_broker("mosquitto", tmp_path)  # noqa: F811

    async def main() -> None:
        peer = peer_of(broker.config("alice"))
        await peer.transport.subscribe("late")
        await peer.transport.start()
        await peer.disconnected()
        broker.start()
        await peer.connected()
        await peer.transport.publish("late", b"x")
        assert (await peer.message()).payload == b"x"
        await peer.transport.aclose()

    try:
        asyncio.run(main())
    finally:
        broker.stop()


def test_a_broker_that_does_not_answer_is_given_up() -> None:
    async def main(clock: VirtualClock) -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            config = BrokerConfig(host="127.0.0.1", port=deaf.getsockname()[1])
            peer = Peer(MqttTransport(config, "alice", clock=clock, compute=InlineCompute()), clock)
            await peer.transport.start()
            assert "did not answer within 15 s" in (await peer.disconnected(20.0)).reason
            await peer.transport.aclose()

    run_virtual(main)


def test_wrong_password_is_named_and_a_corrected_file_is_read(
    broker: Broker,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        file = tmp_path / "password"
        file.write_text("wrong\n")
        config = broker.config("alice").model_copy(update={"password": "", "password_file": file})
        peer = peer_of(config)
        await peer.transport.start()
        reason = (await peer.disconnected()).reason
        assert "refused" in reason
        assert "authorized" in reason.lower()
        assert "password" in reason
        file.write_text(broker.passwords["alice"] + "\n")
        await peer.connected()
        assert [e for e in peer.seen if isinstance(e, Disconnected)] == [Disconnected(reason)]
        await peer.transport.aclose()

    asyncio.run(main())
    assert not any(broker.passwords["alice"] in r.getMessage() for r in caplog.records)


def test_missing_files_are_named(tmp_path: Path) -> None:
    async def main(option: str) -> None:
        config = BrokerConfig.model_validate({"port": 1, "username": "a", option: tmp_path / "absent"})
        peer = peer_of(config)
        await peer.transport.start()
        reason = (await peer.disconnected()).reason
        assert "No such file" in reason
        await peer.transport.aclose()

    asyncio.run(main("password_file"))
    asyncio.run(main("ca_file"))


def test_window_bounds_what_is_in_flight_and_a_lost_connection_fails_all() -> None:
    async def main() -> None:
        async with ScriptedBroker() as silent:
            peer = peer_of(to(silent), window=5)
            await peer.transport.start()
            await peer.connected()
            sending = [asyncio.ensure_future(peer.transport.publish("x", b"%d" % i)) for i in range(12)]
            while len(silent.received) < 6:  # CONNECT and five of PUBLISH
                await peer.nothing(0.01)
            await peer.nothing(0.05)
            assert len(silent.received) == 6
            sending[5].cancel()  # a place that is given up goes to the next one
            await silent.send(b"\x40\x02" + silent.received[1][4:6])  # PUBACK of the first
            await sending[0]
            while len(silent.received) < 7:
                await peer.nothing(0.01)
            assert silent.received[6].endswith(b"6")
            silent.hang_up()
            await peer.disconnected()
            for i in (1, 2, 3, 4, 6, 11):
                with pytest.raises(NotConnected):
                    await sending[i]
            await peer.transport.aclose()

    asyncio.run(main())


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff\xff\xff",
        b"\x30\x01x",  # PUBLISH without room for a topic
        b"\x32\x04\x00\x05ab",  # topic longer than the packet
        b"\x20\x02\x00",
        b"\x90\x01\x00",  # SUBACK without a packet id
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        os.urandom(4096),
    ],
    ids=["ones", "short publish", "lying topic", "half connack", "short suback", "http", "random"],
)
def test_a_peer_that_speaks_no_mqtt_ends_the_connection_and_nothing_else(garbage: bytes) -> None:
    async def main() -> None:
        async with ScriptedBroker(greeting=garbage) as strange:
            peer = peer_of(to(strange, keepalive_s=1))
            await peer.transport.start()
            await asyncio.sleep(0.1)
            strange.hang_up()
            await peer.disconnected()
            await peer.transport.aclose()

    asyncio.run(main())


def test_topic_that_is_no_text_is_dropped_and_counted() -> None:
    async def main() -> None:
        async with ScriptedBroker(greeting=b"\x30\x04\x00\x02\xff\xfe" + b"\x30\x05\x00\x02okx") as strange:
            peer = peer_of(to(strange))
            await peer.transport.start()
            assert (await peer.message()).payload == b"x"
            assert peer.transport.traffic.dropped == 1  # type: ignore[attr-defined]
            await peer.transport.aclose()

    asyncio.run(main())


def test_refused_subscription() -> None:
    async def main() -> None:
        async with ScriptedBroker() as strict:
            peer = peer_of(to(strict))
            await peer.transport.start()
            await peer.connected()
            asking = asyncio.ensure_future(peer.transport.subscribe("secret"))
            while len(strict.received) < 2:
                await peer.nothing(0.01)
            await strict.send(b"\x90\x03" + strict.received[1][1:3] + b"\x80")
            with pytest.raises(TransportError, match="secret"):
                await asking
            await peer.transport.aclose()

    asyncio.run(main())


def test_a_silent_line_is_noticed_by_keepalive(tmp_path: Path) -> None:
    broker = make_broker("mosquitto", tmp_path)  # noqa: F811
    broker.start()

    async def main() -> None:
        async with Proxy(broker) as cable:
            peer = peer_of(broker.config("alice").model_copy(update={"port": cable.port, "keepalive_s": 1}))
            await peer.transport.start()
            await peer.connected()
            cable.swallow = True
            waiting = asyncio.ensure_future(peer.transport.publish("x", b"into the void"))
            await peer.disconnected(6.0)
            with pytest.raises(NotConnected):
                await waiting
            cable.swallow = False
            await peer.connected()
            await peer.transport.aclose()

    try:
        asyncio.run(main())
    finally:
        broker.stop()


def test_a_consumer_far_behind_holds_the_broker_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HOLD_BYTES", 1 << 20)
    broker = make_broker("mosquitto", tmp_path)  # noqa: F811
    broker.start()

    async def main() -> None:
        slow, sender = peer_of(broker.config("alice")), peer_of(broker.config("bob"), "bob")
        await slow.transport.subscribe("x")
        for peer in (slow, sender):
            await peer.transport.start()
            await peer.connected()
        for i in range(300):
            await sender.transport.publish("x", i.to_bytes(2, "big") + bytes(98_000))
        held = slow.transport._inbox.bytes  # type: ignore[attr-defined]
        assert held < (1 << 20) + 102 * 98_002  # what mosquitto may have in flight comes on top
        assert [int.from_bytes((await slow.message()).payload[:2], "big") for _ in range(300)] == list(range(300))
        for peer in (slow, sender):
            await peer.transport.aclose()

    try:
        asyncio.run(main())
    finally:
        broker.stop()


def test_beyond_the_last_bound_messages_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_DROP_BYTES", 1000)

    async def main() -> None:
        flood = b"".join(b"\x30\x67\x00\x01t" + bytes(100) for _ in range(50))
        async with ScriptedBroker(greeting=flood) as rude:
            peer = peer_of(to(rude))
            await peer.transport.start()
            traffic = peer.transport.traffic  # type: ignore[attr-defined]
            while traffic.messages_down < 50:  # noqa: ASYNC110 - what is dropped tells nobody
                await asyncio.sleep(0.005)
            assert traffic.dropped == 39
            await peer.transport.aclose()

    asyncio.run(main())
    assert len([r for r in caplog.records if "dropped" in r.getMessage()]) == 1


def test_no_task_and_no_descriptor_is_left(broker: Broker) -> None:  # noqa: F811
    async def main() -> None:
        compute = FieldCompute()
        clock = WallClock()
        for i in range(5):
            peer = Peer(MqttTransport(broker.config("alice"), "alice", clock=clock, compute=compute), clock)
            await peer.transport.start()
            if i != 2:
                await peer.connected()  # the third is closed while it connects
            await peer.transport.aclose()
        with dead_port() as port:
            failing = Peer(MqttTransport(BrokerConfig(port=port), "nobody", clock=clock, compute=compute), clock)
            await failing.transport.start()
            await failing.disconnected()
            await failing.transport.aclose()
        await compute.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    gc.collect()
    before = _descriptors()
    asyncio.run(main())
    gc.collect()
    assert not _descriptors() - before


def _descriptors() -> Counter[str]:
    """What is open now: files by name, sockets and pipes by kind."""
    open_now: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            open_now[str(link.readlink()).partition(":[")[0]] += 1
    return open_now


def _certificate(folder: Path) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not on PATH: apt-get install openssl")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}".split(),
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls_with_an_authority_of_our_own(tmp_path: Path) -> None:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not on PATH: apt-get install mosquitto")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    cert, key = _certificate(ours)
    broker = Mosquitto(tmp_path, tls=(cert, key))  # noqa: F811
    broker.start()

    async def main() -> None:
        stranger = peer_of(broker.config("bob").model_copy(update={"ca_file": _certificate(theirs)[0]}), "bob")
        await stranger.transport.start()
        assert "CERTIFICATE_VERIFY_FAILED" in (await stranger.disconnected()).reason
        await stranger.transport.aclose()
        peer = peer_of(broker.config("alice").model_copy(update={"ca_file": cert}))
        await peer.transport.subscribe("x")
        await peer.transport.start()
        await peer.connected()
        await asyncio.gather(*(peer.transport.publish("x", i.to_bytes(2, "big") + bytes(98_000)) for i in range(50)))
        assert [int.from_bytes((await peer.message()).payload[:2], "big") for _ in range(50)] == list(range(50))
        await peer.transport.aclose()

    try:
        asyncio.run(main())
    finally:
        broker.stop()


def test_the_loop_goes_on_while_a_handshake_hangs(tmp_path: Path) -> None:
    cert, _ = _certificate(tmp_path)

    async def main() -> None:
        compute, clock = FieldCompute(), WallClock()
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            config = BrokerConfig(port=deaf.getsockname()[1], ca_file=cert)
            transport = MqttTransport(config, "alice", clock=clock, compute=compute)
            await transport.start()
            beats = 0
            for _ in range(50):
                await clock.sleep(0.002)
                beats += 1
            assert beats == 50
            accepted, _ = await asyncio.get_running_loop().sock_accept(_nonblocking(deaf))
            await transport.aclose()  # at once, though the worker still waits
            accepted.close()
        await compute.aclose()

    asyncio.run(main())


def _nonblocking(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    return sock


def test_same_id_throws_the_first_one_out(broker: Broker) -> None:  # noqa: F811
    async def main() -> None:
        first = Peer(mqtt(broker, "alice", will=("w", b"gone", False)), WallClock())
        watcher = Peer(mqtt(broker, "bob"), WallClock())
        await watcher.transport.subscribe("w")
        for peer in (watcher, first):
            await peer.transport.start()
            await peer.connected()
        second = Peer(mqtt(broker, "alice"), WallClock())
        await second.transport.start()
        await second.connected()
        await first.disconnected()
        await first.transport.aclose()
        assert (await watcher.message()).payload == b"gone"
        for peer in (watcher, second):
            await peer.transport.aclose()

    asyncio.run(main())


def test_a_user_added_while_the_embedded_broker_runs(tmp_path: Path) -> None:
    broker = make_broker("embedded", tmp_path)  # noqa: F811
    broker.start()

    async def main() -> None:
        assert isinstance(broker, Embedded)
        password = add_user(broker.password_file, "newcomer")
        peer = peer_of(broker.config("alice").model_copy(update={"username": "newcomer", "password": password}))
        await peer.transport.start()
        await peer.connected()
        await peer.transport.aclose()

    try:
        asyncio.run(main())
    finally:
        broker.stop()

"""One suite for every transport: the memory one on virtual time, MQTT over mosquitto and over the embedded broker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_sdk.core.errors import NotConnected
from edge_sdk.core.interfaces import Connected, Disconnected, Message, TransportEvent
from tests.helpers.brokers import Embedded, Mosquitto, make_broker
from tests.helpers.peers import Network, Scenario, play

Play = Callable[[Scenario], None]


@pytest.fixture(scope="module", params=["memory", "mosquitto", "embedded"])
def meeting_place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mosquitto | Embedded | None]:
    if request.param == "memory":
        yield None
        return
    broker = make_broker(request.param, tmp_path_factory.mktemp(request.param))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def over(meeting_place: Mosquitto | Embedded | None) -> Play:
    return lambda scenario: play(meeting_place, scenario)


def test_every_subscriber_gets_a_message_once(over: Play) -> None:
    async def scenario(net: Network) -> None:
        exact = await net.peer("alice", filters=("t1/x/y",))
        plus = await net.peer("bob", filters=("t1/+/y", "t1/x/y"))
        sender = await net.peer("d0", filters=("t1/#",))
        await sender.transport.publish("t1/x/y", b"hello")
        await sender.transport.publish("t1/x", b"only #")
        for peer in (exact, plus, sender):
            assert await peer.message() == Message("t1/x/y", b"hello")
        second = await sender.message()
        while second.payload == b"hello":  # QoS 1 allows duplicates
            second = await sender.message()
        assert second == Message("t1/x", b"only #")
        await exact.nothing()

    over(scenario)


def test_retained(over: Play) -> None:
    async def scenario(net: Network) -> None:
        early = await net.peer("alice", filters=("t2/#",))
        sender = await net.peer("bob")
        await sender.transport.publish("t2/a", b"first", retain=True)
        await sender.transport.publish("t2/a", b"kept", retain=True)
        await sender.transport.publish("t2/b", b"passing")
        assert [await early.message() for _ in range(3)] == [
            Message("t2/a", b"first"),
            Message("t2/a", b"kept"),
            Message("t2/b", b"passing"),
        ]
        late = await net.peer("d0", filters=("t2/#",))
        assert await late.message() == Message("t2/a", b"kept", retained=True)
        await late.nothing()
        await sender.transport.publish("t2/a", b"", retain=True)
        assert await late.message() == Message("t2/a", b"")
        after = await net.peer("d1", filters=("t2/#",))
        await after.nothing()

    over(scenario)


def test_last_will_after_a_loss_and_not_after_a_farewell(over: Play) -> None:
    async def scenario(net: Network) -> None:
        watcher = await net.peer("alice", filters=("t3/#",))
        await net.peer("bob", will=("t3/bob", b"offline", True))
        polite = await net.peer("d0", will=("t3/d0", b"offline", True))
        await polite.transport.aclose()
        await net.cut("bob")
        assert await watcher.message() == Message("t3/bob", b"offline")
        await watcher.nothing()
        late = await net.peer("d1", filters=("t3/#",))
        assert await late.message() == Message("t3/bob", b"offline", retained=True)
        await late.transport.publish("t3/bob", b"", retain=True)

    over(scenario)


def test_comes_back_by_itself_with_its_subscriptions(over: Play) -> None:
    async def scenario(net: Network) -> None:
        lost = await net.peer("alice", filters=("t4/#",))
        sender = await net.peer("bob")
        assert lost.seen == [Connected(1)]
        await net.cut("alice")
        assert await lost.connected() == Connected(2)
        assert isinstance(lost.seen[1], Disconnected)
        assert lost.seen[1].reason
        await sender.transport.publish("t4/x", b"again")
        assert await lost.message() == Message("t4/x", b"again")

    over(scenario)


def test_nothing_is_kept_for_a_client_that_is_away(over: Play) -> None:
    async def scenario(net: Network) -> None:
        away = await net.peer("alice", filters=("t5/#",))
        sender = await net.peer("bob")
        await away.transport.aclose()
        await sender.transport.publish("t5/x", b"missed")
        back = await net.peer("alice", filters=("t5/#",))
        await back.nothing()

    over(scenario)


def test_order_is_kept(over: Play) -> None:
    async def scenario(net: Network) -> None:
        reader = await net.peer("alice", filters=("t6/#",))
        sender = await net.peer("bob")
        await asyncio.gather(*(sender.transport.publish("t6/x", str(i).encode()) for i in range(300)))
        for i in range(300, 400):
            await sender.transport.publish("t6/y", str(i).encode())
        assert [int((await reader.message()).payload) for _ in range(400)] == list(range(400))

    over(scenario)


def test_500_messages_of_96_kib_all_arrive(over: Play) -> None:
    async def scenario(net: Network) -> None:
        reader = await net.peer("alice", filters=("t7/#",))
        sender = await net.peer("bob")
        body = os.urandom(96 * 1024 - 4)
        sending = [sender.transport.publish("t7/x", i.to_bytes(4, "big") + body) for i in range(500)]

        async def receive() -> set[bytes]:
            heads: set[bytes] = set()
            while len(heads) < 500:
                payload = (await reader.message()).payload
                assert payload[4:] == body
                heads.add(payload[:4])
            return heads

        heads, *_ = await asyncio.gather(receive(), *sending)
        assert len(heads) == 500

    over(scenario)


def test_two_senders_lose_nothing(over: Play) -> None:
    async def scenario(net: Network) -> None:
        reader = await net.peer("coordinator", filters=("t8/+/update",))
        senders = [await net.peer(f"d{i}") for i in range(4)]
        await asyncio.gather(
            *(s.transport.publish(f"t8/d{i}/update", b"%d" % n) for n in range(50) for i, s in enumerate(senders))
        )
        got = [await reader.message() for _ in range(200)]
        for i in range(4):
            assert [int(m.payload) for m in got if m.topic == f"t8/d{i}/update"] == list(range(50))

    over(scenario)


def test_not_connected(over: Play) -> None:
    async def scenario(net: Network) -> None:
        peer = await net.stranger("alice")
        assert not peer.transport.connected
        with pytest.raises(NotConnected, match="t9/x"):
            await peer.transport.publish("t9/x", b"too early")
        await peer.transport.start()
        await peer.connected()
        assert peer.transport.connected
        await peer.transport.publish("t9/x", b"now")
        await peer.transport.aclose()
        assert not peer.transport.connected
        with pytest.raises(NotConnected):
            await peer.transport.publish("t9/x", b"too late")

    over(scenario)


def test_events_end_after_closing_and_closing_twice_is_allowed(over: Play) -> None:
    async def scenario(net: Network) -> None:
        peer = await net.peer("alice", filters=("t10/#",))
        await peer.transport.publish("t10/x", b"left over")
        await peer.message()
        await peer.transport.aclose()
        await peer.transport.aclose()
        rest: list[TransportEvent] = [event async for event in peer._events]
        assert rest == [Disconnected("closed")]

    over(scenario)


def test_unsubscribe(over: Play) -> None:
    async def scenario(net: Network) -> None:
        reader = await net.peer("alice", filters=("t11/a", "t11/+/b"))
        sender = await net.peer("bob")
        await reader.transport.unsubscribe("t11/a")
        await sender.transport.publish("t11/a", b"no")
        await sender.transport.publish("t11/x/b", b"yes")
        assert (await reader.message()).payload == b"yes"
        await net.cut("alice")
        await reader.connected()
        await sender.transport.publish("t11/a", b"no")
        await sender.transport.publish("t11/x/b", b"yes")
        assert (await reader.message()).payload == b"yes"

    over(scenario)


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\0b"])
def test_topics_that_cannot_be_published_to(over: Play, topic: str) -> None:
    async def scenario(net: Network) -> None:
        peer = await net.peer("alice")
        with pytest.raises(ValueError, match="topic"):
            await peer.transport.publish(topic, b"")

    over(scenario)


@pytest.mark.parametrize("topic_filter", ["", "a/#/b", "a/b#", "a+/b"])
def test_filters_that_cannot_be_subscribed_to(over: Play, topic_filter: str) -> None:
    async def scenario(net: Network) -> None:
        peer = await net.peer("alice")
        with pytest.raises(ValueError, match="filter"):
            await peer.transport.subscribe(topic_filter)

    over(scenario)


@pytest.mark.parametrize("kind", ["memory", "mosquitto", "embedded"])
def test_a_restarted_broker_has_forgotten_and_everybody_comes_back(kind: str, tmp_path: Path) -> None:
    async def scenario(net: Network) -> None:
        alice = await net.peer("alice", filters=("t/#",), will=("t/will", b"gone", True))
        bob = await net.peer("bob")
        await bob.transport.publish("t/kept", b"old", retain=True)
        assert (await alice.message()).payload == b"old"
        await net.restart()
        await alice.connected()
        await bob.connected()
        fresh = await net.peer("d0", filters=("t/kept",))
        await fresh.nothing()
        await bob.transport.publish("t/kept", b"new", retain=True)
        while (await alice.message()).payload != b"new":
            pass  # the will may come first

    broker = None if kind == "memory" else make_broker(kind, tmp_path / kind)
    if broker is not None:
        broker.start()
    try:
        play(broker, scenario)
    finally:
        if broker is not None:
            broker.stop()

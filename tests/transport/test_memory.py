"""The modelled link, in numbers worked out by hand."""

from __future__ import annotations

import asyncio
import random

import pytest

from edge_sdk.codecs import chunks
from edge_sdk.core.clock import NS, VirtualClock, run_virtual
from edge_sdk.core.errors import NotConnected
from edge_sdk.core.interfaces import Connected, Disconnected, Message, TransportEvent
from edge_sdk.transport.memory import Link, MemoryBroker, MemoryTransport
from edge_sdk.transport.topics import packet_bytes
from tests.helpers.peers import Peer

TOPIC = "a/b"
PAYLOAD = bytes(991)  # with topic, packet id and fixed header: 1,001 bytes
assert packet_bytes(TOPIC, PAYLOAD) == 1001


async def client(
    broker: MemoryBroker, name: str, *, link: Link | None = None, filters: tuple[str, ...] = (), seed: int = 0
) -> Peer:
    transport = MemoryTransport(broker, name, link=link, rng=random.Random(seed))
    await transport.subscribe(*filters)
    await transport.start()
    return Peer(transport, broker.clock)


def test_publish_takes_size_over_rate_and_there_and_back() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        sender = await client(broker, "s", link=Link(latency_s=0.1, up_bytes_per_s=1001))
        await sender.transport.publish(TOPIC, PAYLOAD)
        assert clock.now_ns() == round(1.2 * NS)

    run_virtual(main)


def test_what_is_published_arrives_as_the_very_object() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        reader = await client(broker, "r", filters=(TOPIC,))
        sender = await client(broker, "s")
        (chunk,) = chunks.split(PAYLOAD, "update", bytes(16))
        await sender.transport.publish(TOPIC, chunk, retain=True)
        assert (await reader.message()).payload is chunk
        late = await client(broker, "l", filters=(TOPIC,))
        assert (await late.message()).payload is chunk

    run_virtual(main)


def test_messages_share_the_rate_in_both_directions() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        reader = await client(broker, "r", link=Link(latency_s=0.5, down_bytes_per_s=1001), filters=("#",))
        await reader.connected()
        sender = await client(broker, "s", link=Link(up_bytes_per_s=2002))
        sending = [asyncio.ensure_future(sender.transport.publish(TOPIC, PAYLOAD)) for _ in range(3)]
        times = []
        for _ in range(3):
            await reader.message()
            times.append(clock.now_ns() / NS)
        # up: there at 0.5, 1.0, 1.5 s; down: 1 s each, one after another, and 0.5 s on the way
        assert times == [2.0, 3.0, 4.0]
        await asyncio.gather(*sending)
        assert reader.transport.traffic.bytes_down == sender.transport.traffic.bytes_up == 3 * 1001

    run_virtual(main)


def test_a_loss_delays_what_is_behind_it_and_a_lost_puback_duplicates() -> None:
    async def main(clock: VirtualClock) -> list[bytes]:
        broker = MemoryBroker(clock)
        reader = await client(broker, "r", filters=("#",))
        sender = await client(broker, "s", link=Link(latency_s=0.01, loss=0.3, resend_s=1.0), seed=7)
        for i in range(200):
            await sender.transport.publish(TOPIC, str(i).encode())
        assert clock.now_ns() > 50 * NS
        return [(await reader.message()).payload for _ in range(reader.transport.traffic.messages_down)]

    first, second = run_virtual(main), run_virtual(main)
    assert first == second  # same seed, same fate
    assert sorted({int(p) for p in first}) == list(range(200))  # nothing is lost
    assert 230 < len(first) < 340  # about 0.3 / 0.7 = 43 % duplicates
    assert [int(p) for p in first] == sorted(int(p) for p in first)  # TCP keeps the order


def test_off_line_spans() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        watcher = await client(broker, "w", filters=("will",))
        await watcher.connected()
        transport = MemoryTransport(
            broker, "d", will=("will", b"off", False), link=Link(offline=((0.0, 2.0), (5.0, 6.0), (8.0, float("inf"))))
        )
        await transport.start()
        device = Peer(transport, clock)
        assert not transport.connected
        assert await device.connected() == Connected(1)
        assert clock.now_ns() == 2 * NS
        await device.disconnected()
        assert clock.now_ns() == 5 * NS
        assert (await watcher.message()).payload == b"off"
        with pytest.raises(NotConnected):
            await transport.publish(TOPIC, b"")
        assert await device.connected() == Connected(2)
        assert clock.now_ns() == 6 * NS
        assert (await device.disconnected()).reason == "the link is down"
        await transport.aclose()

    run_virtual(main)


def test_a_publish_under_way_learns_of_the_loss_when_it_happens() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        reader = await client(broker, "r", filters=("#",))
        await reader.connected()
        sender = await client(broker, "s", link=Link(up_bytes_per_s=100, offline=((3.0, 4.0),)))
        with pytest.raises(NotConnected, match="may not have arrived"):
            await sender.transport.publish(TOPIC, PAYLOAD)
        assert clock.now_ns() == 3 * NS
        await reader.nothing(60.0)

    run_virtual(main)


def test_what_is_on_the_way_down_is_lost_with_the_connection() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        reader = await client(broker, "r", link=Link(latency_s=1.0, offline=((0.5, 2.0),)), filters=("#",))
        sender = await client(broker, "s")
        await sender.transport.publish(TOPIC, b"lost")
        await clock.sleep(3.0)
        await sender.transport.publish(TOPIC, b"kept")
        seen = [await reader.next() for _ in range(4)]
        assert seen == [Connected(1), Disconnected("the link is down"), Connected(2), Message(TOPIC, b"kept")]

    run_virtual(main)


def test_same_id_throws_the_first_one_out() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        first = await client(broker, "d", filters=("#",))
        await first.connected()
        second = await client(broker, "d", filters=("#",))
        assert "same id" in (await first.disconnected()).reason
        await second.transport.publish(TOPIC, b"mine")
        assert (await second.message()).payload == b"mine"
        await first.transport.aclose()
        assert second.transport.connected

    run_virtual(main)


def test_a_consumer_that_gave_up_waiting_can_go_on() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        reader = await client(broker, "r", filters=("#",))
        await reader.connected()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await reader.next(1.0)
        sender = await client(broker, "s")
        await sender.transport.publish(TOPIC, b"still here")
        assert (await reader.message()).payload == b"still here"

    run_virtual(main)


def test_events_of_one_instant_keep_their_order() -> None:
    async def main(clock: VirtualClock) -> list[TransportEvent]:
        broker = MemoryBroker(clock)
        reader = await client(broker, "r", link=Link(latency_s=0.25), filters=("#",))
        senders = [await client(broker, f"s{i}", link=Link(latency_s=0.25)) for i in range(20)]
        await asyncio.gather(*(s.transport.publish(f"t/{i}", b"") for i, s in enumerate(senders)))
        return [await reader.next() for _ in range(21)]

    first, second = run_virtual(main), run_virtual(main)
    assert first == second
    assert [e.topic for e in first[1:] if isinstance(e, Message)] == [f"t/{i}" for i in range(20)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency_s": -1.0},
        {"loss": 1.0},
        {"up_bytes_per_s": 0.0},
        {"offline": ((3.0, 2.0),)},
        {"offline": ((1.0, 3.0), (2.0, 4.0))},
    ],
)
def test_impossible_links(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="found"):
        Link(**wrong)  # type: ignore[arg-type]


def test_no_task_is_left() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        peer = await client(broker, "d", link=Link(offline=((1.0, 2.0),)))
        await peer.transport.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main)


def test_deferred_messages_come_with_the_next_event_of_another_kind() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        taken: list[tuple[bytes, float]] = []

        async def read(transport: MemoryTransport) -> None:
            async for event in transport.events():
                if isinstance(event, Message):
                    taken.append((event.payload, clock.now_ns() / NS))  # noqa: PERF401  the moment counts

        reader = MemoryTransport(broker, "r")
        reader.defer(TOPIC)
        await reader.subscribe(TOPIC, "c")
        await reader.start()
        reading = asyncio.ensure_future(read(reader))
        sender = MemoryTransport(broker, "s")
        await sender.start()
        for i in range(3):
            await clock.sleep(1)
            await sender.publish(TOPIC, b"%d" % i)
        await clock.sleep(7)
        await sender.publish("c", b"now")
        await clock.sleep(1)
        # the first one may make the consumer let go of something; the others are in no hurry, but stay in order
        assert taken == [(b"0", 1.0), (b"1", 10.0), (b"2", 10.0), (b"now", 10.0)]
        del taken[:]
        for i in range(70):
            await sender.publish(TOPIC, b"%d" % i)
            await clock.sleep(1)
        assert [int(payload) for payload, _ in taken] == list(range(65)), "64 waited after the first: all were taken"
        assert {at for _, at in taken[1:]} == {75.0}
        reading.cancel()

    run_virtual(main)


def test_messages_follow_every_change_of_subscriptions() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        names = ("first", "second", "third", "wild", "sender")
        clients = {name: MemoryTransport(broker, name) for name in names}
        for transport in clients.values():
            await transport.start()
        sender = clients["sender"]

        async def reached() -> str:
            before = {name: t.traffic.messages_down for name, t in clients.items()}
            await sender.publish(TOPIC, b"x")
            return " ".join(name for name, t in clients.items() if t.traffic.messages_down > before[name])

        await clients["first"].subscribe(TOPIC)
        await clients["second"].subscribe(TOPIC)
        assert await reached() == "first second"
        await clients["third"].subscribe(TOPIC)
        assert await reached() == "first second third"
        await clients["wild"].subscribe("a/+", "#")
        assert await reached() == "first second third wild", "once each, however many filters cover it"
        await clients["first"].unsubscribe(TOPIC)
        await clients["wild"].unsubscribe("#")
        assert await reached() == "second third wild"
        await clients["wild"].unsubscribe("a/+")
        broker.drop("third")
        assert await reached() == "second"
        broker.reconnect("third")
        assert await reached() == "second third"
        await clients["second"].aclose()
        assert await reached() == "third"

    run_virtual(main)

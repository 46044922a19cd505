"""What goes wrong between a device and its coordinator, and that both come out of it with one update, applied once."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.codecs import wire
from edge_sdk.core.clock import VirtualClock, WallClock, run_virtual
from edge_sdk.core.compute import InlineCompute, ModelledCompute
from edge_sdk.core.config import BrokerConfig
from edge_sdk.core.errors import StoreError
from edge_sdk.core.messages import Fetch, Reply
from edge_sdk.core.records import Segments, VersionId
from edge_sdk.runtime.device import Device, last_will
from edge_sdk.runtime.events import (
    ModelFetched,
    TaskAbandoned,
    TaskStarted,
    TrainingWaits,
    UpdateAccepted,
    UpdateQueued,
)  # fmt: skip
from edge_sdk.runtime.outbox_file import FileOutbox
from edge_sdk.runtime.state import DeviceState
from edge_sdk.transport.link import Link
from edge_sdk.transport.memory import MemoryBroker, MemoryTransport
from edge_sdk.transport.mqtt import MqttTransport
from tests.helpers.brokers import make_broker, mqtt
from tests.helpers.devices import World, device_config, world
from tests.helpers.office import Office, Table, small_data, small_spec


async def start(w: World, group: Any) -> None:
    group.start(w.office.run(), name="office")
    group.start(w.device.run(), name="device")


def test_broker_restarts_in_the_middle_of_an_upload() -> None:
    async def main(clock: VirtualClock) -> World:
        link = Link(latency_s=0.05, up_bytes_per_s=5_000.0)
        w = world(clock, tasks=1, link=link)
        async with clock.group() as group:
            await start(w, group)
            await w.until(lambda: bool(w.of(UpdateQueued)))
            await clock.sleep(2.0)  # 27 kB take five seconds
            w.broker.stop()
            await clock.sleep(10.0)
            assert not w.office.updates
            w.broker.start()
            await w.until(lambda: bool(w.of(UpdateAccepted)))
            group.cancel()
        return w

    w = run_virtual(main)
    assert len(w.office.updates) == 1
    assert w.of(UpdateAccepted)[0].key == w.office.updates[0].key
    assert [m.want for m in w.office.heard if isinstance(m, Fetch)].count("update") >= 1
    assert w.state.outbox.waiting() == 0


def test_broker_restarts_in_the_middle_of_a_fetch() -> None:
    async def main(clock: VirtualClock) -> World:
        link = Link(latency_s=0.05, down_bytes_per_s=20_000.0)
        w = world(clock, tasks=1, link=link, chunk_bytes=8192)
        async with clock.group() as group:
            await start(w, group)
            await clock.sleep(3.0)  # 136 kB take seven seconds
            assert not w.of(ModelFetched)
            w.broker.stop()
            await clock.sleep(10.0)
            w.broker.start()
            await w.office.until(1)
            group.cancel()
        return w

    w = run_virtual(main)
    assert len(w.of(ModelFetched)) == 1
    assert w.of(ModelFetched)[0].lost_races == 0


def test_a_lost_reply_is_asked_for_and_nothing_is_applied_twice() -> None:
    async def main(clock: VirtualClock) -> World:
        w = world(clock, tasks=1)
        async with clock.group() as group:
            await start(w, group)
            await w.until(lambda: bool(w.of(TaskStarted)))
            w.office.mute = True  # the coordinator dies with our update in its hands
            await w.until(lambda: bool(w.of(UpdateQueued)))
            await clock.sleep(100.0)
            assert w.state.outbox.waiting() == 1
            w.office.mute = False
            await w.until(lambda: bool(w.of(UpdateAccepted)))
            group.cancel()
        return w

    w = run_virtual(main)
    assert [u.key.sequence for u in w.office.updates] == [1]


def test_lost_chunks_are_sent_again() -> None:
    async def main(clock: VirtualClock) -> World:
        w = world(clock, tasks=1, drop_chunks={0})
        async with clock.group() as group:
            await start(w, group)
            await w.office.until(1)
            group.cancel()
        return w

    assert len(run_virtual(main).office.updates) == 1


def test_duplicates_on_a_bad_link_are_harmless() -> None:
    async def main(clock: VirtualClock) -> World:
        w = world(clock, tasks=4, link=Link(latency_s=0.05, loss=0.4, resend_s=0.5), chunk_bytes=4096)
        async with clock.group() as group:
            await start(w, group)
            await w.until(lambda: len(w.of(UpdateAccepted)) == 4)
            group.cancel()
        return w

    w = run_virtual(main)
    assert sorted(k.sequence for k in w.office.settled) == [1, 2, 3, 4]
    assert [t.number for t in w.of(TaskStarted)] == [1, 2, 3, 4]


def test_slot_is_overwritten_while_a_slow_device_fetches() -> None:
    async def main(clock: VirtualClock) -> World:
        link = Link(latency_s=0.05, down_bytes_per_s=20_000.0)
        w = world(clock, tasks=1, link=link, chunk_bytes=1088)  # 133 chunks: more than are subscribed to at a time
        async with clock.group() as group:
            await start(w, group)
            await clock.sleep(3.0)
            wanted = w.office.version
            for _ in range(4):  # the next version of the same slot
                w.office.seal()
            await w.office.publish()
            await w.office.until(1)
            group.cancel()
        assert w.of(ModelFetched)[0].version == wanted
        return w

    w = run_virtual(main)
    assert w.of(ModelFetched)[0].lost_races == 2
    assert [m.want for m in w.office.heard if isinstance(m, Fetch)].count("model") == 1
    assert w.office.updates[0].base.number == 0


def test_a_version_with_other_tensors_than_its_name_says_is_not_trained_from(caplog: pytest.LogCaptureFixture) -> None:
    async def main(clock: VirtualClock) -> World:
        w = world(clock, tasks=1)
        seal = w.office.seal

        def forge() -> VersionId:
            version = seal()
            _, slot = w.office.versions[version]
            other = {
                name: Segments(s.params + np.float32(1), s.stats, s.counters) for name, s in w.office.tensors.items()
            }
            encoded = w.office.down.roundtrip_model(other)
            w.office.versions[version] = w.office.down.seal_model(encoded, version), slot
            return version

        w.office.seal = forge  # type: ignore[method-assign]
        async with clock.group() as group:
            await start(w, group)
            await w.until(lambda: bool(w.of(TaskAbandoned)))
            group.cancel()
        return w

    with caplog.at_level(logging.WARNING):
        w = run_virtual(main)
    assert "wrong digest" in caplog.text
    assert not w.of(ModelFetched)
    assert not w.office.updates


def test_a_base_that_is_gone_ends_the_task_and_another_is_asked_for() -> None:
    async def main(clock: VirtualClock) -> World:
        w = world(clock, link=Link(latency_s=0.05, down_bytes_per_s=20_000.0), chunk_bytes=1088)
        async with clock.group() as group:
            await start(w, group)
            await clock.sleep(3.0)
            gone = w.office.version
            assert gone is not None
            for _ in range(4):
                w.office.seal()
            del w.office.versions[gone]
            w.office.open.clear()
            await w.office.publish()
            await w.office.until(1)
            group.cancel()
        return w

    w = run_virtual(main)
    assert "gone" in w.of(TaskAbandoned)[0].reason
    assert w.office.updates[0].base.number == 4


def test_full_disk_stops_training_and_goes_on_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Small(FileOutbox):
        """The same outbox on a disk that somebody else has filled."""

        def fill(self, pages: int) -> None:
            self._db.execute(f"PRAGMA max_page_count={pages}")

    async def main(clock: VirtualClock) -> World:
        outbox = Small(tmp_path / "outbox.sqlite", "d1")
        w = world(clock, state=DeviceState(outbox, None), tasks=3)
        async with clock.group() as group:
            await start(w, group)
            await w.until(lambda: bool(w.of(TaskStarted)))
            outbox.fill(1)
            await w.until(lambda: bool(w.of(TrainingWaits)))
            await clock.sleep(600.0)
            assert not w.office.updates
            outbox.fill(1 << 20)
            await w.until(lambda: len(w.of(UpdateAccepted)) == 3)
            group.cancel()
        return w

    with caplog.at_level(logging.ERROR):
        w = run_virtual(main)
    assert len([r for r in caplog.records if "training waits" in r.message]) == 1
    assert [bool(e.reason) for e in w.of(TrainingWaits)] == [True, False]
    assert len(w.office.updates) == 3


def test_a_killed_device_sends_its_update_after_the_restart(tmp_path: Path) -> None:
    async def main(clock: VirtualClock) -> None:
        spec = small_spec()
        broker = MemoryBroker(clock)
        office = Office(spec, MemoryTransport(broker, "coordinator"), clock, tasks=1, mute=False)

        def device(state: DeviceState, events: list[Any], link: Link | None) -> Device:
            config = device_config()
            transport = MemoryTransport(broker, "d1", will=last_will(config, state), link=link)
            return Device(
                config, transport=transport, clock=clock, compute=ModelledCompute(clock),
                rounds=Table(small_data(spec), clock), observer=events.append, state=state,
            )  # fmt: skip

        async with clock.group() as group:
            group.start(office.run(), name="office")
            events: list[Any] = []
            state = DeviceState.open(tmp_path, "home", "d1")
            first = group.start(device(state, events, Link(up_bytes_per_s=1000.0)).run(), name="first life")
            while not any(isinstance(e, UpdateQueued) for e in events):
                await clock.sleep(0.1)
            await clock.sleep(1.0)
            assert state.outbox.oldest().sent  # type: ignore[union-attr]
            state.close()  # as a kill would: no farewell, nothing more is written
            broker.drop("d1")
            first.cancel()
            await asyncio.wait([first])
            again = DeviceState.open(tmp_path, "home", "d1")
            assert again.outbox.waiting() == 1
            later: list[Any] = []
            group.start(device(again, later, None).run(), name="second life")
            while not any(isinstance(e, UpdateAccepted) for e in later):
                await clock.sleep(0.1)
            await clock.sleep(60.0)
            assert len(office.updates) == 1
            assert not [e for e in later if isinstance(e, TaskStarted)]  # it was given the same task again
            group.cancel()

    run_virtual(main)


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
def test_real_broker_restarts_in_the_middle_of_the_work(tmp_path: Path, kind: str) -> None:
    spec = small_spec()

    async def main() -> None:
        broker = make_broker(kind, tmp_path / kind)
        broker.start()
        clock, events = WallClock(), []  # type: ignore[var-annotated]
        office = Office(spec, mqtt(broker, "coordinator"), clock)
        state = DeviceState.open(tmp_path, "home", "d1")
        device = Device(
            device_config(), transport=mqtt(broker, "d1", will=last_will(device_config(), state)), clock=clock,
            compute=InlineCompute(), rounds=Table(small_data(spec), clock, {"acc": 0.0, "gyr": 0.0}),
            observer=events.append, state=state,
        )  # fmt: skip
        try:
            async with clock.group() as group:
                group.start(office.run(), name="office")
                group.start(device.run(), name="device")
                async with clock.deadline(50.0):
                    await office.until(2)
                broker.restart()
                seen = len(office.updates)
                async with clock.deadline(50.0):
                    await office.until(seen + 2)
                group.cancel()
        finally:
            broker.stop()
            state.close()
        accepted = [e.key for e in events if isinstance(e, UpdateAccepted)]
        assert len(set(accepted)) == len(accepted)

    asyncio.run(main())


def test_wrong_password_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        broker = make_broker("mosquitto", tmp_path / "mosquitto")
        broker.start()
        try:
            good = broker.config("d1")
            wrong = BrokerConfig(host=good.host, port=good.port, username="d1", password="wrong")
            clock, events = WallClock(), []  # type: ignore[var-annotated]
            transport = MqttTransport(wrong, "d1", clock=clock, compute=InlineCompute())
            state = DeviceState.in_memory("d1")
            device = Device(
                device_config(), transport=transport, clock=clock, compute=InlineCompute(), observer=events.append,
                state=state, rounds=Table(small_data(small_spec()), clock),
            )  # fmt: skip
            async with clock.group() as group:
                group.start(device.run(), name="device")
                async with clock.deadline(60.0):
                    while not events:
                        await clock.sleep(0.05)
                group.cancel()
            assert [e.connected for e in events] == [False]
            assert "password" in events[0].detail or "authori" in events[0].detail.lower()
        finally:
            broker.stop()

    asyncio.run(main())
    assert "password" in caplog.text or "authori" in caplog.text.lower()


def test_hostile_messages_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    async def main(clock: VirtualClock) -> World:
        w = world(clock, tasks=2)
        async with clock.group() as group:
            await start(w, group)
            await w.office.until(1)
            topics = w.office.topics
            for topic in (topics.spec, topics.head, topics.task("d1"), topics.reply("d1"), topics.label("d1")):
                for payload in (b"", b"\xff" * 100, b"EDSK" + bytes(100), wire.encode(Reply("accepted"))):
                    await w.office.transport.publish(topic, payload)
            await w.office.until(2)
            group.cancel()
        return w

    w = run_virtual(main)
    assert len(w.office.updates) == 2
    assert "passed over" in caplog.text


def test_store_error_is_not_swallowed_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(StoreError):
        DeviceState.open(tmp_path, "home", "d1")

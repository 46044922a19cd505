"""The coordinator's loop: what an update does to the model, who is answered what, and when it ends."""

import numpy as np
import pytest

from coordinator import events
from coordinator.config import PublishConfig, ScheduleConfig, StopConfig
from coordinator.store import MemoryStore
from edge_sdk.codecs import wire
from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.errors import ConfigError, StoreError
from edge_sdk.core.messages import Fetch, SpecMessage
from edge_sdk.core.records import VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.models import build
from edge_sdk.transport.memory import MemoryBroker, MemoryTransport
from edge_sdk.transport.topics import Topics
from tests.helpers.field import Field, Peer, config_of, dataset, federation, play, spec_of


def large() -> FederationSpec:
    """Returns a federation whose updates take several small chunks."""
    return spec_of().model_copy(update={"model": spec_of().model.model_copy(update={"feature_dim": 64})})


def test_an_update_is_mixed_at_the_rate_of_the_rule_published_and_answered() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        task = await device.task()
        before = (await device.model(task.base)).tensors
        reply = await device.deliver(device.update(task, value=0.25))
        assert (reply.kind, reply.version) == ("accepted", VersionId(task.base.lineage, 1, ""))
        head = await world.published(1)
        after = (await device.model(head.newest.id)).tensors
        for name in before:  # fresh: θ equals the base, so θ ← θ + 0.5 Δ
            np.testing.assert_allclose(after[name].params, before[name].params + 0.125, atol=2e-3)
        assert wire.tensors_digest(after) == head.newest.id.digest
        applied = world.of(events.UpdateApplied)[0]
        assert (applied.device, applied.sequence, applied.base, applied.staleness) == ("d1", 0, 0, 0)
        assert set(applied.rates.values()) == {0.5}
        assert applied.bytes_up > 64

    play(script)


def test_staleness_counts_the_updates_since_the_base() -> None:
    async def script(world: Field) -> None:
        slow, fast = await world.peer("slow"), await world.peer("fast")
        task = await slow.task()
        for _ in range(3):
            await fast.contribute()
        await slow.deliver(slow.update(task))
        last = world.of(events.UpdateApplied)[-1]
        assert (last.staleness, last.version) == (3, 4)
        assert last.rates["fusion"] == pytest.approx(0.5 * 4**-0.5)

    play(script)


def test_the_same_update_twice_is_applied_once_and_answered_twice() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        update = device.update(await device.task())
        first, again = await device.deliver(update), await device.deliver(update)
        assert first == again
        await device.ask(Fetch("update", key=update.key, digest=wire.object_digest(device.encode(update))))
        assert await device.reply() == first
        assert world.center.ledger.number == 1

    play(script)


def test_chunks_may_come_in_any_order_and_twice() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        update = device.update(await device.task())
        parts = device.split(device.encode(update), update.key, chunk_bytes=64 + 1024)
        assert len(parts) > 2
        for part in [parts[-1], *parts[::-1][1:-1], parts[1], parts[0]]:
            await device.transport.publish(device.topics.update("d1"), part)
        assert (await device.reply()).kind == "accepted"

    play(script, spec=large())


def test_chunks_that_do_not_come_are_asked_for_after_a_quiet_time() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        update = device.update(await device.task())
        data = device.encode(update)
        parts = device.split(data, update.key, chunk_bytes=64 + 1024)
        for part in (*parts[:1], *parts[2:]):
            await device.transport.publish(device.topics.update("d1"), part)
        start_ns = world.clock.now_ns()
        reply = await device.reply()
        assert (reply.kind, reply.key, reply.chunks) == ("missing", update.key, (1,))
        assert (world.clock.now_ns() - start_ns) / 1e9 == pytest.approx(5.0, abs=0.1)
        await device.ask(Fetch("update", key=update.key, digest=wire.object_digest(data)))
        assert await device.reply() == reply
        await device.transport.publish(device.topics.update("d1"), parts[1])
        assert (await device.reply()).kind == "accepted"

    play(script, spec=large())


def test_an_upload_goes_on_after_the_broker_came_back() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        update = device.update(await device.task())
        data = device.encode(update)
        parts = device.split(data, update.key, chunk_bytes=64 + 1024)
        for part in parts[:2]:
            await device.transport.publish(device.topics.update("d1"), part)
        world.broker.stop()
        await world.clock.sleep(1.0)
        world.broker.start()
        await world.settle()
        await device.say()
        await device.ask(Fetch("update", key=update.key, digest=wire.object_digest(data)))
        reply = await device.reply("missing")
        assert reply.chunks == tuple(range(2, len(parts)))
        for number in reply.chunks:
            await device.transport.publish(device.topics.update("d1"), parts[number])
        assert (await device.reply()).kind == "accepted"

    play(script, spec=large())


def test_what_stays_incomplete_is_dropped_and_unknown() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        update = device.update(await device.task())
        data = device.encode(update)
        await device.transport.publish(
            device.topics.update("d1"), device.split(data, update.key, chunk_bytes=64 + 1024)[0]
        )
        await world.clock.sleep(120.0)
        await device.ask(Fetch("update", key=update.key, digest=wire.object_digest(data)))
        assert (await device.reply("unknown")).key == update.key
        assert (await device.deliver(update)).kind == "accepted"

    play(script, spec=large())


def test_a_device_that_lost_its_task_gets_the_same_one_again() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        assert await device.task() == await device.task()

    play(script)


def test_a_task_lapses_at_its_deadline_and_its_update_is_refused() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        task = await device.task()
        assert task.deadline_s == pytest.approx(60.0)
        await world.clock.sleep(61.0)
        assert [e.task for e in world.of(events.TaskLapsed)] == [task.id]
        reply = await device.deliver(device.update(task))
        assert (reply.kind, reply.reason) == ("rejected", "unknown_task")
        assert (await device.task()).number == task.number + 1

    play(script, config=config_of(schedule=ScheduleConfig(task_deadline_s=60.0)))


def test_the_learning_rate_decays_with_the_version_at_the_download() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        rates = []
        for _ in range(3):
            task = await device.task()
            rates.append(task.plan.lr)
            await device.deliver(device.update(task))
            await world.published(task.base.number + 1)
        assert rates == pytest.approx([0.1, 0.1 * 0.99, 0.1 * 0.99**2])

    play(script)


def test_pause_gives_no_tasks_but_takes_updates_and_resume_goes_on() -> None:
    async def script(world: Field) -> None:
        one, two = await world.peer("d1"), await world.peer("d2")
        task = await one.task()
        world.center.pause()
        await world.settle()
        await two.ask(Fetch("task"))
        assert (await one.deliver(one.update(task))).kind == "accepted"
        await world.clock.sleep(10.0)
        assert two.tasks.empty()
        assert two.head is not None
        assert two.head.state == "paused"
        world.center.resume()
        assert (await two.within(two.tasks.get)).kind == "train"
        assert [e.state for e in world.of(events.StateChanged)] == ["paused", "running"]

    play(script)


def test_it_ends_after_so_many_updates_publishes_the_last_version_and_sends_everybody_home() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        for _ in range(2):
            await device.contribute()
        while (await device.within(device.tasks.get)).kind != "stop":
            pass
        await world.running
        assert device.head is not None
        assert (device.head.state, device.head.newest.id.number) == ("finished", 2)
        assert [number for number, _ in world.center.evaluations][-1] == 2

    config = config_of(stop=StopConfig(updates=2), publish=PublishConfig(every_updates=100))
    play(script, config=config, test=dataset())


def test_it_ends_when_time_is_up_without_any_message() -> None:
    async def script(world: Field) -> float:
        await world.running
        return world.clock.now_ns() / 1e9

    assert play(script, config=config_of(stop=StopConfig(seconds=90.0))) == pytest.approx(90.0, abs=0.1)


def test_it_ends_on_a_plateau() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        for _ in range(3):
            await device.contribute(value=0.0)  # nothing ever changes
            await world.settle()
        await world.running
        assert "no gain in 3" in world.of(events.StateChanged)[-1].reason

    play(script, config=config_of(stop=StopConfig(plateau=3)), test=dataset())


def test_best_is_published_beside_newest() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        for value in (0.0, 0.5, -1.0, 0.3):
            await device.contribute(value=value)
            await world.settle()
        scores = {number: result.acc for number, result in world.center.evaluations}
        best = max(scores, key=lambda n: (scores[n], -n))
        assert sorted(scores) == [0, 1, 2, 3, 4]
        assert device.head is not None
        assert device.head.best is not None
        assert (device.head.newest.id.number, device.head.best.id.number) == (4, best)
        assert wire.tensors_digest((await device.model(device.head.best.id)).tensors) == device.head.best.id.digest

    play(script, test=dataset())


class Full(MemoryStore):
    """A store whose disk is full while `full` is set."""

    full = False

    def commit(self, entry: object) -> None:
        if self.full:
            raise StoreError("no space left on device")
        super().commit(entry)  # type: ignore[arg-type]


def test_a_full_disk_refuses_updates_loses_none_and_changes_nothing() -> None:
    store = Full()

    async def script(world: Field) -> None:
        device = await world.peer()
        update = device.update(await device.task())
        before = wire.params_digest(world.center.tensors)
        store.full = True
        for _ in range(2):
            assert (await device.deliver(update)).reason == "store"
        assert len(world.of(events.StoreFailed)) == 1
        assert wire.params_digest(world.center.tensors) == before
        store.full = False
        assert (await device.deliver(update)).kind == "accepted"
        assert world.center.ledger.number == 1

    play(script, store=store)


def test_a_second_device_under_one_id_is_refused_by_name_until_the_first_has_gone() -> None:
    async def script(world: Field) -> None:
        first = await world.peer("d1")
        task = await first.task()
        second = await world.peer("d1", client="copy", incarnation=2)
        await world.settle()
        assert "id 'd1'" in world.of(events.DeviceRefused)[0].detail
        assert (await second.deliver(second.update(task))).reason == "unknown_device"
        assert (await first.deliver(first.update(task))).kind == "accepted"
        await first.say("offline")
        task = await second.task()
        assert (await second.deliver(second.update(task))).kind == "accepted"

    play(script)


def test_a_reused_sequence_is_refused_and_the_new_incarnation_is_taken() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        await device.contribute()
        device.sequence = 0
        assert (await device.contribute(value=0.5)).reason == "sequence_reused"
        device.incarnation, device.sequence = 9, 0
        await device.say()
        assert not world.of(events.DeviceRefused)
        assert (await device.contribute(value=0.5)).kind == "accepted"

    play(script)


def test_devices_that_are_not_enrolled_are_refused_and_may_come_once_they_are() -> None:
    store = MemoryStore(devices=("d1",))

    async def script(world: Field) -> None:
        known = await world.peer("d1")
        task = await known.task()
        stranger = await world.peer("d2")
        assert (await stranger.deliver(stranger.update(task))).reason == "unknown_device"
        assert [e.device for e in world.of(events.DeviceRefused)] == ["d2"]
        assert (await known.deliver(known.update(task))).kind == "accepted"
        await stranger.ask(Fetch("task"))  # once, as devices do
        await world.clock.sleep(20.0)
        assert stranger.tasks.empty()
        store.devices = frozenset(("d1", "d2"))  # as `enroll` does it, from outside
        await world.clock.sleep(10.0)
        assert not stranger.tasks.empty()
        assert (await stranger.deliver(stranger.update(stranger.tasks.get_nowait()))).kind == "accepted"
        assert [e.device for e in world.of(events.DeviceRefused)] == ["d2"]

    admission = config_of().admission.model_copy(update={"enrolment": "listed"})
    play(script, config=config_of(admission=admission), store=store)


def test_a_second_coordinator_is_refused_by_name_and_the_first_goes_on() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        async with federation(clock, broker=broker) as world:
            device = await world.peer()
            await device.contribute()
            with pytest.raises(ConfigError, match="'test' has a coordinator already"):
                async with federation(clock, broker=broker, client="other"):
                    await clock.sleep(5.0)
            assert world.of(events.Conflict)
            assert (await device.contribute()).kind == "accepted"
            spec = wire.decode(SpecMessage, broker.retained[Topics("test").spec])
            assert spec.coordinator == world.center.claim.me

    run_virtual(main)


def test_what_a_dead_coordinator_left_on_the_broker_is_waited_out_then_replaced() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        async with federation(clock, broker=broker) as world:
            await world.published(0)
        async with federation(clock, broker=broker) as world:
            device = await world.peer()
            start_ns = clock.now_ns()
            await clock.sleep(3.0)
            await device.contribute()
            assert (clock.now_ns() - start_ns) / 1e9 < 4.0

    run_virtual(main)


def test_while_a_federation_may_be_anothers_no_device_is_told_anything_and_none_is_forgotten() -> None:
    async def main(clock: VirtualClock) -> None:
        broker = MemoryBroker(clock)
        async with federation(clock, broker=broker) as world:
            await world.published(0)
        peer = Peer(MemoryTransport(broker, "d1"), spec_of(), "d1", clock)
        async with clock.group() as group:
            group.start(peer.run(), name="peer")
            await peer.connect()
            await peer.say()
            listed = config_of(admission=config_of().admission.model_copy(update={"enrolment": "listed"}))
            async with federation(clock, broker=broker, config=listed, store=MemoryStore(devices=("d1",))) as world:
                stranger = await world.peer("d2")
                await peer.ask(Fetch("task"))  # what a device does at once when it hears a new coordinator
                await clock.sleep(1.0)
                assert peer.tasks.empty()
                assert stranger.replies.empty()
                await clock.sleep(3.0)
                assert not peer.tasks.empty()
                assert stranger.replies.get_nowait().reason == "unknown_device"
            group.cancel()

    run_virtual(main)


def test_after_a_broker_forgot_everything_spec_slots_and_head_are_there_again() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        for _ in range(5):
            await device.contribute()
            await world.settle()
        before = dict(world.broker.retained)
        world.broker.stop(forget=True)
        world.broker.start()
        await world.clock.sleep(5.0)
        mine = {topic for topic in before if "/device/" not in topic}
        assert {topic: world.broker.retained.get(topic) for topic in mine} == {t: before[t] for t in mine}
        await device.say()
        assert (await device.contribute()).kind == "accepted"

    play(script)


def test_a_version_that_is_not_held_is_unknown() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        await device.ask(Fetch("model", version=VersionId("0" * 32, 7, "0" * 32)))
        assert (await device.reply()).kind == "unknown"

    play(script)


def test_a_first_version_can_be_handed_in() -> None:
    init = build.initial_tensors(spec_of(), seed=99)

    async def script(world: Field) -> str:
        await world.published(0)
        return wire.params_digest(world.center.tensors)

    assert play(script, init=init) == wire.params_digest(init)


def test_a_store_of_another_federation_is_refused() -> None:
    store = MemoryStore()
    other = spec_of().model_copy(update={"name": "other"})

    async def script(world: Field) -> None:
        await world.published(0)

    play(script, store=store)
    with pytest.raises(StoreError, match="holds federation 'test'"):
        play(script, store=store, spec=other)


def test_what_a_device_notes_is_told_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        for notes in (("a worse model was not taken",), ("a worse model was not taken", "acc looks stuck"), ()):
            await device.say(notes=notes)
        await world.settle()
        assert [e.notes for e in world.of(events.DeviceSeen)][-3:] == [
            ("a worse model was not taken",), ("a worse model was not taken", "acc looks stuck"), (),
        ]  # fmt: skip

    with caplog.at_level("WARNING"):
        play(script)
    assert [r.getMessage() for r in caplog.records].count("d1: a worse model was not taken") == 1
    assert "d1: acc looks stuck" in caplog.text


def test_an_update_without_tensors_makes_no_version() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        reply = await device.contribute(tensors={})
        assert (reply.kind, reply.reason) == ("rejected", "malformed")
        assert world.center.ledger.number == 0

    play(script)

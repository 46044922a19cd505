"""Who trains: both policies, and the fleet that they choose from."""

import numpy as np
import pytest

from coordinator import events
from coordinator.config import PublishConfig, ScheduleConfig
from coordinator.fleet import Fleet
from coordinator.scheduler import Scheduler
from edge_sdk.core.messages import Fetch, Status
from edge_sdk.core.records import VersionId
from tests.helpers.field import Field, Peer, config_of, play, spec_of

BASE = VersionId("a" * 32, 0, "b" * 32)


def status(device: str, *, state: str = "online", incarnation: int = 1, **changes: object) -> Status:
    spec = spec_of()
    return Status(device, state, incarnation, spec.digest, changes.get("modalities", spec.modality_names))  # type: ignore[arg-type]


def fleet_of(count: int) -> Fleet:
    fleet = Fleet(spec_of(), None)
    for n in range(count):
        fleet.heard(status(f"d{n}"))
        fleet.asks(f"d{n}")
    return fleet


def test_sampled_keeps_a_share_busy_and_draws_uniformly() -> None:
    counts = np.zeros(8)
    for seed in range(300):
        fleet = fleet_of(8)
        scheduler = Scheduler(ScheduleConfig(policy="sampled", fraction=0.25, seed=seed), spec_of(), (), {})
        chosen = scheduler.choose(fleet)
        assert len(chosen) == 2
        assert len({m.device for m in chosen}) == 2
        for member in chosen:
            counts[int(member.device[1:])] += 1
    assert counts.sum() == 600
    assert counts.min() > 45  # 75 expected; 45 is 4 standard deviations away
    assert counts.max() < 105


def test_sampled_draws_the_same_for_the_same_seed_and_fills_up_what_is_free() -> None:
    def run(seed: int) -> list[str]:
        fleet = fleet_of(12)
        scheduler = Scheduler(ScheduleConfig(policy="sampled", fraction=0.25, seed=seed), spec_of(), (), {})
        order = []
        for _ in range(20):
            for member in scheduler.choose(fleet):
                task = scheduler.make(member, BASE, fleet, utc_ns=0, lineage="a")
                scheduler.opened(task)
                fleet.served(member)
                order.append(member.device)
            assert len(scheduler.tasks) == 3
            done = scheduler.tasks[0]
            scheduler.close(done.id)
            fleet.asks(done.device)
        return order

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_devices_that_cannot_train_are_passed_over() -> None:
    fleet = fleet_of(3)
    fleet.heard(status("d0", state="offline"))
    fleet.heard(status("d1", modalities=("smell",)))
    scheduler = Scheduler(ScheduleConfig(), spec_of(), (), {})
    assert [m.device for m in scheduler.choose(fleet)] == ["d2"]


def test_a_plan_has_only_the_modalities_of_its_device() -> None:
    fleet = Fleet(spec_of(), None)
    fleet.heard(status("d0", modalities=("gyro", "smell")))
    member = fleet.asks("d0")
    task = Scheduler(ScheduleConfig(), spec_of(), (), {}).make(member, BASE, fleet, utc_ns=0, lineage="a")
    assert task.modalities == ("gyro",)


def test_tasks_lapse_in_order_of_their_deadlines_and_closed_ones_do_not() -> None:
    fleet = fleet_of(3)
    scheduler = Scheduler(ScheduleConfig(task_deadline_s=10.0), spec_of(), (), {})
    tasks = [scheduler.make(fleet.member(f"d{n}"), BASE, fleet, utc_ns=n * 10**9, lineage="a") for n in range(3)]
    for task in tasks:
        scheduler.opened(task)
    scheduler.close(tasks[1].id)
    assert scheduler.next_lapse_utc_ns == 10 * 10**9
    assert scheduler.lapse(9 * 10**9) == []
    assert scheduler.lapse(13 * 10**9) == [tasks[0], tasks[2]]
    assert scheduler.next_lapse_utc_ns is None


def test_an_id_stays_with_its_holder_and_goes_over_when_that_is_gone() -> None:
    fleet = Fleet(spec_of(), None)
    assert fleet.heard(status("d1", incarnation=1)) == ""
    assert "uses the id 'd1'" in fleet.heard(status("d1", incarnation=2))
    assert fleet.heard(status("d1", incarnation=1)) == ""
    assert fleet.member("d1").incarnation == 1
    fleet.heard(status("d1", state="offline", incarnation=1))
    assert (fleet.member("d1").incarnation, fleet.online) == (2, 1)
    fleet.heard(status("d1", state="offline", incarnation=1))  # the last will of the first one comes late
    assert (fleet.member("d1").incarnation, fleet.online) == (2, 1)


def test_sampled_tells_the_others_that_there_is_nothing_and_pushes_a_task_later() -> None:
    async def script(world: Field) -> None:
        peers = [await world.peer(f"d{n}") for n in range(4)]
        for peer in peers:
            await peer.ask(Fetch("task"))
        await world.settle()
        busy = [p for p in peers if not p.tasks.empty()]
        idle = [p for p in peers if p.tasks.empty()]
        assert (len(busy), len(idle)) == (1, 3)
        for peer in idle:
            assert (await peer.reply("no_task")).kind == "no_task"
        await busy[0].deliver(busy[0].update(busy[0].tasks.get_nowait()))
        await world.settle()
        assert sum(not p.tasks.empty() for p in idle) == 1
        task = next(p for p in idle if not p.tasks.empty()).tasks.get_nowait()
        assert task.base.number == 1  # it waited for the version that was on its way out

    config = config_of(schedule=ScheduleConfig(policy="sampled", fraction=0.25, min_devices=4, task_deadline_s=0.0))
    play(script, config=config)


def test_nobody_trains_before_enough_devices_are_there() -> None:
    async def script(world: Field) -> None:
        one = await world.peer("d1")
        await one.ask(Fetch("task"))
        await world.clock.sleep(60.0)
        assert one.tasks.empty()
        await world.peer("d2")
        assert (await one.within(one.tasks.get)).kind == "train"

    play(script, config=config_of(schedule=ScheduleConfig(min_devices=2)))


def test_ten_devices_at_once_make_one_line_of_versions() -> None:
    async def contribute(peer: Peer) -> None:
        for _ in range(5):
            await peer.contribute()

    async def script(world: Field) -> None:
        peers = [await world.peer(f"d{n}") for n in range(10)]
        async with world.clock.group() as group:
            for peer in peers:
                group.start(contribute(peer), name=peer.device)
        applied = world.of(events.UpdateApplied)
        assert [e.version for e in applied] == list(range(1, 51))
        assert all(e.staleness == e.version - 1 - e.base for e in applied)
        assert len({(e.device, e.sequence) for e in applied}) == 50

    play(script)


@pytest.mark.parametrize("patience_s", [0.0, 5.0])
def test_a_task_waits_for_a_version_that_is_on_its_way_out(patience_s: float) -> None:
    async def script(world: Field) -> list[int]:
        device = await world.peer()
        bases = []
        for _ in range(3):
            task = await device.task()
            bases.append(task.base.number)
            await device.deliver(device.update(task))
        return bases

    config = config_of(publish=PublishConfig(min_interval_s=0.0, min_hold_s=0.0, patience_s=patience_s))
    assert play(script, config=config) == [0, 1, 2]

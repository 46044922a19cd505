from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")

from edge_sdk.codecs import wire
from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.compute import TRAIN, InlineCompute
from edge_sdk.core.errors import ComputeError, ConfigError, Reason
from edge_sdk.core.messages import Fetch, Plan, Reply, Status, Task
from edge_sdk.runtime.budget import FULL, Allowance
from edge_sdk.runtime.device import Device, own_modalities
from edge_sdk.runtime.events import (
    ModalityArrived,
    PhaseFinished,
    TaskAbandoned,
    TaskStarted,
    TrainingEased,
    TrainingWaits,
    UpdateAccepted,
    UpdateQueued,
    UpdateRefused,
)  # fmt: skip
from edge_sdk.runtime.state import DeviceState
from edge_sdk.transport.link import Link
from edge_sdk.transport.memory import MemoryTransport
from tests.helpers.devices import World, device_config, world
from tests.helpers.office import small_spec


def live(count: int, **options: Any) -> World:
    """Runs a device until so many updates have come."""

    async def main(clock: VirtualClock) -> World:
        w = world(clock, **options)
        async with clock.group() as group:
            group.start(w.office.run(), name="office")
            group.start(w.device.run(), name="device")
            await w.office.until(count)
            await clock.sleep(0.5)
            group.cancel()
        return w

    return run_virtual(main)


def test_trains_task_after_task() -> None:
    w = live(3, tasks=3)
    assert [u.key.sequence for u in w.office.updates] == [1, 2, 3]
    assert [u.task for u in w.office.updates] == ["t1-d1", "t2-d1", "t3-d1"]
    assert len(w.of(UpdateAccepted)) == 3
    assert w.state.outbox.waiting() == 0
    update = w.office.updates[0]
    assert update.kind == "delta"
    assert sorted(update.tensors) == ["encoder.acc", "encoder.gyr", "fusion"]
    assert update.num_samples == 24
    assert (update.train_s, update.wait_s) == (1.0, 2.0)
    assert any(np.any(s.params) for s in update.tensors.values())


def test_asks_for_a_task_when_it_connects_and_after_every_reply() -> None:
    w = live(2, tasks=2)
    kinds = [
        type(m).__name__ if isinstance(m, Status) else m.want for m in w.office.heard if isinstance(m, Status | Fetch)
    ]
    assert kinds == ["Status", "task", "task", "task"]
    status = w.office.heard[0]
    assert isinstance(status, Status)
    assert (status.state, status.incarnation, status.modalities) == ("online", 5, ("acc", "gyr"))
    assert status.spec_digest == w.office.spec.digest


def test_says_that_it_leaves() -> None:
    w = live(1)
    topic = w.office.topics.status("d1")
    assert wire.decode(Status, w.broker.retained[topic]).state == "offline"


def test_same_seed_same_updates() -> None:
    first, second = (live(2).office.updates for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert all(np.array_equal(a.tensors[m].params, b.tensors[m].params) for m in a.tensors)
    assert not np.array_equal(first[0].tensors["fusion"].params, first[1].tensors["fusion"].params)


def test_other_seed_other_updates() -> None:
    config = device_config(device={"id": "d1", "federation": "home", "seed": 1})
    a, b = live(1).office.updates[0], live(1, config=config).office.updates[0]
    assert not np.array_equal(a.tensors["fusion"].params, b.tensors["fusion"].params)


def test_anchors_the_early_modality_while_the_late_one_is_under_way() -> None:
    w = live(1, spec_options={"method": "mba"}, after_s={"gyr": 1.0, "acc": 5.0})
    assert [a.modality for a in w.of(ModalityArrived)[:2]] == ["gyr", "acc"]
    assert [(p.phase, p.modalities, p.final) for p in w.of(PhaseFinished)[:2]] == [
        ("anchor", ("gyr",), False),
        ("fused", ("acc", "gyr"), True),
    ]
    update = w.office.updates[0]
    assert any("gyr" in name for name in update.payload)
    assert update.wait_s == pytest.approx(5.0 + 1.0 - 2.0)  # arrival of acc, then the fused phase; 2 s of training


def test_a_running_phase_is_not_interrupted() -> None:
    w = live(1, spec_options={"method": "mba"}, after_s={"gyr": 1.0, "acc": 2.0}, cost_s=10.0)
    assert [p.phase for p in w.of(PhaseFinished)[:2]] == ["anchor", "fused"]
    assert w.office.updates[0].train_s == 20.0


def test_a_modality_that_does_not_come_is_absent() -> None:
    w = live(1, spec_options={"method": "mba"}, after_s={"gyr": 1.0})
    assert w.office.updates[0].modalities == ("gyr",)
    assert sorted(w.office.updates[0].tensors) == ["encoder.gyr", "fusion"]


def test_memory_is_private_and_kept() -> None:
    w = live(1, spec_options={"method": "mba"})
    memory = w.state.memory("mba")
    assert memory
    assert not set(memory) & set(w.office.updates[0].payload)
    assert w.state.memory("fedasync") == {}


def test_trains_with_the_modalities_it_has() -> None:
    config = device_config(sensors={"gyr": {"driver": "synthetic"}})
    w = live(1, config=config)
    assert w.office.updates[0].modalities == ("gyr",)
    assert w.rounds.asked[0] == (1, ("gyr",))  # type: ignore[attr-defined]


def test_sensors_of_another_federation_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"acc, gyr.*for camera"):
        own_modalities(device_config(sensors={"camera": {"driver": "synthetic"}}), small_spec())
    both = device_config(sensors={"camera": {"driver": "synthetic"}, "acc": {"driver": "synthetic"}})
    assert own_modalities(both, small_spec()) == ("acc",)
    assert "camera" in caplog.text


def test_alone_it_needs_a_spec() -> None:
    async def main(clock: VirtualClock) -> None:
        with pytest.raises(ConfigError, match="needs the federation's spec"):
            Device(
                device_config(), transport=None, clock=clock, compute=InlineCompute(), state=DeviceState.in_memory("d1")
            )

    run_virtual(main)


def test_deadline_of_a_task_is_kept() -> None:
    async def main(clock: VirtualClock) -> World:
        w = world(clock, after_s={"acc": 1.0, "gyr": 100.0}, deadline_s=50.0)
        async with clock.group() as group:
            group.start(w.office.run(), name="office")
            group.start(w.device.run(), name="device")
            await w.until(lambda: bool(w.of(TaskAbandoned)))
            group.cancel()
        assert clock.now_ns() / 1e9 == pytest.approx(50.0, abs=0.2)
        return w

    w = run_virtual(main)
    assert "50 s" in w.of(TaskAbandoned)[0].reason
    assert w.office.updates == []


def test_a_stopped_device_trains_no_more() -> None:
    async def main(clock: VirtualClock) -> World:
        w = world(clock, tasks=1)
        async with clock.group() as group:
            group.start(w.office.run(), name="office")
            group.start(w.device.run(), name="device")
            await w.office.until(1)
            assert w.office.version is not None
            stop = Task("stop", "stop", w.office.version, Plan((), 1, 0.1, 1), 2, 0.0)
            await w.office.transport.publish(w.office.topics.task("d1"), wire.encode(stop))
            await clock.sleep(60)
            group.cancel()
        return w

    w = run_virtual(main)
    assert len(w.of(TaskStarted)) == 1
    assert w.device.desk.idle


def test_budget_makes_training_wait() -> None:
    async def main(clock: VirtualClock) -> list[Any]:
        w = world(clock)
        events: list[Any] = []
        device = Device(
            device_config(), transport=MemoryTransport(w.broker, "d1"), clock=clock, compute=InlineCompute(),
            rounds=w.rounds, budget=lambda: "too hot" if clock.now_ns() < 60e9 else "", observer=events.append,
            state=DeviceState.in_memory("d1"),
        )  # fmt: skip
        async with clock.group() as group:
            group.start(w.office.run(), name="office")
            group.start(device.run(), name="device")
            await w.office.until(1)
            group.cancel()
        assert clock.now_ns() >= 60e9
        return events

    waits = [e.reason for e in run_virtual(main) if isinstance(e, TrainingWaits)]
    assert waits[:2] == ["too hot", ""]


def test_budget_makes_training_gentler_and_the_update_is_accepted() -> None:
    gentle = Allowance(eased=("86 °C",), steps=1, freeze_encoders=True)

    async def main(clock: VirtualClock) -> World:
        w = world(clock, tasks=2)
        answers = iter([gentle])
        events: list[Any] = []
        device = Device(
            device_config(), transport=MemoryTransport(w.broker, "d1"), clock=clock, compute=InlineCompute(),
            rounds=w.rounds, budget=lambda: next(answers, FULL), observer=events.append,
            state=DeviceState.in_memory("d1"),
        )  # fmt: skip
        async with clock.group() as group:
            group.start(w.office.run(), name="office")
            group.start(device.run(), name="device")
            await w.office.until(2)
            await clock.sleep(1)
            group.cancel()
        return replace(w, events=events)

    w = run_virtual(main)
    eased, full = w.of(TrainingEased)
    assert (eased.reasons, eased.batch_size, eased.frozen) == (("86 °C",), 4, ("encoder.acc", "encoder.gyr"))
    assert (full.reasons, full.batch_size, full.frozen) == ((), 8, ())
    assert [sorted(u.tensors) for u in w.office.updates] == [["fusion"], ["encoder.acc", "encoder.gyr", "fusion"]]
    steps = [e.num_steps for e in w.of(PhaseFinished)]
    assert steps == [6, 3]  # 24 rows in batches of 4, then of 8
    assert len(w.of(UpdateAccepted)) == 2


@pytest.mark.parametrize("reason", [Reason.BASE_EXPIRED, Reason.NORM])
def test_what_was_refused_returns_or_is_thrown_away(reason: Reason) -> None:
    w = live(2, tasks=2, verdict=[Reply("rejected", reason=reason.value)])
    assert [e.reason for e in w.of(UpdateRefused)] == [reason.value]
    first, second = (u.tensors["fusion"].params for u in w.office.updates)
    clean = live(2, tasks=2).office.updates[1].tensors["fusion"].params
    step = float(np.abs(clean).max()) / 64
    if reason is Reason.BASE_EXPIRED:
        assert np.allclose(second - clean, first, atol=4 * step)
    else:
        assert np.allclose(second, clean, atol=4 * step)
        assert not np.allclose(second - clean, first, atol=4 * step)


def test_used_sequence_begins_a_new_life() -> None:
    w = live(2, tasks=2, verdict=[Reply("rejected", reason=Reason.SEQUENCE_REUSED.value)])
    first, second = w.office.updates
    assert first.key.incarnation == 5
    assert second.key.incarnation not in (0, 5)


def test_offline_it_trains_on_and_replaces_its_update() -> None:
    w = live(1, tasks=1, link=Link(offline=((2.5, 60.0),)))
    queued = w.of(UpdateQueued)
    assert [q.replaced for q in queued] == [False, True, True, True, True]
    assert [q.key.sequence for q in queued] == [1, 2, 3, 4, 5]
    assert {q.task for q in queued} == {"t1-d1"}
    update = w.office.updates[0]
    assert update.key.sequence == 5
    assert update.num_steps == 5 * 3
    assert update.num_samples == 5 * 24
    assert len(w.office.updates) == 1


def test_full_tensors_travel_without_a_residual() -> None:
    w = live(2, spec_options={"up": "fp32|zstd"})
    assert w.office.updates[0].kind == "full"
    assert w.state.outbox.waiting() == 0


def test_two_devices_under_a_slow_link() -> None:
    w = live(2, link=Link(latency_s=0.2, up_bytes_per_s=20_000.0, down_bytes_per_s=50_000.0))
    assert [u.key.sequence for u in w.office.updates] == [1, 2]


class Dying(InlineCompute):
    """A machine whose first training child is killed."""

    killed = False

    async def run(self, lane: str, cost_ns: int, job: Any, *args: Any, **kwargs: Any) -> Any:
        if lane == TRAIN and not self.killed:
            self.killed = True
            raise ComputeError("out of memory")
        return await super().run(lane, cost_ns, job, *args, **kwargs)


def test_a_killed_training_child_costs_one_task() -> None:
    async def main(clock: VirtualClock) -> list[Any]:
        w = world(clock)
        events: list[Any] = []
        device = Device(
            device_config(), transport=MemoryTransport(w.broker, "d1"), clock=clock, compute=Dying(), rounds=w.rounds,
            observer=events.append, state=DeviceState.in_memory("d1"),
        )  # fmt: skip
        async with clock.group() as group:
            group.start(w.office.run(), name="office")
            group.start(device.run(), name="device")
            await w.office.until(1)
            group.cancel()
        return events

    events = run_virtual(main)
    assert [e.reason for e in events if isinstance(e, TaskAbandoned)] == ["out of memory"]
    assert len([e for e in events if isinstance(e, UpdateQueued)]) == 1

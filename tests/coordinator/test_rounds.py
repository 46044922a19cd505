"""Synchronous rounds: who is asked, who trains, what becomes of those who are late, and what a restart leaves."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator import events
from coordinator.config import CoordinatorConfig, ScheduleConfig, StopConfig, StoreConfig
from coordinator.service import Coordinator
from coordinator.store import MemoryStore, OpenRound, OpenTask, RoundEntry, SqliteStore, Store
from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.compute import InlineCompute
from edge_sdk.core.errors import ConfigError, StoreError
from edge_sdk.core.messages import QUERY, Fetch, Reply, Task
from edge_sdk.core.records import ModelTensors
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn import params
from edge_sdk.learn.records import Assignment
from edge_sdk.transport.memory import MemoryBroker, MemoryTransport
from tests.helpers import learning, plugins, sync_method
from tests.helpers.field import Field, Peer, config_of, federation, play


def spec_of(method: str = "fedavg") -> FederationSpec:
    return learning.spec(2, method=method)


def config(**schedule: object) -> CoordinatorConfig:
    """Returns a configuration that selects everybody and waits 100 s for them."""
    return config_of(schedule=ScheduleConfig(**{"min_devices": 2, "round_deadline_s": 100.0, **schedule}))


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[FederationSpec]:
    folder = tmp_path / "plugins"
    folder.mkdir()
    with plugins.registered(folder, "methods", asking="tests.helpers.sync_method:METHOD"):
        yield spec_of("asking")


async def pair(world: Field) -> tuple[Peer, Peer]:
    """Returns two devices that both wait for a task."""
    return await world.peer("d1"), await world.peer("d2")


async def both(first: Peer, second: Peer) -> tuple[Task, Task]:
    """Returns the tasks of two devices; a round begins when both have asked."""
    await first.ask(Fetch("task"))
    return await second.task(), await first.within(first.tasks.get)


async def answer(peer: Peer, task: Task, number: float, **changes: object) -> Reply:
    payload = {"number": np.asarray(number, np.float32)}
    said = {"tensors": {}, "payload": payload, "num_samples": max(1, int(number)), **changes}
    return await peer.deliver(peer.update(task, **said))


def test_a_version_is_the_weighted_mean_of_those_who_were_asked() -> None:
    async def script(world: Field) -> None:
        first, second = await pair(world)
        task2, task1 = await both(first, second)
        assert (task1.kind, task1.plan.modalities, task1.plan.epochs) == ("train", ("acc", "gyro"), 2)
        before = (await first.model(task1.base)).tensors
        reply = await first.deliver(first.update(task1, value=1.0, num_samples=10))
        assert (reply.kind, reply.version and reply.version.number) == ("accepted", 1)
        assert world.center.ledger.number == 0  # the cohort is not complete
        await second.deliver(second.update(task2, value=3.0, num_samples=30))
        head = await world.published(1)
        after = (await first.model(head.newest.id)).tensors
        for name in before:  # (10 · 1 + 30 · 3) / 40
            np.testing.assert_allclose(after[name].params, before[name].params + 2.5, atol=0.02)
        assert [e.applied for e in world.of(events.UpdateApplied)] == [1, 2]
        assert world.of(events.UpdateApplied)[1].rates["fusion"] == 0.75
        assert world.of(events.RoundClosed) == [events.RoundClosed(1, ("d1", "d2"), ())]
        assert world.center.ledger.updates == 2

    play(script, spec=spec_of(), config=config())


def test_a_round_waits_for_a_device_that_is_nearly_free_and_goes_on_without_it_in_the_end() -> None:
    async def script(world: Field) -> None:
        first, second = await pair(world)
        start_ns = world.clock.now_ns()
        task = await first.task()
        assert (world.clock.now_ns() - start_ns) / 1e9 == pytest.approx(5.0, abs=0.1)
        assert second.tasks.empty()
        await first.deliver(first.update(task))
        task2, task1 = await both(first, second)  # the last one of a round has asked again before the next begins
        assert task1.base.number == task2.base.number == 1

    play(script, spec=spec_of(), config=config())


def test_a_straggler_is_left_behind_and_takes_part_again() -> None:
    async def script(world: Field) -> None:
        first, second = await pair(world)
        task2, task1 = await both(first, second)
        await first.deliver(first.update(task1, value=1.0))
        head = await world.published_after(100.0)
        assert head.newest.id.number == 1
        assert world.of(events.RoundClosed) == [events.RoundClosed(1, ("d1",), ("d2",))]
        late = await second.deliver(second.update(task2))
        assert (late.kind, late.reason) == ("rejected", "unknown_task")
        task2, task1 = await both(first, second)
        assert (task1.base.number, task2.base.number) == (1, 1)

    play(script, spec=spec_of(), config=config())


def test_a_round_without_any_update_begins_again() -> None:
    async def script(world: Field) -> None:
        first, second = await pair(world)
        await both(first, second)
        await world.clock.sleep(101.0)
        assert world.of(events.RoundClosed) == [events.RoundClosed(0, (), ("d1", "d2"))]
        assert world.center.ledger.number == 0
        task2, task1 = await both(first, second)
        assert task1.number == task2.number == 1
        assert (await first.deliver(first.update(task1))).kind == "accepted"

    play(script, spec=spec_of(), config=config())


def test_learning_rates_come_with_the_task_and_decay_by_round() -> None:
    async def script(world: Field) -> list[float]:
        first, second = await pair(world)
        rates = []
        for _ in range(3):
            task2, task1 = await both(first, second)
            rates.append(task1.plan.lr)
            await first.deliver(first.update(task1))
            await second.deliver(second.update(task2))
        return rates

    assert play(script, spec=spec_of(), config=config()) == pytest.approx([0.1, 0.099, 0.09801])


def test_k_of_n_are_selected_and_the_others_hear_that_there_is_nothing() -> None:
    async def script(world: Field) -> tuple[str, ...]:
        peers = [await world.peer(f"d{n}") for n in range(4)]
        for peer in peers:
            await peer.ask(Fetch("task"))
        await world.settle()
        chosen = world.of(events.RoundStarted)[0].devices
        assert len(chosen) == 2
        for peer in peers:
            if peer.device not in chosen:
                assert (await peer.reply("no_task")).kind == "no_task"
        return chosen

    schedule = {"policy": "sampled", "fraction": 0.5, "min_devices": 4}
    selections = {play(script, spec=spec_of(), config=config(**schedule, seed=seed)) for seed in range(8)}
    assert len(selections) > 2  # drawn, not fixed
    assert play(script, spec=spec_of(), config=config(**schedule, seed=3)) in selections


def test_a_query_comes_first_and_the_answers_decide(asking: FederationSpec) -> None:
    async def script(world: Field) -> None:
        first, second = await pair(world)
        task2, task1 = await both(first, second)
        assert (task1.kind, task1.plan.phase, task1.plan.epochs) == (QUERY, "number", 0)
        assert (await answer(first, task1, 7)).kind == "accepted"
        assert (await answer(second, task2, 9)).kind == "accepted"
        task = await second.within(second.tasks.get)
        assert (task.kind, task.plan.phase, task.plan.epochs, task.plan.lr) == ("train", "largest", 3, 0.05)
        assert "number" in task.extras
        assert first.tasks.empty()
        await second.deliver(second.update(task, payload={"number": np.asarray(9, np.float32)}))
        head = await world.published(1)
        after = (await second.model(head.newest.id)).tensors
        assert set(after["fusion"].params.tolist()) == {1.0}  # the module that the rule made itself
        assert [e.stage for e in world.of(events.RoundStarted)] == [QUERY, "train"]
        assert world.center.ledger.updates == 1  # an answer is no update

    play(script, spec=asking, config=config(policy="sampled", fraction=0.5))


def test_whoever_does_not_answer_can_still_not_stop_the_round(asking: FederationSpec) -> None:
    async def script(world: Field) -> None:
        first, second = await pair(world)
        _, task1 = await both(first, second)
        await answer(first, task1, 7)
        await world.clock.sleep(101.0)
        task = await first.within(first.tasks.get)
        assert task.kind == "train"

    play(script, spec=asking, config=config(policy="sampled", fraction=0.5))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"payload": {}}, "malformed"),
        ({"payload": {"number": np.asarray(-1, np.float32)}}, "payload"),
        ({"payload": {"other": np.asarray(1, np.float32)}}, "payload"),
        ({"payload": {"number": np.asarray(np.nan, np.float32)}}, "non_finite"),
    ],
)
def test_an_answer_that_is_not_what_was_declared_is_refused(
    asking: FederationSpec, changes: dict[str, object], reason: str
) -> None:
    async def script(world: Field) -> None:
        first, second = await pair(world)
        _, task1 = await both(first, second)
        reply = await answer(first, task1, 7, **changes)
        assert (reply.kind, reply.reason) == ("rejected", reason)

    play(script, spec=asking, config=config())


def test_an_answer_with_tensors_is_refused(asking: FederationSpec) -> None:
    async def script(world: Field) -> None:
        first, second = await pair(world)
        _, task1 = await both(first, second)
        reply = await first.deliver(first.update(task1, payload={"number": np.asarray(1, np.float32)}))
        assert (reply.kind, reply.reason) == ("rejected", "malformed")

    play(script, spec=asking, config=config())


def test_a_pause_lets_the_cohort_finish_and_starts_nothing_new() -> None:
    async def script(world: Field) -> None:
        first, second = await pair(world)
        task2, task1 = await both(first, second)
        world.center.pause()
        await first.deliver(first.update(task1))
        await second.deliver(second.update(task2))
        await world.published(1)
        await world.clock.sleep(50.0)
        assert len(world.of(events.RoundStarted)) == 1
        world.center.resume()
        task2, task1 = await both(first, second)
        assert task1.base.number == 1

    play(script, spec=spec_of(), config=config())


def test_updates_are_counted_in_whole_rounds() -> None:
    async def script(world: Field) -> None:
        first, second = await pair(world)
        while not world.running.done():
            task2, task1 = await both(first, second)
            if "stop" in (task1.kind, task2.kind):
                break
            await first.deliver(first.update(task1))
            await second.deliver(second.update(task2))
        assert world.center.ledger.updates == 4

    settings = config().model_copy(update={"stop": StopConfig(updates=3)})
    play(script, spec=spec_of(), config=settings)


async def _to_the_middle(clock: VirtualClock, store: Store, settings: CoordinatorConfig) -> None:
    """Runs a round and a half: in the second, one of two devices has delivered."""
    async with federation(clock, spec=spec_of(), store=store, config=settings) as world:
        first, second = await pair(world)
        task2, task1 = await both(first, second)
        await first.deliver(first.update(task1))
        await second.deliver(second.update(task2))
        await world.published(1)
        _, task1 = await both(first, second)
        await first.deliver(first.update(task1))
    store.close()


async def _from_the_middle(clock: VirtualClock, store: Store, settings: CoordinatorConfig) -> ModelTensors:
    async with federation(clock, spec=spec_of(), store=store, config=settings) as world:
        second = await world.peer("d2")
        second.sequence = 1
        task = await second.task()
        assert (task.base.number, task.number) == (1, 1)  # the very task that it had been given
        await second.deliver(second.update(task))
        await world.published(2)
        assert world.of(events.RoundClosed) == [events.RoundClosed(2, ("d1", "d2"), ())]
        return params.copy(world.center.tensors)


@pytest.mark.parametrize("checkpoint_every", [1, 50])
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_restart_in_the_middle_of_a_round_goes_on_with_it(
    kind: str, checkpoint_every: int, tmp_path: Path
) -> None:  # fmt: skip
    """Invariant 14."""
    settings = config().model_copy(update={"store": StoreConfig(checkpoint_every=checkpoint_every)})
    memory = MemoryStore()

    def store() -> Store:
        """Returns what a new process would open."""
        return memory if kind == "memory" else SqliteStore(tmp_path / "store")

    async def broken(clock: VirtualClock) -> ModelTensors:
        await _to_the_middle(clock, store(), settings)
        return await _from_the_middle(clock, store(), settings)

    async def whole(clock: VirtualClock) -> ModelTensors:
        async with federation(clock, spec=spec_of(), store=MemoryStore(), config=settings) as world:
            first, second = await pair(world)
            for _ in range(2):
                task2, task1 = await both(first, second)
                await first.deliver(first.update(task1))
                await second.deliver(second.update(task2))
            await world.published(2)
            return params.copy(world.center.tensors)

    assert learning.equal(run_virtual(broken), run_virtual(whole))


async def _all_answered(clock: VirtualClock, spec: FederationSpec, store: Store) -> None:
    """Runs to where every answer is durable and nobody has been selected yet, and stops there."""
    settings = config(policy="sampled", fraction=0.5)
    async with federation(clock, spec=spec, store=store, config=settings) as world:
        first, second = await pair(world)
        task2, task1 = await both(first, second)
        await answer(first, task1, 7)
        world.center.pause()  # the round ends its stage, and selects nobody
        await answer(second, task2, 9)
    store.close()


@pytest.mark.parametrize("back", [("d1", "d2"), ("d2", "d1")])
def test_after_a_restart_nobody_is_selected_before_those_who_answered_are_back(
    asking: FederationSpec, back: tuple[str, str]
) -> None:
    store = MemoryStore()

    async def main(clock: VirtualClock) -> None:
        await _all_answered(clock, asking, store)
        async with federation(clock, spec=asking, store=store, config=config(policy="sampled", fraction=0.5)) as world:
            peers = {back[0]: await world.peer(back[0])}
            await clock.sleep(3.0)
            assert not world.of(events.RoundStarted)
            assert not world.of(events.RoundClosed)  # the round has not been given up either
            peers[back[1]] = await world.peer(back[1])
            task = await peers["d2"].within(peers["d2"].tasks.get)  # the one with the larger number
            assert (task.kind, task.plan.phase) == ("train", "largest")
            assert world.of(events.RoundStarted) == [events.RoundStarted(0, "train", ("d2",))]

    run_virtual(main)


def test_after_a_restart_a_device_that_does_not_come_back_is_not_waited_for_long(asking: FederationSpec) -> None:
    store = MemoryStore()

    async def main(clock: VirtualClock) -> None:
        await _all_answered(clock, asking, store)
        async with federation(clock, spec=asking, store=store, config=config(policy="sampled", fraction=0.5)) as world:
            await clock.sleep(50.0)
            assert not world.of(events.RoundClosed)
            first, start_ns = await world.peer("d1"), clock.now_ns()
            task = await first.within(first.tasks.get)
            assert (task.kind, task.plan.phase) == ("train", "largest")
            assert (clock.now_ns() - start_ns) / 1e9 == pytest.approx(5.0, abs=0.1)

    run_virtual(main)


def test_while_paused_nobody_is_selected_after_a_restart_either(asking: FederationSpec) -> None:
    store = MemoryStore()

    async def main(clock: VirtualClock) -> None:
        await _all_answered(clock, asking, store)
        async with federation(clock, spec=asking, store=store, config=config(policy="sampled", fraction=0.5)) as world:
            world.center.pause()
            first = await world.peer("d1")
            await clock.sleep(20.0)  # longer than the others are waited for
            assert not world.of(events.RoundStarted)
            world.center.resume()
            assert (await first.within(first.tasks.get)).plan.phase == "largest"

    run_virtual(main)


def test_a_device_that_comes_back_and_goes_again_leaves_the_round_open(asking: FederationSpec) -> None:
    store = MemoryStore()

    async def main(clock: VirtualClock) -> None:
        await _all_answered(clock, asking, store)
        async with federation(clock, spec=asking, store=store, config=config(policy="sampled", fraction=0.5)) as world:
            first = await world.peer("d1")
            await clock.sleep(2.0)
            await first.say("offline")
            await clock.sleep(20.0)
            assert not world.of(events.RoundClosed)
            await first.say("online")
            await world.peer("d2")
            await clock.sleep(1.0)
            assert world.of(events.RoundStarted) == [events.RoundStarted(0, "train", ("d2",))]

    run_virtual(main)


def test_a_replay_of_rounds_gives_the_same_bits(asking: FederationSpec) -> None:
    """Invariant 14."""
    store = MemoryStore(keep="all", lineage="c" * 32)

    async def run(clock: VirtualClock) -> ModelTensors:
        async with federation(clock, spec=asking, store=store, config=config()) as world:
            first, second = await pair(world)
            for number in range(3):
                task2, task1 = await both(first, second)
                await answer(first, task1, number)
                await answer(second, task2, 9)
                for peer in (first, second):
                    task = await peer.within(peer.tasks.get)
                    await peer.deliver(peer.update(task, payload={"number": np.asarray(1, np.float32)}))
            await world.published(3)
            state = {name: value.copy() for name, value in world.center.ledger.state.items()}
        store.close()
        again = Coordinator(
            config(), asking, transport=MemoryTransport(MemoryBroker(clock), "c"), clock=clock,
            compute=InlineCompute(), store=store,
        )  # fmt: skip
        store._checkpoints = {0: store._checkpoints[0]}  # the whole journal is replayed
        opened = again.ledger.open(None, 0)
        assert (opened.replayed, again.ledger.number, again.ledger.updates) == (6, 3, 6)
        assert state.keys() == again.ledger.state.keys()
        assert all(np.array_equal(state[name], again.ledger.state[name]) for name in state)
        assert all(isinstance(entry, RoundEntry) for entry in store.entries(0))
        assert learning.equal(world.center.tensors, again.tensors)
        return again.tensors

    assert run_virtual(run)


def test_what_an_abandoned_round_has_heard_is_in_the_journal_with_the_next(asking: FederationSpec) -> None:
    """Invariant 14."""
    store = MemoryStore(keep="all", lineage="c" * 32)
    settings = config(policy="sampled", fraction=0.5)

    async def run(clock: VirtualClock) -> None:
        async with federation(clock, spec=asking, store=store, config=settings) as world:
            first, second = await pair(world)
            task2, task1 = await both(first, second)
            await answer(first, task1, 7)
            await answer(second, task2, 9)
            await second.within(second.tasks.get)
            await world.clock.sleep(101.0)  # the device that was selected does not train
            assert world.of(events.RoundClosed) == [events.RoundClosed(0, (), ("d2",))]
            await answer(first, await first.task(), 5)
            task = await first.within(first.tasks.get)
            await first.deliver(first.update(task, payload={"number": np.asarray(1, np.float32)}))
            await world.published(1)
            state = {name: value.copy() for name, value in world.center.ledger.state.items()}
        assert {name: float(value) for name, value in state.items()} == {"number/d1": 5.0, "number/d2": 9.0}
        (entry,) = store.entries(0)
        assert entry.patch == state

    run_virtual(run)


def test_answers_change_the_state_once_however_often_the_store_refuses(
    asking: FederationSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    opened, refused = store.open_tasks, []

    def full(tasks: tuple[OpenTask, ...], stage: OpenRound | None) -> None:
        if stage is not None and stage.stage == "train" and len(refused) < 2:
            refused.append(stage.version)
            raise StoreError("no space left on device")
        opened(tasks, stage)

    monkeypatch.setattr(store, "open_tasks", full)
    monkeypatch.setattr(sync_method.Server, "answered", lambda _, state, __: {"asked": state.get("asked", 0.0) + 1.0})

    async def script(world: Field) -> None:
        first, second = await pair(world)
        task2, task1 = await both(first, second)
        await answer(first, task1, 7)
        await answer(second, task2, 9)
        task = await first.within(first.tasks.get)
        assert (task.kind, len(refused)) == ("train", 2)
        assert float(world.center.ledger.state["asked"]) == 1.0

    play(script, spec=asking, config=config(), store=store)


def test_a_round_planned_for_another_spec_is_forgotten() -> None:
    store = MemoryStore()
    other = spec_of().model_copy(update={"training": spec_of().training.model_copy(update={"lr": 0.2})})

    async def run(clock: VirtualClock) -> None:
        await _to_the_middle(clock, store, config())
        async with federation(clock, spec=other, store=store, config=config()) as world:
            first, second = await pair(world)
            first.incarnation = second.incarnation = 2
            await first.say()
            await second.say()
            task2, task1 = await both(first, second)
            assert task1.base.number == task2.base.number == 1
            assert task1.plan.lr == pytest.approx(0.2 * 0.99)

    run_virtual(run)


def test_a_decision_that_the_store_refuses_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    commit, refused = store.commit_round, []

    def full(entry: RoundEntry) -> None:
        if len(refused) < 2:
            refused.append(entry.version)
            raise StoreError("no space left on device")
        commit(entry)

    monkeypatch.setattr(store, "commit_round", full)

    async def script(world: Field) -> None:
        first, second = await pair(world)
        task2, task1 = await both(first, second)
        for peer, task in ((first, task1), (second, task2)):
            assert (await peer.deliver(peer.update(task))).kind == "accepted"
        assert world.center.ledger.number == 0
        await world.clock.sleep(20.0)
        assert world.center.ledger.number == 1
        assert len(world.of(events.StoreFailed)) == 1

    play(script, spec=spec_of(), config=config(), store=store)


def test_a_selection_that_cannot_be_carried_out_is_the_methods_mistake(
    asking: FederationSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*_: object) -> tuple[Assignment, ...]:
        return (Assignment("d1", ("smell",)),)

    monkeypatch.setattr(sync_method.Server, "select", nobody)
    monkeypatch.setattr(sync_method.Server, "query", lambda *_: ())

    async def script(world: Field) -> None:
        first, second = await pair(world)
        await both(first, second)

    with pytest.raises(ConfigError, match=r"assigned \['smell'\] to 'd1', which has \['acc', 'gyro'\]"):
        play(script, spec=asking, config=config())

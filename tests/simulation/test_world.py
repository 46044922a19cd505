"""The scripted world: who arrives when, and that it never depends on the order of events."""

import numpy as np

from coordinator.simulation.profiles import MBA, Board, WorldProfile
from coordinator.simulation.world import ModelledCost, ScriptedSource, script
from edge_sdk.core.clock import NS, VirtualClock, run_virtual
from edge_sdk.core.records import Arrival, Dataset, RoundData
from tests.simulation.test_partition import world


def tri() -> Dataset:
    base = world(40)
    x = {m: np.zeros((40, size), np.float32) for m, size in (("a", 1000), ("b", 4000), ("c", 500))}
    has = {m: np.ones(40, bool) for m in x}
    has["c"][:10] = False
    return Dataset("tri", x, base.y, base.classes, has)


def test_half_of_the_modalities_is_early_and_transmission_takes_bytes_over_bandwidth() -> None:
    data = tri()
    arrivals = script(data, MBA, seed=1, device=2, task=3, modalities=("a", "b", "c"))
    assert [a.after_s < MBA.arrivals.delay_s for a in arrivals] == [True, False, False]
    for a in arrivals:
        sent_s = a.after_s - (MBA.arrivals.delay_s if a.after_s >= MBA.arrivals.delay_s else 0.0)
        size = int(data.has[a.modality].sum()) * data.x[a.modality][0].nbytes
        assert MBA.arrivals.bandwidth_low_kbps <= size / sent_s / 1000 <= MBA.arrivals.bandwidth_high_kbps


def test_draws_are_keyed_by_device_and_task_not_by_order() -> None:
    def draw(device: int, task: int) -> object:
        return script(tri(), MBA, seed=1, device=device, task=task, modalities=("a", "b", "c"))

    first = draw(0, 0)
    draw(1, 7)
    assert draw(0, 0) == first
    assert len({draw(0, t) for t in range(20)}) == 20


def test_a_round_delivers_its_script_in_virtual_time_and_then_says_that_nothing_more_comes() -> None:
    data = tri()

    async def main(clock: VirtualClock) -> tuple[list[Arrival | None], RoundData, RoundData]:
        await clock.sleep(5.0)
        round_set = await ScriptedSource(data, MBA, clock, seed=1, device=0).freeze(4, ("a", "b", "c"))
        got = [await round_set.next_arrival() for _ in range(4)]
        for arrival in got[:3]:
            assert arrival is not None
        assert got[2] is not None
        assert clock.now_ns() == got[2].t_ns
        return got, round_set.data(("a",)), round_set.data(("a", "c"))

    got, alone, both = run_virtual(main)
    expected = script(data, MBA, seed=1, device=0, task=4, modalities=("a", "b", "c"))
    assert [(a.modality, a.t_ns) for a in got if a] == [(e.modality, 5 * NS + round(e.after_s * NS)) for e in expected]
    assert got[3] is None
    assert len(alone.y) == 40
    assert both.indices.tolist() == list(range(10, 40))


def test_a_client_with_rows_of_a_whole_set_is_the_client_that_has_them() -> None:
    whole, rows = tri(), np.array([3, 17, 25])

    async def main(clock: VirtualClock) -> list[tuple[list[Arrival | None], RoundData]]:
        sources = [
            ScriptedSource(whole, MBA, clock, seed=1, device=0, rows=rows),
            ScriptedSource(whole.take(rows), MBA, clock, seed=1, device=0),
        ]
        sets = [await source.freeze(4, ("a", "b", "c")) for source in sources]
        return [([await s.next_arrival() for _ in range(4)], s.data(("a", "b"))) for s in sets]

    (arrivals, mine), (expected, alone) = run_virtual(main)
    assert [a and (a.modality, a.count) for a in arrivals] == [a and (a.modality, a.count) for a in expected]
    assert mine.indices.tolist() == alone.indices.tolist()
    assert all(np.array_equal(mine.x[m], alone.x[m]) for m in ("a", "b"))
    assert not np.shares_memory(mine.x["a"], whole.x["a"])


def test_incomplete_rows_are_left_out_or_taken_with_what_they_have() -> None:
    data = tri()
    data.has["a"][5:15] = False  # rows 5 to 9 have neither

    async def main(clock: VirtualClock) -> tuple[RoundData, RoundData]:
        sources = [ScriptedSource(data, MBA, clock, seed=1, device=0, incomplete=how) for how in ("drop", "mask")]
        dropped, masked = [await source.freeze(0, ("a", "b", "c")) for source in sources]
        return dropped.data(("a", "c")), masked.data(("a", "c"))

    dropped, masked = run_virtual(main)
    assert dropped.indices.tolist() == list(range(15, 40))
    assert masked.indices.tolist() == [*range(5), *range(10, 40)]
    assert masked.has["a"].tolist() == [True] * 5 + [False] * 5 + [True] * 25
    assert masked.has["c"].tolist() == [False] * 5 + [True] * 30


def test_slow_clients_are_half_of_all_and_five_times_slower() -> None:
    from types import SimpleNamespace

    profile = WorldProfile(board=Board(sample_s=1e-3, factor=10.0, slow_factor=5.0))
    for steps, rows in ((0, 2 * 40), (7, 7 * 16)):  # two epochs of all rows; seven batches
        phase = SimpleNamespace(epochs=2, modalities=("a", "b"), steps=steps)
        job = SimpleNamespace(data=tri_round(), phase=phase, plan=SimpleNamespace(batch_size=16))
        costs = [ModelledCost(profile, seed=1, device=d, devices=8)(job) for d in range(8)]  # type: ignore[arg-type]
        fast = 1e-3 * 10 * rows * 2 * NS
        assert sorted(costs) == [fast] * 4 + [5 * fast] * 4


def tri_round() -> RoundData:
    data = tri()
    return RoundData(np.arange(40), data.y, data.x, data.has)


def test_a_round_waits_for_what_is_late_until_its_limit_and_goes_on_without_it() -> None:
    data = tri()
    arrivals = {"delay": "exponential", "wait_limit_s": 300.0}
    profile = WorldProfile.model_validate({"arrivals": arrivals})

    async def main(clock: VirtualClock) -> list[tuple[list[str], float]]:
        source, rounds = ScriptedSource(data, profile, clock, seed=1, device=0), []
        for task in range(200):
            begun_ns = clock.now_ns()
            round_set = await source.freeze(task, ("a", "b"))
            came = []
            while (arrival := await round_set.next_arrival()) is not None:
                came.append(arrival.modality)
            assert await round_set.next_arrival() is None
            rounds.append((came, (clock.now_ns() - begun_ns) / NS))
        return rounds

    rounds = run_virtual(main)
    assert all(came for came, _ in rounds)  # the early half is there at once
    short = [waited_s for came, waited_s in rounds if len(came) == 1]
    assert short == [300.0] * len(short)
    assert all(waited_s < 300.0 for came, waited_s in rounds if len(came) == 2)
    assert 0.28 < len(short) / len(rounds) < 0.46  # exp(−1) = 0.37, three standard errors


def test_a_fixed_delay_is_the_same_in_every_round() -> None:
    def late(task: int) -> float:
        return script(tri(), MBA, seed=1, device=0, task=task, modalities=("a", "b"))[1].after_s

    assert all(300.0 < late(task) < 304.0 for task in range(20))

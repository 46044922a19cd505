"""The reservoir: joins, bounds, round sets and their arrivals, on the virtual clock."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge_sdk.core.clock import NS, VirtualClock, run_virtual
from edge_sdk.core.config import ReservoirConfig
from edge_sdk.core.records import Arrival, LatePart, Window
from edge_sdk.streams.reservoir import Lost, Reservoir
from tests.helpers.streams import inertial_spec

SPEC = inertial_spec(hop_s=2.56)
HOP_NS = round(2.56 * NS)


def data(value: float) -> np.ndarray:
    return np.full((3, 128), value, np.float32)


def window(index: int, *modalities: str) -> Window:
    return Window(
        index=index,
        t_ns=index * HOP_NS,
        length_ns=HOP_NS,
        data={m: data(index) for m in modalities},
        age_s=dict.fromkeys(modalities, 0.0),
        quality=dict.fromkeys(modalities, 1.0),
    )


def part(index: int, modality: str) -> LatePart:
    return LatePart(index, index * HOP_NS, modality, data(index))


def end_s(index: int) -> float:
    return (index + 1) * 2.56


def with_reservoir(test: Callable[[Reservoir, VirtualClock], Coroutine[Any, Any, None]], **config: Any) -> Reservoir:
    async def main(clock: VirtualClock) -> Reservoir:
        reservoir = Reservoir(SPEC, ReservoirConfig(**{"min_windows": 4, **config}), clock, None)
        await test(reservoir, clock)
        return reservoir

    return run_virtual(main)


async def fill(reservoir: Reservoir, clock: VirtualClock, n: int, *modalities: str, start: int = 0) -> None:
    """Adds windows as time goes on, each with its label."""
    for index in range(start, start + n):
        await clock.sleep_until((index + 1) * HOP_NS)
        reservoir.add(window(index, *modalities))
        reservoir.label(index, index % 3)


def test_what_is_complete_arrives_at_once_with_its_own_time() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        await fill(reservoir, clock, 20, "acc", "gyro")
        await clock.sleep(100)
        rounds = await reservoir.freeze(1, ("acc", "gyro"))
        before_ns = clock.now_ns()
        # 95 % of 20 windows: the 19th made it complete.
        assert await rounds.next_arrival() == Arrival("acc", 19 * HOP_NS, 20)
        assert await rounds.next_arrival() == Arrival("gyro", 19 * HOP_NS, 20)
        assert await rounds.next_arrival() is None
        assert clock.now_ns() == before_ns
        got = rounds.data(("acc", "gyro"))
        assert got.indices.tolist() == rounds.indices.tolist() == list(range(20))
        assert got.y.tolist() == [i % 3 for i in range(20)]
        assert np.array_equal(got.x["gyro"][7], data(7))
        assert got.has["acc"].all()

    with_reservoir(test)


def test_late_modality_arrives_when_enough_of_it_is_there() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        await fill(reservoir, clock, 20, "acc")
        rounds = await reservoir.freeze(1, ("acc", "gyro"))
        frozen_s = clock.now_ns() / NS

        async def late() -> None:
            for index in range(20):
                await clock.sleep(10)
                reservoir.add_late(part(index, "gyro"))

        feeding = asyncio.ensure_future(late())
        first = await rounds.next_arrival()
        assert first is not None
        assert first.modality == "acc"
        second = await rounds.next_arrival()
        assert second == Arrival("gyro", round((frozen_s + 190) * NS), 19)
        assert clock.now_ns() == second.t_ns
        got = rounds.data(("acc", "gyro"))
        assert got.indices.tolist() == list(range(19))  # the window without a gyroscope has left
        await feeding
        assert rounds.data(("gyro",)).indices.tolist() == list(range(19))

    reservoir = with_reservoir(test)
    assert reservoir.counters.late_parts == 20


def test_masked_rows_stay() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        await fill(reservoir, clock, 20, "acc")
        for index in range(19):
            reservoir.add_late(part(index, "gyro"))
        rounds = await reservoir.freeze(1, ("acc", "gyro"))
        assert {(await rounds.next_arrival()).modality for _ in range(2)} == {"acc", "gyro"}  # type: ignore[union-attr]
        got = rounds.data(("acc", "gyro"))
        assert len(got.indices) == 20
        assert got.has["gyro"].tolist() == [True] * 19 + [False]
        assert not got.x["gyro"][19].any()

    with_reservoir(test, incomplete="mask")


def test_a_modality_that_does_not_come_is_absent_after_the_wait_limit() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        await fill(reservoir, clock, 20, "acc")
        rounds = await reservoir.freeze(1, ("acc", "gyro"))
        frozen_ns = clock.now_ns()
        await clock.sleep(5)
        assert (await rounds.next_arrival()).modality == "acc"  # type: ignore[union-attr]
        assert await rounds.next_arrival() is None
        assert clock.now_ns() == frozen_ns + 50 * NS
        assert await rounds.next_arrival() is None

    with_reservoir(test, wait_limit_s=50)


def test_freeze_waits_for_enough_labels() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        waiting = asyncio.ensure_future(reservoir.freeze(1, ("acc",)))
        await fill(reservoir, clock, 3, "acc")
        for index in range(3, 8):
            reservoir.add(window(index, "acc"))
        await clock.sleep(1)
        assert not waiting.done()
        reservoir.label(6, 1)
        rounds = await waiting
        assert rounds.indices.tolist() == list(range(8))  # those still without a label belong to it
        assert rounds.data(("acc",)).indices.tolist() == [0, 1, 2, 6]
        reservoir.label(4, 0)
        assert rounds.data(("acc",)).indices.tolist() == [0, 1, 2, 4, 6]

    with_reservoir(test)


def test_round_set_is_the_newest_and_does_not_change() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        await fill(reservoir, clock, 30, "acc")
        reservoir.add(window(30, "gyro"))
        rounds = await reservoir.freeze(1, ("acc",))
        assert rounds.indices.tolist() == list(range(20, 30))
        await fill(reservoir, clock, 5, "acc", start=31)
        assert rounds.data(("acc",)).indices.tolist() == list(range(20, 30))

    with_reservoir(test, round_windows=10)


def test_late_labels_and_labels_before_their_windows() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        reservoir.label(2, 1)
        await clock.sleep_until(3 * HOP_NS)
        reservoir.add(window(2, "acc"))
        reservoir.add(window(1, "acc"))
        await clock.sleep(500)
        reservoir.label(1, 2)
        reservoir.label(1, 0)
        got = reservoir.recent(5)
        assert (got.indices.tolist(), got.y.tolist()) == ([1, 2], [0, 1])
        with pytest.raises(ValueError, match="0 … 2"):
            reservoir.label(1, 3)

    with_reservoir(test)


def test_windows_without_a_label_are_let_go() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        await fill(reservoir, clock, 1, "acc")
        reservoir.add(window(1, "acc"))
        await clock.sleep_until(round(end_s(1) * NS) + 600 * NS)
        reservoir.add(window(240, "acc"))
        assert reservoir.recent(9).indices.tolist() == [0, 1, 240]
        await clock.sleep(0.001)
        reservoir.label(240, 0)
        assert reservoir.recent(9).indices.tolist() == [0, 240]

    assert with_reservoir(test).counters.lost == {Lost.UNLABELLED: 1}


def test_parts_beyond_the_horizon_and_twice() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        await fill(reservoir, clock, 2, "acc")
        reservoir.add_late(part(1, "acc"))
        await clock.sleep_until(round(end_s(0) * NS) + 900 * NS)
        reservoir.add_late(part(0, "gyro"))
        await clock.sleep(0.001)
        reservoir.add_late(part(0, "gyro"))
        assert reservoir.recent(2).has["gyro"].tolist() == [True, False]

    assert with_reservoir(test).counters.lost == {Lost.DUPLICATE: 1, Lost.TOO_LATE: 1}


def test_a_late_part_makes_the_window_if_there_is_none() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        await clock.sleep(60)
        reservoir.label(3, 2)
        reservoir.add_late(part(3, "gyro"))
        got = reservoir.recent(1)
        assert (got.indices.tolist(), got.y.tolist()) == ([3], [2])
        assert (got.has["acc"].tolist(), got.has["gyro"].tolist()) == ([False], [True])

    with_reservoir(test)


def test_oldest_make_room() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        await fill(reservoir, clock, 15, "acc")
        assert reservoir.recent(99).indices.tolist() == list(range(5, 15))
        assert reservoir.recent(3).indices.tolist() == [12, 13, 14]
        assert reservoir.recent(0).indices.tolist() == []

    assert with_reservoir(test, max_windows=10).counters.lost == {Lost.EVICTED: 5}


def test_memory_is_bounded() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        await fill(reservoir, clock, 50, "acc", "gyro")
        assert len(reservoir) == 3  # 3072 bytes each
        assert reservoir.status()["memory_mb"] == 3 * 3072 / 1e6

    with_reservoir(test, memory_mb=0.01)


def test_class_balanced_eviction_keeps_rare_classes() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        for index in range(40):
            await clock.sleep_until((index + 1) * HOP_NS)
            reservoir.label(index, 1 if index < 3 else 0)
            reservoir.add(window(index, "acc"))
        got = reservoir.recent(99)
        assert got.indices.tolist() == [0, 1, 2, *range(33, 40)]

    with_reservoir(test, max_windows=10, eviction="class_balanced")


def test_labels_that_find_no_window_are_bounded() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        for index in range(25):
            reservoir.label(index, 0)
        assert reservoir.status()["labels_waiting"] == 10

    assert with_reservoir(test, max_windows=10).counters.lost == {Lost.LABEL_UNMATCHED: 15}


def test_two_tasks_may_wait_at_once() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        await fill(reservoir, clock, 4, "acc")
        first = await reservoir.freeze(1, ("acc", "gyro"))
        await fill(reservoir, clock, 4, "acc", start=4)
        second = await reservoir.freeze(2, ("acc", "gyro"))
        await first.next_arrival()
        await second.next_arrival()
        waiting = [asyncio.ensure_future(r.next_arrival()) for r in (first, second)]
        for index in range(8):
            await clock.sleep(1)
            reservoir.add_late(part(index, "gyro"))
        arrivals = await asyncio.gather(*waiting)
        assert [(a.t_ns - 8 * HOP_NS, a.count) for a in arrivals if a] == [(4 * NS, 4), (8 * NS, 8)]

    with_reservoir(test)


def test_round_data_carry_the_quality_of_every_row() -> None:
    async def test(reservoir: Reservoir, clock: VirtualClock) -> None:
        await fill(reservoir, clock, 4, "acc", "gyro")
        await clock.sleep_until(5 * HOP_NS)
        reservoir.add(replace(window(4, "acc"), quality={"acc": 0.75}))
        reservoir.add(window(5, "gyro"))
        reservoir.add_late(replace(part(5, "acc"), quality=0.5))
        reservoir.label(4, 0)
        reservoir.label(5, 1)
        rounds = await reservoir.freeze(1, ("acc", "gyro"))
        await rounds.next_arrival()
        data = rounds.data(("acc",))
        assert data.quality["acc"].tolist() == [1, 1, 1, 1, 0.75, 0.5]
        assert data.quality["acc"].dtype == np.float32
        assert list(data.quality) == ["acc"]
        recent = reservoir.recent(2)
        assert recent.quality["gyro"].tolist() == [0, 1]  # row 4 has no gyroscope
        assert pickle.loads(pickle.dumps(data)).quality["acc"].tolist() == data.quality["acc"].tolist()

    with_reservoir(test)

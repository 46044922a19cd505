"""A new model that does worse on the device's own windows is not taken, and an engine that fails gives way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.compute import InlineCompute
from edge_sdk.core.config import ReservoirConfig
from edge_sdk.core.errors import EngineError, GuardError
from edge_sdk.core.records import Float32, RoundData
from edge_sdk.core.scoring import accuracy
from edge_sdk.runtime.events import EngineSwapped, PredictionMade, RolledBack, SwapRefused
from edge_sdk.runtime.guard import LEAST, Guard, judge
from edge_sdk.runtime.inference import Serving
from edge_sdk.runtime.swapping import Kit, Swapper
from edge_sdk.streams.reservoir import Reservoir
from tests.runtime.test_inference import FIRST, SECOND, SPEC, Linear, predictor, proof, tensors, window

GOOD, BAD = tensors(-1, 1), tensors(1, -1)  # right and wrong about windows whose label is their sign


def labelled(n: int, wrong: int = 0) -> RoundData:
    """Windows of which the first modality alone says what they are; `wrong` of the labels are not what it says."""
    signs = np.where(np.arange(n) % 2, 1, -1)
    y = (signs > 0).astype(np.int64)
    y[:wrong] = 1 - y[:wrong]
    x = {m: np.repeat(signs[:, None], 2, axis=1).astype(np.float32) for m in ("a", "b")}
    return RoundData(np.arange(n), y, x, {"a": np.ones(n, bool), "b": np.zeros(n, bool)})


def guarded(p: Any, clock: Any, events: list[Any], changed: list[str], **options: Any) -> Swapper:
    async def tools() -> Kit:
        return Kit(Linear, proof())

    data = options.pop("data", labelled(32))
    guard = Guard(lambda n: data, **{"windows": 64, "margin": 0.1, **options})
    swapper = Swapper(
        p, tools, device="d1", clock=clock, compute=InlineCompute(), emit=events.append, guard=guard,
        changed=lambda: changed.append(swapper.trouble),
    )  # fmt: skip
    return swapper


def test_accuracy_is_that_of_the_modalities_that_each_row_has() -> None:
    data = labelled(40, wrong=4)
    data.x["b"][:] *= -100  # masked: may say what it likes
    assert accuracy(Linear(GOOD), data) == pytest.approx(0.9)
    assert accuracy(Linear(BAD), data) == pytest.approx(0.1)


@pytest.mark.parametrize(("wrong", "taken"), [(0, True), (3, True), (4, False), (32, False)])
def test_the_margin_is_what_a_model_may_lose(wrong: int, taken: bool) -> None:
    """The old engine is always right; the new one is wrong on `wrong` of 32 windows, the margin is 0.1."""

    class Sloppy(Linear):
        left = wrong

        def run(self, x: Mapping[str, Float32], mask: Float32) -> Float32:
            logits = super().run(x, mask)
            flipped = min(self.left, len(logits))
            Sloppy.left -= flipped
            logits[:flipped] *= -1
            return logits

    if taken:
        judge(Sloppy(GOOD), Linear(GOOD), labelled(32), 0.1)
    else:
        with pytest.raises(GuardError, match=r"32 newest labelled windows, the model that serves on 100%"):
            judge(Sloppy(GOOD), Linear(GOOD), labelled(32), 0.1)


def test_a_worse_model_is_not_taken_and_the_coordinator_is_told() -> None:
    async def main(clock: VirtualClock) -> None:
        events: list[Any] = []
        notes: list[str] = []
        p = predictor(clock, events)
        s = guarded(p, clock, events, notes)
        assert await s.offer(FIRST, GOOD)
        assert not await s.offer(SECOND, BAD)
        assert p.serving is not None
        assert p.serving.version == FIRST
        assert [type(e) for e in events] == [EngineSwapped, SwapRefused]
        assert notes == [s.trouble]
        assert s.trouble.startswith("model 2 is not taken: it is right on 0% of this device's 32 newest")
        assert await s.offer(SECOND, GOOD)
        assert s.trouble == ""
        assert notes[-1] == ""

    run_virtual(main)


@pytest.mark.parametrize(
    "options", [{"margin": 1.0}, {"data": labelled(LEAST - 1)}], ids=["switched off", "too few windows"]
)
def test_without_a_judgement_the_model_is_taken(options: dict[str, Any]) -> None:
    async def main(clock: VirtualClock) -> None:
        events: list[Any] = []
        p = predictor(clock, events)
        s = guarded(p, clock, events, [], **options)
        assert await s.offer(FIRST, GOOD)
        assert await s.offer(SECOND, BAD)

    run_virtual(main)


def test_an_old_engine_that_fails_does_not_keep_a_new_one_out() -> None:
    old, new = Breaking(GOOD), Breaking(BAD)
    old.broken = True
    judge(new, old, labelled(32), 0.1)
    old.broken, new.broken = False, True
    with pytest.raises(EngineError, match="lost"):
        judge(new, old, labelled(32), 0.1)


def test_a_first_model_has_nothing_to_be_worse_than() -> None:
    async def main(clock: VirtualClock) -> None:
        assert await guarded(predictor(clock, []), clock, [], []).offer(FIRST, BAD)

    run_virtual(main)


def test_the_reservoir_gives_the_newest_labelled_windows() -> None:
    async def main(clock: VirtualClock) -> RoundData:
        await clock.sleep(100.0)
        reservoir = Reservoir(SPEC, ReservoirConfig(persist=False), clock, None)
        for i in range(90, 100):
            reservoir.add(window(i, a=[i, i]))
            if i % 2:
                reservoir.label(i, i % 4 // 2)
        return reservoir.labelled_windows(3)

    data = run_virtual(main)
    assert data.indices.tolist() == [95, 97, 99]
    assert data.y.tolist() == [1, 0, 1]
    assert data.x["a"][:, 0].tolist() == [95, 97, 99]
    assert not data.has["b"].any()


class Breaking(Linear):
    """Runs until somebody breaks it."""

    broken = False

    def run(self, x: Mapping[str, Float32], mask: Float32) -> Float32:
        if self.broken:
            raise EngineError("the device was lost")
        return super().run(x, mask)


def test_an_engine_that_fails_gives_way_to_the_one_before_without_losing_the_window() -> None:
    async def main(clock: VirtualClock) -> None:
        await clock.sleep(100.0)
        events: list[Any] = []
        p = predictor(clock, events)
        newest = Breaking(BAD)
        p.swap(Serving(Linear(GOOD), FIRST))
        p.swap(Serving(newest, SECOND))
        newest.broken = True
        made = p.predict(window(0, a=[1, 1]))
        assert made is not None
        assert (made.label, made.version) == ("yes", FIRST)
        assert p.previous is None
        assert p.trouble == "model 2 failed and model 1 serves again: the device was lost"
        back, _ = events
        assert back == RolledBack("d1", SECOND, FIRST, "the device was lost")
        p.swap(Serving(Linear(GOOD), SECOND))
        assert p.trouble == ""

    run_virtual(main)


def test_a_window_that_no_engine_takes_is_not_held_against_the_newest() -> None:
    async def main(clock: VirtualClock) -> None:
        await clock.sleep(100.0)
        events: list[Any] = []
        p = predictor(clock, events)
        old, new = Breaking(GOOD), Breaking(GOOD)
        p.swap(Serving(old, FIRST))
        p.swap(Serving(new, SECOND))
        old.broken = new.broken = True
        assert p.predict(window(0, a=[1, 1])) is None
        assert p.failed == 1
        old.broken = new.broken = False
        assert p.predict(window(1, a=[1, 1])) is not None
        assert [type(e) for e in events] == [PredictionMade]
        assert events[0].version == SECOND

    run_virtual(main)

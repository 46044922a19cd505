from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.core import parity
from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.compute import InlineCompute
from edge_sdk.core.errors import EngineError
from edge_sdk.core.interfaces import DEFAULT_OPTIONS, Engine, EngineOptions, GraphInfo
from edge_sdk.core.records import Float32, ModelTensors, Segments, VersionId, Window
from edge_sdk.core.spec import FederationSpec, ModalitySpec
from edge_sdk.runtime.events import EngineSwapped, PredictionMade, SwapRefused
from edge_sdk.runtime.inference import Predictor, Serving
from edge_sdk.runtime.swapping import Kit, Proof, Swapper, probe
from edge_sdk.runtime.timebase import StreamTime

SPEC = FederationSpec(
    name="home", modalities=(ModalitySpec(name="a", shape=(2,)), ModalitySpec(name="b", shape=(2,))),
    classes=("no", "yes"),
)  # fmt: skip
FIRST, SECOND = (VersionId("ab" * 16, n, "cd" * 16) for n in (1, 2))


class Linear(Engine):
    """Logits are the masked sum of the inputs times one weight per class: a whole engine, small enough to know."""

    provider = "numpy"
    info = GraphInfo(("a", "b"), {"a": (2,), "b": (2,)}, SPEC.classes, "")

    def __init__(self, tensors: ModelTensors) -> None:
        self.weights = tensors["fusion"].params

    @classmethod
    def open(cls, graph: Path, tensors: ModelTensors, options: EngineOptions = DEFAULT_OPTIONS) -> Linear:
        return cls(tensors)

    def with_tensors(self, tensors: ModelTensors) -> Linear:
        return type(self)(tensors)

    def run(self, x: Mapping[str, Float32], mask: Float32) -> Float32:
        total = x["a"].sum(1) * mask[:, 0] + x["b"].sum(1) * mask[:, 1]
        return (total[:, None] * self.weights).astype(np.float32)


class Blind(Linear):
    """Does not look at the second modality alone: right under the full mask only."""

    def run(self, x: Mapping[str, Float32], mask: Float32) -> Float32:
        return super().run(x, mask if mask.min() > 0 else mask * np.array([1, 0], np.float32))


class Deaf(Linear):
    """Does not hear the first modality alone: the other worker's share of the masks."""

    def run(self, x: Mapping[str, Float32], mask: Float32) -> Float32:
        return super().run(x, mask if mask.min() > 0 else mask * np.array([0, 1], np.float32))


def tensors(*weights: float) -> ModelTensors:
    return {"fusion": Segments(np.array(weights, np.float32))}


def window(index: int, **data: list[float]) -> Window:
    arrays = {m: np.array(v, np.float32) for m, v in data.items()}
    return Window(index, index * 10**9, 10**9, arrays, dict.fromkeys(arrays, 0.0), dict.fromkeys(arrays, 1.0))


def predictor(clock: Any, events: list[Any]) -> Predictor:
    return Predictor(SPEC, "d1", clock=clock, time=StreamTime(clock, clock), emit=events.append)


def with_clock(body: Any) -> Any:
    async def main(clock: VirtualClock) -> Any:
        await clock.sleep(100.0)
        return body(clock)

    return run_virtual(main)


def test_missing_modalities_are_masked() -> None:
    def body(clock: VirtualClock) -> None:
        events: list[Any] = []
        p = predictor(clock, events)
        assert p.predict(window(0, a=[1, 1])) is None
        assert p.skipped == 1
        p.swap(Serving(Linear(tensors(-1, 1)), FIRST))
        both = p.predict(window(1, a=[1, 1], b=[-3, -3]))
        alone = p.predict(window(2, a=[1, 1]))
        assert both is not None
        assert alone is not None
        assert (both.label, both.modalities, alone.label, alone.modalities) == ("no", ("a", "b"), "yes", ("a",))
        assert alone.confidence == pytest.approx(1 / (1 + math.exp(-4)))
        assert both.version == FIRST
        assert both.utc_ns == clock.utc_ns() - 99 * 10**9
        assert [e.late_ms for e in events] == [98_000.0, 97_000.0]
        assert p.predict(window(3)) is None

    with_clock(body)


def truth(t: ModelTensors, x: Mapping[str, Float32], rows: parity.Masks) -> parity.Logits:
    return parity.logits(Linear(t), x, rows)


def proof(reference: Any = truth) -> Proof:
    return Proof(SPEC, reference, 1e-3)


def swapper(p: Predictor, clock: Any, events: list[Any], *, make: Any = Linear, reference: Any = truth) -> Swapper:
    async def tools() -> Kit:
        return Kit(make, proof(reference))

    return Swapper(p, tools, device="d1", clock=clock, compute=InlineCompute(), emit=events.append)


def test_swaps_between_predictions_and_keeps_the_previous_engine() -> None:
    async def main(clock: VirtualClock) -> None:
        events: list[Any] = []
        p = predictor(clock, events)
        s = swapper(p, clock, events)
        assert await s.offer(FIRST, tensors(-1, 1))
        assert p.predict(window(0, a=[1, 1])).label == "yes"  # type: ignore[union-attr]
        assert await s.offer(SECOND, tensors(1, -1))
        assert p.predict(window(1, a=[1, 1])).label == "no"  # type: ignore[union-attr]
        assert p.rollback()
        assert p.predict(window(2, a=[1, 1])).version == FIRST  # type: ignore[union-attr]
        assert [type(e) for e in events] == [
            EngineSwapped,
            PredictionMade,
            EngineSwapped,
            PredictionMade,
            PredictionMade,
        ]

    run_virtual(main)


def test_without_a_previous_engine_there_is_no_way_back() -> None:
    run_virtual(lambda clock: _no_way_back(clock))


async def _no_way_back(clock: VirtualClock) -> None:
    assert not predictor(clock, []).rollback()


@pytest.mark.parametrize(
    ("make", "weights"),
    [(Blind, (-1.0, 1.0)), (Deaf, (-1.0, 1.0)), (Linear, (math.nan, 1.0)), (Linear, (math.inf, 1.0))],
)
def test_what_does_not_pass_does_not_serve(
    make: Any, weights: tuple[float, float], caplog: pytest.LogCaptureFixture
) -> None:
    async def main(clock: VirtualClock) -> None:
        events: list[Any] = []
        p = predictor(clock, events)
        old = Serving(make(tensors(-1, 1)), FIRST)
        p.swap(old)
        s = swapper(p, clock, events)
        for _ in range(3):
            assert not await s.offer(SECOND, tensors(*weights))
        assert p.serving is old
        assert s.refused == 3
        assert [type(e) for e in events] == [SwapRefused] * 3

    run_virtual(main)
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1


def test_without_torch_logits_must_at_least_be_finite() -> None:
    async def main(clock: VirtualClock) -> None:
        events: list[Any] = []
        p = predictor(clock, events)
        s = swapper(p, clock, events, reference=None)
        assert await s.offer(FIRST, tensors(1, 2))
        assert math.isnan(events[0].parity_error)
        assert not await s.offer(SECOND, tensors(math.nan, 1))
        assert p.serving is not None
        assert p.serving.version == FIRST

    run_virtual(main)


def test_a_reference_that_fails_refuses_the_model() -> None:
    def lost(t: ModelTensors, x: Mapping[str, Float32], rows: parity.Masks) -> parity.Logits:
        raise EngineError("the truth is lost")

    async def main(clock: VirtualClock) -> None:
        events: list[Any] = []
        assert not await swapper(predictor(clock, events), clock, events, reference=lost).offer(FIRST, tensors(1, 1))
        assert [e.reason for e in events] == ["the truth is lost"]

    run_virtual(main)


def test_a_window_that_the_engine_refuses_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    class Sulking(Linear):
        def run(self, x: Mapping[str, Float32], mask: Float32) -> Float32:
            raise EngineError("out of memory")

    def body(clock: VirtualClock) -> None:
        p = predictor(clock, [])
        p.swap(Serving(Sulking(tensors(1, 1)), FIRST))
        assert [p.predict(window(i, a=[1, 1])) for i in range(3)] == [None] * 3
        assert p.failed == 3
        p.swap(Serving(Linear(tensors(1, 1)), SECOND))
        assert p.predict(window(3, a=[1, 1])) is not None

    with_clock(body)
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1


def test_an_engine_that_cannot_be_built_is_refused() -> None:
    def broken(t: ModelTensors) -> Engine:
        raise EngineError("no such graph")

    async def main(clock: VirtualClock) -> None:
        events: list[Any] = []
        assert not await swapper(predictor(clock, events), clock, events, make=broken).offer(FIRST, tensors(1, 1))
        assert "no such graph" in events[0].reason

    run_virtual(main)


class Slow(Linear):
    """What the configuration asks for, on a board where building it takes minutes."""

    provider = "slow"


class Quick(Linear):
    provider = "quick"

    def with_tensors(self, tensors: ModelTensors) -> Linear:
        made = super().with_tensors(tensors)
        made.degraded = self.degraded
        return made


def two_steps(clock: Any, events: list[Any], make: Any) -> tuple[Predictor, Swapper]:
    async def tools() -> Kit:
        return Kit(make, proof(), Quick)

    p = predictor(clock, events)
    return p, Swapper(p, tools, device="d1", clock=clock, compute=InlineCompute(), emit=events.append)


def test_something_quick_serves_while_the_engine_is_built() -> None:
    served: list[str] = []

    async def main(clock: VirtualClock) -> None:
        events: list[Any] = []

        def build(t: ModelTensors) -> Engine:
            assert p.serving is not None
            served.append(p.serving.engine.provider)
            assert s.trouble == "degraded: quick serves while the engine is built"
            return Slow(t)

        p, s = two_steps(clock, events, build)
        assert await s.offer(FIRST, tensors(1, 2))
        assert p.serving is not None
        assert p.serving.engine.provider == "slow"
        assert s.trouble == ""
        assert await s.offer(SECOND, tensors(2, 1))
        assert [e.degraded for e in events] == ["quick serves while the engine is built", "", ""]
        assert s.degraded == 1

    run_virtual(main)
    assert served == ["quick"]


def test_a_build_that_fails_leaves_the_quick_engine_for_good(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    async def main(clock: VirtualClock) -> None:
        def build(t: ModelTensors) -> Engine:
            tried.append(1)
            raise EngineError("operator Einsum is not supported")

        events: list[Any] = []
        p, s = two_steps(clock, events, build)
        for version in (FIRST, SECOND):
            assert await s.offer(version, tensors(1, 2))
            assert p.serving is not None
            assert p.serving.version == version
            assert s.trouble == "degraded: quick serves, the engine cannot be built: operator Einsum is not supported"
        assert s.degraded == 3

    run_virtual(main)
    assert len(tried) == 1
    assert "Einsum" in caplog.text


def test_parity_is_tried_on_the_newest_windows() -> None:
    def body(clock: VirtualClock) -> None:
        p = predictor(clock, [])
        assert len(probe(SPEC, p.windows())["a"]) == 16
        for i in range(20):
            p.predict(window(i, a=[i, i]))
        x = probe(SPEC, p.windows())
        assert x["a"][:, 0].tolist() == list(range(4, 20))
        assert np.isfinite(x["b"]).all()
        assert np.any(x["b"])

    with_clock(body)

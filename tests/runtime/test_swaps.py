"""A thousand new models under load: every window is predicted, and by the model that served when it came."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="models are made by torch")
pytest.importorskip("onnxruntime", reason="predicting needs onnxruntime")

from edge_sdk.core import parity, registry
from edge_sdk.core.clock import WallClock
from edge_sdk.core.compute import FieldCompute
from edge_sdk.core.records import VersionId, Window
from edge_sdk.methods.base import find
from edge_sdk.models import build
from edge_sdk.runtime.events import EngineSwapped, PredictionMade
from edge_sdk.runtime.inference import Predictor
from edge_sdk.runtime.swapping import Kit, Proof, Swapper
from edge_sdk.runtime.timebase import StreamTime
from tests.helpers.exports import exported
from tests.helpers.office import small_spec

SWAPS = 1000
SPEC = small_spec()
NEEDS = find(SPEC.method.name).needs


@pytest.mark.slow
def test_a_thousand_swaps_lose_no_prediction() -> None:
    versions = [build.initial_tensors(SPEC, NEEDS, seed) for seed in range(4)]
    events: list[Any] = []
    offered: list[int] = []

    async def main() -> int:
        clock, compute = WallClock(), FieldCompute()
        predictor = Predictor(SPEC, "d1", clock=clock, time=StreamTime(clock, clock), emit=events.append)
        graph: Path = exported(SPEC, NEEDS)

        async def tools() -> Kit:
            engine = registry.load("engines", "ort")
            return Kit(lambda tensors: engine.open(graph, tensors), Proof(SPEC, None, 1e-3))

        swapper = Swapper(predictor, tools, device="d1", clock=clock, compute=compute, emit=events.append)
        assert await swapper.offer(_id(0), versions[0])

        async def swap() -> None:
            for i in range(1, SWAPS + 1):
                assert await swapper.offer(_id(i), versions[i % 4])

        x = parity.noise(SPEC, 64, 0)
        work = asyncio.ensure_future(swap())
        while not work.done():
            index = len(offered)
            offered.append(index)
            predictor.predict(_window(index, {m: a[index % 64] for m, a in x.items()}))
            await clock.sleep(0.003)  # some 300 windows a second
        await work
        await compute.aclose()
        return predictor.failed + predictor.skipped

    assert asyncio.run(main()) == 0
    made = [e for e in events if isinstance(e, PredictionMade)]
    assert [e.index for e in made] == offered
    assert sum(isinstance(e, EngineSwapped) for e in events) == SWAPS + 1
    numbers = [e.version.number for e in made if e.version is not None]
    assert numbers == sorted(numbers)  # never an older model after a newer one
    assert len(set(numbers)) > SWAPS / 4  # predictions went on between the swaps


def _id(number: int) -> VersionId:
    return VersionId("ab" * 16, number, "cd" * 16)


def _window(index: int, data: dict[str, Any]) -> Window:
    return Window(index, index, 10**9, data, dict.fromkeys(data, 0.0), dict.fromkeys(data, 1.0))

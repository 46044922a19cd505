"""A device whose predictions take longer than a hop predicts fresh windows, not older and older ones."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping

import numpy as np
import pytest

pytest.importorskip("torch", reason="the engine needs torch")

from edge_sdk.core.clock import WallClock
from edge_sdk.core.compute import InlineCompute
from edge_sdk.core.config import ReservoirConfig, SensorConfig
from edge_sdk.core.records import Float32, VersionId
from edge_sdk.core.spec import WindowSpec
from edge_sdk.models import build
from edge_sdk.runtime.events import PredictionMade
from edge_sdk.runtime.inference import Predictor, Serving
from edge_sdk.runtime.sensing import Sensing
from edge_sdk.runtime.timebase import StreamTime
from edge_sdk.streams.pipeline import Streams
from edge_sdk.streams.reservoir import Reservoir
from export.engines.torch_engine import NO_NEEDS, TorchEngine
from tests.helpers.specs import har_spec

HOP_S = 0.04
SPEC = har_spec(length=4, window=WindowSpec(length_s=0.08, hop_s=HOP_S, deadline_s=0.02))
ENOUGH = 15


class SlowEngine(TorchEngine):
    """An engine three times too slow, which blocks as a real one does."""

    def run(self, inputs: Mapping[str, Float32], mask: Float32) -> Float32:
        threading.Event().wait(3 * HOP_S)
        return super().run(inputs, mask)


def test_what_became_old_meanwhile_is_kept_but_not_predicted(caplog: pytest.LogCaptureFixture) -> None:
    made: list[PredictionMade] = []

    async def main() -> tuple[Sensing, Reservoir]:
        clock = WallClock()
        sensors = {m: SensorConfig(driver="synthetic", options={"rate_hz": 50.0}) for m in SPEC.modality_names}
        reservoir = Reservoir(SPEC, ReservoirConfig(persist=False), clock, None)
        predictor = Predictor(SPEC, "d1", clock=clock, time=StreamTime(clock, clock, 1.0), emit=made.append)
        engine = SlowEngine(SPEC, NO_NEEDS, build.initial_tensors(SPEC, seed=2))
        predictor.swap(Serving(engine, VersionId("ab" * 16, 1, "cd" * 16)))
        streams = Streams(SPEC, sensors, clock)
        sensing = Sensing(streams, reservoir, predictor, publish=None, refine=False, device="d1",
                          compute=InlineCompute())  # fmt: skip
        running = asyncio.ensure_future(sensing.run())
        while len(made) < ENOUGH:
            await clock.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])
        return sensing, reservoir

    caplog.set_level(logging.WARNING)
    sensing, reservoir = asyncio.run(asyncio.wait_for(main(), 60))
    indices = [event.index for event in made]
    assert sensing.overtaken >= ENOUGH  # two or three for each that was predicted
    assert np.median(np.diff(indices)) >= 3
    # Without passing windows by, each prediction would be two hops later than the one before.
    late_s = np.array([event.late_ms for event in made]) / 1e3 - 3 * HOP_S
    assert np.median(late_s) < 3 * HOP_S
    assert caplog.text.count("a prediction takes longer than window.hop_s") == 1
    kept = [index for index in range(indices[0], indices[-1]) if index not in indices and reservoir.parts(index)]
    assert len(kept) >= ENOUGH

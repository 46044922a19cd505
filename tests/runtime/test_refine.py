"""A device answers at the deadline with what it has, and again when the rest of a window comes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnxruntime", reason="predicting needs onnxruntime")

import torch

from edge_sdk.codecs import wire
from edge_sdk.core.clock import NS, WallClock
from edge_sdk.core.compute import InlineCompute
from edge_sdk.core.config import ReservoirConfig, SensorConfig
from edge_sdk.core.messages import Prediction
from edge_sdk.core.records import Chunk, Float32, LatePart, VersionId, Window
from edge_sdk.core.spec import ModelSpec, WindowSpec
from edge_sdk.learn import params
from edge_sdk.models import build
from edge_sdk.recording import Writer
from edge_sdk.runtime.events import PredictionMade
from edge_sdk.runtime.foreground import Foreground
from edge_sdk.runtime.inference import Predictor, Serving
from edge_sdk.runtime.sensing import Sensing
from edge_sdk.runtime.timebase import StreamTime
from edge_sdk.streams.pipeline import Streams
from edge_sdk.streams.reservoir import Reservoir
from edge_sdk.transport.memory import MemoryTransport
from export.engines.torch_engine import NO_NEEDS, TorchEngine
from tests.helpers.office import small_spec
from tests.runtime.test_field import Field, graph  # noqa: F401  the graph is a fixture

SPEED = 10.0
SENSORS = ("acc", "gyr", "mic")
SPEC = small_spec(modalities=SENSORS).model_copy(
    update={"window": WindowSpec(length_s=1.0, hop_s=1.0, deadline_s=4.0), "model": ModelSpec(feature_dim=4)}
)
TENSORS = build.initial_tensors(SPEC, seed=2)
VERSION = VersionId("ab" * 16, 1, "cd" * 16)
SECONDS = 6


def recording(folder: Path) -> Path:
    """Six seconds of three sensors, noise that lies around another value every second."""
    rng = np.random.default_rng(0)
    with Writer(folder, start_ns=0) as writer:
        for k in range(SECONDS):
            for m in SENSORS:
                data = rng.normal(3.0 * rng.normal(), 1.0, size=(16, 3)).astype(np.float32)
                writer.append(Chunk(m, k, k * NS, data, period_ns=NS // 16))
    return folder


def replay(folder: Path, **options: Any) -> dict[str, Any]:
    return {"driver": "replay", "options": {"path": str(folder), "align_s": 1.0, **options}}


def z(data: Mapping[str, Float32]) -> np.ndarray:
    """Returns b + Σ W_m φ_m(x_m) over what is there, put together by hand from a model's parts: logits (C,)."""
    model = build.build(SPEC)
    params.load(model.named(), TENSORS)
    model.eval()
    fusion = {k: v.detach().numpy() for k, v in model.module("fusion").named_parameters()}
    logits = fusion["linear.bias"].copy()
    for m, x in data.items():
        start = 4 * SENSORS.index(m)
        h = model.encode({m: torch.from_numpy(np.array(x[None]))})[m].detach().numpy()[0]
        logits += fusion["linear.weight"][:, start : start + 4] @ h
    return logits


def sense(folder: Path, *, refine: bool) -> tuple[list[PredictionMade], Reservoir]:
    """Lets a device sense a recording of which the microphone comes fourteen seconds late."""

    async def main() -> tuple[list[PredictionMade], Reservoir]:
        clock, events = WallClock(SPEED), []
        sensors = {m: SensorConfig.model_validate(replay(folder)) for m in ("acc", "gyr")}
        sensors["mic"] = SensorConfig.model_validate(replay(folder, delay_s=14.0))
        reservoir = Reservoir(SPEC, ReservoirConfig(persist=False), clock, None)
        predictor = Predictor(SPEC, "d1", clock=clock, time=StreamTime(clock, clock, SPEED), emit=events.append)
        predictor.swap(Serving(TorchEngine(SPEC, NO_NEEDS, TENSORS), VERSION))
        streams = Streams(SPEC, sensors, clock)
        sensing = Sensing(
            streams, reservoir, predictor, publish=None, refine=refine, device="d1", compute=InlineCompute()
        )
        await sensing.run()
        return events, reservoir

    return asyncio.run(main())


def test_two_of_three_at_the_deadline_and_all_three_when_the_last_has_come(tmp_path: Path) -> None:
    made, reservoir = sense(recording(tmp_path / "r"), refine=True)
    by_window: dict[int, list[PredictionMade]] = {}
    for event in made:
        by_window.setdefault(event.index, []).append(event)
    assert len(by_window) == SECONDS
    for index, (first, second) in by_window.items():
        assert (first.modalities, first.refined) == (("acc", "gyr"), False)
        assert (second.modalities, second.refined) == (SENSORS, True)
        assert second.late_ms > first.late_ms
        parts = reservoir.parts(index)
        for event in (first, second):
            logits = z({m: parts[m] for m in event.modalities})
            assert event.label == SPEC.classes[int(logits.argmax())]
            assert event.confidence == pytest.approx(1 / np.exp(logits - logits.max()).sum(), abs=1e-5)
    assert any(first.confidence != second.confidence for first, second in by_window.values())


def test_without_the_option_a_window_is_predicted_once(tmp_path: Path) -> None:
    made, reservoir = sense(recording(tmp_path / "r"), refine=False)
    assert [e.modalities for e in made] == [("acc", "gyr")] * SECONDS
    assert not any(e.refined for e in made)
    assert set(reservoir.parts(made[0].index)) == set(SENSORS)  # for training it joined all the same


def test_a_part_that_came_before_changes_nothing() -> None:
    clock = WallClock()
    reservoir = Reservoir(SPEC, ReservoirConfig(persist=False), clock, None)
    now = clock.now_ns() - 2 * NS
    reservoir.add(Window(3, now, NS, {"acc": np.ones((3, 16), np.float32)}, {"acc": 0.0}, {"acc": 1.0}))
    part = LatePart(3, now, "gyr", np.ones((3, 16), np.float32))
    assert reservoir.add_late(part)
    assert not reservoir.add_late(replace(part, data=part.data + 1))
    assert sorted(reservoir.parts(3)) == ["acc", "gyr"]
    assert np.array_equal(reservoir.parts(3)["gyr"], part.data)
    assert reservoir.parts(4) == {}


def test_before_the_first_model_nothing_is_refined() -> None:
    clock, events = WallClock(), []
    predictor = Predictor(SPEC, "d1", clock=clock, time=StreamTime(clock, clock), emit=events.append)
    data = {"acc": np.ones((3, 16), np.float32)}
    assert predictor.refine(LatePart(3, 0, "acc", data["acc"]), data) is None
    assert events == []


def test_a_refined_prediction_is_not_held_against_training() -> None:
    foreground = Foreground(limit_ms=100.0)
    made = PredictionMade("d", 0, "sit", 1.0, 1.0, 9000.0, ("a",), None, refined=True)
    foreground(made)
    assert not foreground.late
    foreground(replace(made, refined=False))
    assert foreground.late


def test_both_answers_go_out(tmp_path: Path, graph: Path) -> None:  # noqa: F811
    """A whole device of two sensors, one of which is six seconds late where the deadline is four."""
    folder = recording(tmp_path / "r")
    field = Field(
        tmp_path, graph, inference={"graph": str(graph), "refine": True}, training={"enabled": False},
        sensors={"acc": replay(folder, loop=True), "gyr": replay(folder, loop=True, delay_s=6.0)},
    )  # fmt: skip
    heard: list[Prediction] = []

    async def listen() -> None:
        listener = MemoryTransport(field.broker, "listener")
        await listener.start()
        await listener.subscribe(field.office.topics.prediction("d1"))
        async for event in listener.events():
            payload: bytes = getattr(event, "payload", b"")
            if payload:
                heard.append(wire.decode(Prediction, payload))

    def answers() -> dict[int, list[tuple[str, ...]]]:
        found: dict[int, list[tuple[str, ...]]] = {}
        for prediction in heard:
            found.setdefault(prediction.utc_ns, []).append(prediction.modalities)
        return found

    field.label = listen  # type: ignore[method-assign]  nobody labels, somebody listens
    field.live(lambda: [("acc",), ("acc", "gyr")] in answers().values())

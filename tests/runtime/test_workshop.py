"""A device whose first engine cannot be made senses, records and trains on, says so once, and tries every new model."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnxruntime", reason="predicting needs onnxruntime")

from edge_sdk.codecs import wire
from edge_sdk.core import registry
from edge_sdk.core.compute import InlineCompute
from edge_sdk.core.errors import EngineError, PluginError
from edge_sdk.core.messages import Status
from edge_sdk.runtime import jobs, solo
from edge_sdk.runtime.events import EngineSwapped, PhaseFinished, PredictionMade, SwapRefused, TaskStarted
from edge_sdk.runtime.guard import LEAST
from edge_sdk.runtime.state import DeviceState
from edge_sdk.runtime.workshop import Workshop
from tests.runtime.test_field import SPEC, Field, config, graph  # noqa: F401  the graph is a fixture


class Missing:
    """The registry of a machine where a library is missing until somebody installs it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.load = registry.load
        self.installed = False
        self.asked = 0
        monkeypatch.setattr("edge_sdk.runtime.workshop.registry.load", self)

    def __call__(self, kind: str, name: str) -> Any:
        if kind == "engines":
            self.asked += 1
            if not self.installed:
                raise PluginError("engine 'ort' needs a library that is not installed: No module named 'onnxruntime'")
        return self.load(kind, name)


def statuses(field: Field) -> list[Status]:
    return [m for m in field.office.heard if isinstance(m, Status)]


async def publish_often(field: Field) -> None:
    """New versions, and labels so that there is something to train on."""
    await field.clock.sleep(0.1)
    number = 0
    while True:
        await field.one_label()
        await field.clock.sleep(0.2)
        number += 1
        if number % 2 == 0 and field.office.transport.connected:
            field.office.tensors["fusion"].params[...] += 0.01
            field.office.seal()
            await field.office.publish()


def test_a_missing_library_ends_only_predicting(
    tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture  # noqa: F811
) -> None:  # fmt: skip
    missing = Missing(monkeypatch)
    field = Field(tmp_path, graph)

    async def label() -> None:
        await publish_often(field)

    field.label = label  # type: ignore[method-assign]

    def ready() -> bool:
        if missing.asked >= 3 and field.office.updates and not missing.installed:
            assert not field.of(PredictionMade)
            assert field.device.session is not None
            assert field.device.session.sensing is not None
            assert len(field.device.session.sensing.reservoir) > 0
            assert "onnxruntime" in statuses(field)[-1].notes[0]
            missing.installed = True
        return bool(field.of(PredictionMade)) and statuses(field)[-1].notes == ()

    field.live(ready)
    assert len(field.of(SwapRefused)) >= 3
    said = [r for r in caplog.records if "nothing is predicted" in r.message]
    assert [r.levelno for r in said] == [logging.ERROR]
    assert "onnxruntime" in said[0].getMessage()
    assert field.of(PhaseFinished)


def test_a_corrupt_graph_that_was_given_is_named(
    tmp_path: Path, graph: Path, caplog: pytest.LogCaptureFixture  # noqa: F811
) -> None:  # fmt: skip
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(graph.read_bytes()[:-100])
    broken.with_name("broken.onnx.json").write_bytes(graph.with_name(graph.name + ".json").read_bytes())
    field = Field(tmp_path, broken)
    field.live(lambda: bool(field.of(SwapRefused)) and bool(field.office.updates))
    assert "broken.onnx" in field.of(SwapRefused)[0].reason
    assert broken.exists()
    assert not field.of(PredictionMade)
    assert "broken.onnx" in caplog.text


def test_a_corrupt_graph_of_our_own_is_exported_anew(
    tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    exports = []

    def export(spec: Any, path: Path) -> None:
        exports.append(path)
        path.write_bytes(graph.read_bytes())
        path.with_name(path.name + ".json").write_bytes(graph.with_name(graph.name + ".json").read_bytes())

    monkeypatch.setattr(jobs, "export_graph", export)
    ours = tmp_path / "home" / f"graph-{SPEC.shape_digest[:16]}.onnx"
    ours.parent.mkdir()
    ours.write_bytes(b"half a graph")
    field = Field(tmp_path, graph, inference={})
    field.live(lambda: len(field.of(PredictionMade)) >= 3)
    assert exports == [ours]
    assert not field.of(SwapRefused)


def test_an_export_that_fails_is_tried_again_with_the_next_model_of_its_own(
    tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    attempts = []

    def export(spec: Any, path: Path) -> None:
        attempts.append(path)
        if len(attempts) < 3:
            raise MemoryError("the exporter needs more than there is")
        path.write_bytes(graph.read_bytes())
        path.with_name(path.name + ".json").write_bytes(graph.with_name(graph.name + ".json").read_bytes())

    monkeypatch.setattr(jobs, "export_graph", export)
    monkeypatch.setattr(solo, "PAUSE_S", 0.1)
    field = Field(tmp_path, graph, alone=True, inference={"follow": "local"})
    field.live(lambda: bool(field.of(EngineSwapped)) and bool(field.of(PredictionMade)), office=False)
    assert len(attempts) == 3
    assert ["exporter needs more" in e.reason for e in field.of(SwapRefused)] == [True, True]
    assert len(field.of(TaskStarted)) >= 2


def test_tensors_that_do_not_fit_the_graph_are_not_the_end(tmp_path: Path, graph: Path) -> None:  # noqa: F811
    field = Field(tmp_path, graph)
    state = field.state
    model = field.office.down.roundtrip_model(field.office.tensors).decoded
    short = {**model, "fusion": type(model["fusion"])(model["fusion"].params[:-1])}
    version = wire.tensors_digest(short)
    from edge_sdk.core.records import ModelVersion, VersionId
    from edge_sdk.runtime.state import MODEL

    state.keep_model(MODEL, ModelVersion(VersionId("ab" * 16, 9, version), short), SPEC.shape_digest)
    field.live(lambda: len(field.of(PredictionMade)) >= 3)
    assert "fusion.params" in field.of(SwapRefused)[0].reason
    assert field.of(EngineSwapped)[0].version == field.office.version


def test_a_device_without_torch_whose_sidecar_is_damaged_goes_on_sensing(tmp_path: Path, graph: Path) -> None:  # noqa: F811
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(graph.read_bytes())
    field = Field(tmp_path, alone, training={"enabled": False})

    def kept() -> int:
        session = field.device.session
        return 0 if session is None or session.sensing is None else len(session.sensing.reservoir)

    field.live(lambda: kept() > 0 and bool(statuses(field)) and bool(statuses(field)[-1].notes), labels=False)
    assert "alone.onnx.json" in statuses(field)[-1].notes[0]
    assert field.of(SwapRefused)


def test_what_a_library_throws_comes_as_an_engine_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(spec: Any, path: Path) -> None:
        raise RuntimeError("CUDA is sulking")

    monkeypatch.setattr(jobs, "export_graph", export)
    workshop = Workshop(SPEC, config(tmp_path, tmp_path, inference={}), None, InlineCompute())
    with pytest.raises(EngineError, match="RuntimeError: CUDA is sulking"):
        asyncio.run(workshop.tools())


def test_a_model_that_cannot_be_read_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = DeviceState.open(tmp_path, "home", "d1")
    (tmp_path / "home" / "model.npz").mkdir()
    assert state.model("model.npz", SPEC.shape_digest) is None
    state.close()


def test_the_coordinator_hears_of_a_model_that_does_worse(tmp_path: Path, graph: Path) -> None:  # noqa: F811
    """The first model says "walk" of everything, as the labels do; the second one says "sit"."""
    field = Field(tmp_path, graph, training={"enabled": False})
    biases = [[-50.0, 50.0], [50.0, -50.0]]
    assert SPEC.classes == ("sit", "walk")
    field.office.tensors["fusion"].params[:2] = biases[0]

    def labelled() -> int:
        session = field.device.session
        return 0 if session is None or session.sensing is None else session.sensing.reservoir.labelled

    async def label() -> None:
        while labelled() < 2 * LEAST or not field.of(PredictionMade):
            await field.clock.sleep(0.1)
            await field.one_label()
        field.office.tensors["fusion"].params[:2] = biases[1]
        field.office.seal()
        await field.office.publish()

    field.label = label  # type: ignore[method-assign]
    field.live(lambda: bool(statuses(field)) and bool(statuses(field)[-1].notes))
    assert statuses(field)[-1].notes[0].startswith("model 1 is not taken: it is right on 0% of this device's")
    assert {p.label for p in field.of(PredictionMade)} == {"walk"}
    assert {p.version.number for p in field.of(PredictionMade)} == {0}

"""Sensing, predicting and training together, as in the field: real threads, real engines, live streams."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnxruntime", reason="predicting needs onnxruntime")

from edge_sdk.codecs import wire
from edge_sdk.core import parity, registry
from edge_sdk.core.clock import WallClock
from edge_sdk.core.compute import FieldCompute, InlineCompute
from edge_sdk.core.messages import LabelMessage, Prediction
from edge_sdk.core.records import ModelVersion, VersionId
from edge_sdk.methods.base import find
from edge_sdk.models import build
from edge_sdk.runtime import solo
from edge_sdk.runtime.device import Device
from edge_sdk.runtime.events import EngineSwapped, PredictionMade, SwapRefused, TaskStarted, UpdateAccepted
from edge_sdk.runtime.reference import TorchReference
from edge_sdk.runtime.state import MODEL, SOLO, DeviceState
from edge_sdk.transport.memory import MemoryBroker, MemoryTransport
from tests.helpers.devices import device_config
from tests.helpers.office import Office, small_spec

SPEC = small_spec(method="mba")
SYNTHETIC = {"driver": "synthetic", "options": {"rate_hz": 16.0, "channels": 3, "chunk": 4}}
SPEED = 20.0


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    registry.load("exporters", "onnx")(SPEC, find("mba").needs, path)
    return path


def config(tmp_path: Path, graph: Path, **sections: Any) -> Any:
    return device_config(
        **{
            "device": {"id": "d1", "federation": "home", "state_dir": str(tmp_path), "stream_speed": SPEED},
            "sensors": {"acc": SYNTHETIC, "gyr": SYNTHETIC},
            "labels": {"worn": {"source": "mqtt", "options": {"clock_err_s": 0.0}}},
            "inference": {"graph": str(graph)},
            "reservoir": {"min_windows": 4, "round_windows": 16, "persist": False},
            **sections,
        }
    )


class Field:
    """A device of the field beside a coordinator by hand."""

    def __init__(self, tmp_path: Path, graph: Path, **options: Any) -> None:
        self.clock = WallClock()
        self.stream_clock = WallClock(SPEED)
        self.broker = MemoryBroker(self.clock)
        self.office = Office(SPEC, MemoryTransport(self.broker, "coordinator"), self.clock)
        self.state = DeviceState.open(tmp_path, "home", "d1")
        self.events: list[Any] = []
        alone = options.pop("alone", False)
        self.device = Device(
            config(tmp_path, graph, **options), transport=None if alone else MemoryTransport(self.broker, "d1"),
            clock=self.clock, compute=InlineCompute(), stream_clock=self.stream_clock, observer=self.events.append,
            state=self.state, spec=SPEC if alone else None,
        )  # fmt: skip

    async def label(self) -> None:
        while True:
            await self.clock.sleep(0.2)
            await self.one_label()

    async def one_label(self) -> None:
        topic = self.office.topics.label("d1")
        now = self.clock.utc_ns()
        message = LabelMessage("walk", now - round(6e9 / SPEED), now)
        if self.office.transport.connected:
            await self.office.transport.publish(topic, wire.encode(message))
        elif self.device.session is not None:
            self.device.session.label(message)

    def live(self, ready: Callable[[], bool], *, office: bool = True, labels: bool = True) -> None:
        async def main() -> None:
            async with self.clock.group() as group:
                if office:
                    group.start(self.office.run(), name="office")
                group.start(self.device.run(), name="device")
                if labels:
                    group.start(self.label(), name="labels")
                async with self.clock.deadline(60.0):
                    while not ready():
                        await self.clock.sleep(0.02)
                group.cancel()
            self.state.close()

        asyncio.run(main())

    def of(self, kind: Any) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind)]


def none_is_missing(field: Field) -> bool:
    """Whether every window was predicted, in order, but those that became old on a busy machine, which are counted."""
    indices = [p.index for p in field.of(PredictionMade)]
    assert field.device.session is not None
    between = set(range(indices[0], indices[-1])) - set(indices)
    return indices == sorted(set(indices)) and len(between) <= field.device.session.sensing.overtaken


def test_senses_predicts_trains_and_follows_the_newest_version(tmp_path: Path, graph: Path) -> None:
    field = Field(tmp_path, graph)
    field.live(lambda: len(field.office.updates) >= 2 and len(field.of(PredictionMade)) >= 20)
    assert none_is_missing(field)
    assert all(p.version == field.office.version for p in field.of(PredictionMade))
    assert field.of(EngineSwapped)[0].parity_error < 1e-3
    assert {m for u in field.office.updates for m in u.modalities} <= {"acc", "gyr"}
    again = DeviceState.open(tmp_path, "home", "d1")
    kept = again.model(MODEL, SPEC.shape_digest)
    assert kept is not None
    assert kept.id == field.office.version
    assert again.spec() == SPEC
    again.close()


def test_predictions_go_out(tmp_path: Path, graph: Path) -> None:
    field = Field(tmp_path, graph)
    heard: list[Prediction] = []

    async def listen() -> None:
        listener = MemoryTransport(field.broker, "listener")
        await listener.start()
        await listener.subscribe(field.office.topics.prediction("d1"))
        async for event in listener.events():
            payload: bytes = getattr(event, "payload", b"")
            if payload:
                heard.append(wire.decode(Prediction, payload))

    async def label_and_listen() -> None:
        await listen()

    field.label = label_and_listen  # type: ignore[method-assign]
    field.live(lambda: len(heard) >= 5)
    assert {p.label for p in heard} <= set(SPEC.classes)
    assert all(p.modalities == ("acc", "gyr") for p in heard)
    gaps = np.diff([p.utc_ns for p in heard])
    assert np.allclose(gaps, SPEC.window.hop_s * 1e9 / SPEED, rtol=0.01)  # of UTC; the streams run faster
    ages_s = np.array([field.clock.utc_ns() - p.utc_ns for p in heard]) / 1e9
    assert (ages_s >= SPEC.window.length_s / SPEED).all()
    assert (ages_s < 60.0).all()
    assert all(0 < p.utc_err_ns < 10**9 for p in heard)


def test_trains_alone_and_predicts_with_its_own_model(
    tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solo, "PAUSE_S", 0.1)
    field = Field(tmp_path, graph, alone=True)
    field.live(lambda: len(field.of(TaskStarted)) >= 3 and len(field.of(EngineSwapped)) >= 3, office=False)
    assert all(e.version is None for e in field.of(EngineSwapped))
    assert field.of(PredictionMade)
    again = DeviceState.open(tmp_path, "home", "d1")
    kept = again.model(SOLO, SPEC.shape_digest)
    again.close()
    assert kept is not None
    assert kept.id.number >= 2
    assert kept.id.digest == wire.tensors_digest(kept.tensors)


def test_follows_its_own_model(tmp_path: Path, graph: Path) -> None:
    field = Field(tmp_path, graph, inference={"graph": str(graph), "follow": "local"})
    field.live(lambda: any(e.version is None for e in field.of(EngineSwapped)) and bool(field.of(UpdateAccepted)))
    assert field.of(EngineSwapped)[0].version == field.office.version


def test_new_versions_are_swapped_without_skipping_a_window(tmp_path: Path, graph: Path) -> None:
    field = Field(tmp_path, graph, training={"enabled": True})

    async def publish() -> None:
        rng = np.random.default_rng(0)
        while True:
            await field.clock.sleep(0.3)
            for module in field.office.tensors.values():
                module.params[...] += 0.01 * rng.standard_normal(len(module.params)).astype(np.float32)
            field.office.seal()
            await field.office.publish()

    field.label = publish  # type: ignore[method-assign]
    field.live(lambda: len(field.of(EngineSwapped)) >= 6)
    assert not field.of(SwapRefused)
    assert none_is_missing(field)
    numbers = [e.version.number for e in field.of(EngineSwapped)]
    assert numbers == sorted(set(numbers))


def stored(tmp_path: Path, graph: Path, **sections: Any) -> Path:
    """A device that only senses and predicts, as files: its configuration and what it learnt before."""
    tensors = build.initial_tensors(SPEC, find("mba").needs, 1)
    state = DeviceState.open(tmp_path, "home", "d1")
    state.keep_spec(SPEC)
    state.keep_model(
        MODEL, ModelVersion(VersionId("ab" * 16, 3, wire.tensors_digest(tensors)), tensors), SPEC.shape_digest
    )
    state.close()
    lines = [
        f'[device]\nid = "d1"\nfederation = "home"\nstate_dir = "{tmp_path}"\nstream_speed = {SPEED}',
        "[broker]\nport = 1\n[training]\nenabled = false",
        f'[inference]\ngraph = "{graph}"',
        *(
            f'[sensors.{m}]\ndriver = "synthetic"\noptions = {{ rate_hz = 16.0, channels = 3, chunk = 4 }}'
            for m in SPEC.modality_names
        ),
    ]
    path = tmp_path / "device.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_agent_predicts_without_torch_and_ends_cleanly(tmp_path: Path, graph: Path, ending: signal.Signals) -> None:
    file, events = stored(tmp_path, graph), tmp_path / "events.jsonl"
    code = (
        "import sys\nfrom edge_sdk.cli import main\n"
        f"code = main(['run', {str(file)!r}, '--events', {str(events)!r}, '--log-format', 'json'])\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(1200):
            if events.exists() and events.read_text().count("PredictionMade") >= 10:
                break
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            signal.sigtimedwait([], 0.05)
        resident_mb = resident(process.pid)
        process.send_signal(ending)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, log
    lines = [json.loads(line) for line in log.splitlines()]
    assert sum("cannot connect" in line["message"] for line in lines) == 1
    made = [e for e in map(json.loads, events.read_text().splitlines()) if e["event"] == "PredictionMade"]
    assert len(made) >= 10
    assert all(e["version"]["number"] == 3 for e in made)
    assert resident_mb < 120


def resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_training_child_leaves_the_loop_free(tmp_path: Path, graph: Path) -> None:
    compute = FieldCompute()

    async def main() -> int:
        try:
            return await compute.run("train", 0, os.getpid)
        finally:
            await compute.aclose()

    assert asyncio.run(main()) != os.getpid()


def test_reference_says_what_torch_says(graph: Path) -> None:
    torch_engine = registry.load("engines", "torch")
    reference, x = TorchReference(SPEC), parity.noise(SPEC, 4, 0)
    for seed in (1, 2):
        tensors = build.initial_tensors(SPEC, find("mba").needs, seed)
        found = reference(tensors, x, parity.masks(SPEC))
        expected = parity.logits(torch_engine.open(graph, tensors), x, parity.masks(SPEC))
        assert sorted(found) == ["acc", "all", "gyr"]
        assert all(np.allclose(found[name], expected[name], atol=1e-6) for name in found)

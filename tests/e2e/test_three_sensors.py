"""A device joins a federation with a serial IMU, a V4L2 camera and a microphone: virtual, under their real drivers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.core.config import BrokerConfig
from edge_sdk.core.spec import FederationSpec, MethodSpec, ModelSpec, TrainingSpec, WindowSpec
from edge_sdk.recording import Writer
from tests.helpers.brokers import Embedded, Mosquitto, make_broker
from tests.helpers.coordinators import STEP_S, Program, served, write_config
from tests.helpers.streams import chunk
from tests.helpers.virtual_bench import VirtualBench

SENSORS = ("imu", "usb", "audio")
CLASSES = ("rest", "move")
UPDATES = 2


def spec_of() -> FederationSpec:
    spectrogram = {"name": "log_spectrogram", "seconds": 1.0, "n_fft": 128, "hop": 500, "frames": 32}
    return FederationSpec(
        name="bench",
        modalities=(
            {"name": "imu", "shape": [6, 50], "rate_hz": 50.0, "feature": {"name": "inertial"}},
            {"name": "usb", "shape": [3, 32, 32], "feature": {"name": "frames", "count": 1, "size": 32}},
            {"name": "audio", "shape": [1, 65, 32], "feature": spectrogram},
        ),
        classes=CLASSES,
        window=WindowSpec(length_s=1.0, hop_s=0.5, deadline_s=0.5, min_quality=0.5),
        method=MethodSpec(name="mba"),
        model=ModelSpec(feature_dim=8),
        training=TrainingSpec(epochs=1, batch_size=8),
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualBench]:
    made = VirtualBench(tmp_path_factory.mktemp("bench"), only=SENSORS)
    try:
        if made.absent:
            pytest.skip("; ".join(f"{name}: {reason}" for name, reason in made.absent.items()))
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto | Embedded]:
    made = make_broker("mosquitto", tmp_path_factory.mktemp("broker"))
    made.start()
    yield made
    made.stop()


def labels(folder: Path) -> Path:
    """Ten minutes of two classes in turn, two seconds each, beginning when the device does."""
    with Writer(folder, start_ns=0) as writer:
        for k in range(300):
            writer.label(2.0 * k, 2.0 * k + 2.0, CLASSES[k % 2])
        writer.append(chunk("end", 600 * 100, 1))
    return folder


def device(folder: Path, bench: VirtualBench, keys: BrokerConfig) -> Program:
    path = folder / "device.toml"
    path.write_text(
        f'[device]\nid = "d1"\nfederation = "bench"\nstate_dir = "{folder / "state"}"\n'
        f'[broker]\nport = {keys.port}\nusername = "d1"\npassword = "{keys.password}"\n'
        + bench.sections()
        + f'[labels.truth]\nsource = "file"\noptions = {{ path = "{labels(folder / "labels")}" }}\n'
        "[reservoir]\nmin_windows = 8\nround_windows = 16\nwait_limit_s = 30.0\npersist = false\n",
        encoding="utf-8",
    )
    return Program(folder, "device", "edge_sdk.cli", "run", path, env={**bench.env, "OMP_NUM_THREADS": "1"})


def predicted(one: Program, version: int, seconds: float = 30.0) -> list[dict[str, Any]]:
    """Returns predictions of windows with all three modalities by this version or a newer one; waits for the first."""
    for _ in range(round(seconds / STEP_S)):
        made = [e for e in one.events("PredictionMade") if set(e["modalities"]) == set(SENSORS)]
        if newer := [e for e in made if e["version"]["number"] >= version]:
            return newer
        one.pause()
    raise AssertionError(f"no whole window was predicted by version {version}: {one.words()}")


def test_it_senses_trains_and_predicts(bench: VirtualBench, broker: Mosquitto | Embedded, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="predicting needs onnxruntime")
    config = write_config(
        tmp_path / "center", spec_of(), broker.config("coordinator"), f"[stop]\nupdates = {UPDATES}\n"
    )
    with served(config) as center:
        one = device(tmp_path / "device", bench, broker.config("d1"))
        try:
            accepted = one.wait_for("UpdateAccepted", UPDATES)
            trained = accepted[0]["version"]["number"]
            learnt = predicted(one, trained)
        finally:
            code = one.stop()
        applied = center.events("UpdateApplied")
    assert code == 0, one.words()
    assert {e["modality"] for e in one.events("ModalityArrived")} == set(SENSORS)
    assert {m for e in one.events("PhaseFinished") for m in e["modalities"]} == set(SENSORS)
    assert len(applied) == UPDATES
    assert {e["label"] for e in learnt} <= set(CLASSES)
    assert "Traceback" not in one.words()

"""A device that replays a minute and predicts with a graph it was given: written here, run on another machine.

`python -m tests.helpers.replay_minute prepare FOLDER [PLACE]` writes it; PLACE is the folder's path where it will run.
`python -m tests.helpers.replay_minute count FOLDER` says how many windows were predicted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from edge_sdk.codecs import wire
from edge_sdk.core import registry
from edge_sdk.core.records import Chunk, ModelVersion, VersionId
from edge_sdk.methods.base import find
from edge_sdk.models import build
from edge_sdk.recording import Writer
from edge_sdk.runtime.state import MODEL, DeviceState
from tests.helpers.office import small_spec

SECONDS, RATE_HZ, SPEED = 60, 16, 3.0


def prepare(folder: Path, place: str) -> None:
    spec = small_spec()
    needs = find(spec.method.name).needs
    folder.mkdir(parents=True)
    registry.load("exporters", "onnx")(spec, needs, folder / "graph.onnx")
    tensors = build.initial_tensors(spec, needs, 1)
    state = DeviceState.open(folder / "state", "home", "d1")
    state.keep_spec(spec)
    version = VersionId("ab" * 16, 3, wire.tensors_digest(tensors))
    state.keep_model(MODEL, ModelVersion(version, tensors), spec.shape_digest)
    state.close()
    rng = np.random.default_rng(3)
    with Writer(folder / "recording", start_ns=0) as writer:
        for k in range(SECONDS):
            for m in spec.modality_names:
                data = rng.normal(0.0, 1.0, (RATE_HZ, 3)).astype(np.float32)
                writer.append(Chunk(m, k, k * 10**9, data, period_ns=10**9 // RATE_HZ))
    sensors = "".join(
        f'[sensors.{m}]\ndriver = "replay"\noptions = {{ path = "{place}/recording" }}\n' for m in spec.modality_names
    )
    (folder / "device.toml").write_text(
        f'[device]\nid = "d1"\nfederation = "home"\nstate_dir = "{place}/state"\nstream_speed = {SPEED}\n'
        f'[broker]\nport = 9\n[training]\nenabled = false\n[inference]\ngraph = "{place}/graph.onnx"\n{sensors}'
    )


def count(folder: Path) -> int:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return sum(json.loads(line)["event"] == "PredictionMade" for line in lines if line.endswith("}"))


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else sys.argv[2])
    else:
        print(count(Path(sys.argv[2])))

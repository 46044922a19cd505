"""New weights into a running engine: how fast, against a new export, and what the engine costs per prediction."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edge_sdk.core import parity
from edge_sdk.core.records import ModelTensors
from edge_sdk.core.spec import FederationSpec, ModelSpec
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from export import graphs
from export.engines.ort import CPU, OrtEngine
from export.to_onnx import export_onnx, export_standalone
from export.trace import random_tensors, trace
from export.weights import WeightMap
from tests.helpers.specs import har_spec

LIMIT_SWAP_MS = 20.0
LIMIT_OVERHEAD_MS = 0.3
MASK = np.ones((1, 2), np.float32)


def spec_220k() -> FederationSpec:
    """Two modalities of 128 samples, about 220,000 parameters."""
    spec = har_spec(length=128)
    wide = tuple(m.model_copy(update={"encoder_config": {"width": 56}}) for m in spec.modalities)
    return spec.model_copy(update={"modalities": wide, "model": ModelSpec(feature_dim=64)})


def _ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _pairs(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Medians of two calls, measured in alternating blocks so that a change of load meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(10):
        for call, kept in zip((first, second), times, strict=True):
            call()
            kept += [_ms(call) for _ in range(100)]
    return statistics.median(times[0]), statistics.median(times[1])


def run() -> list[dict[str, Any]]:
    """Returns the rows of this benchmark."""
    spec, needs = spec_220k(), Needs()
    versions = [build.initial_tensors(spec, needs, seed) for seed in range(4)]
    size = sum(s.params.size for s in versions[0].values())
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        export_onnx(spec, needs, graph)  # the first export of a process also imports the exporter
        return [*_swap(spec, graph, versions, f"{size // 1000}k parameters"), *_latency(spec, graph, versions[1])]


def _swap(spec: FederationSpec, graph: Path, versions: list[ModelTensors], what: str) -> list[dict[str, Any]]:
    engine, x = OrtEngine(graph, versions[0]), parity.noise(spec, 1, 0)
    swaps = [_ms(lambda i=i: engine.with_tensors(versions[i % 4]).run(x, MASK)) for i in range(40)]

    def again() -> None:
        """The plain way, without our proof of the map: trace, put the weights in, make a session."""
        proto, weights = trace(spec, Needs(), random_tensors(build.layout(spec), 1))
        graphs.bake(proto.graph, WeightMap(build.layout(spec), weights).apply(versions[1]))
        onnxruntime.InferenceSession(proto.SerializeToString(), providers=[CPU]).run(None, {**x, "mask": MASK})

    swap, export = statistics.median(swaps), min(_ms(again) for _ in range(2))
    name = f"hot-swap with first prediction, {what}"
    return [
        _row(name, swap, "ms", f"limit {LIMIT_SWAP_MS:g} ms", swap / LIMIT_SWAP_MS),
        _row(f"export + new session, {what}", export, "ms", "hot-swap, at least 50", export / swap),
    ]


def _latency(spec: FederationSpec, graph: Path, tensors: ModelTensors) -> list[dict[str, Any]]:
    baked = graph.with_name("baked.onnx")
    export_standalone(spec, Needs(), tensors, baked, graph=graph)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(baked.read_bytes(), options, providers=[CPU])
    engine, x = OrtEngine(graph, tensors).with_tensors(tensors), parity.noise(spec, 1, 0)
    feeds = {**x, "mask": MASK}
    swapped, plain = _pairs(lambda: engine.run(x, MASK), lambda: session.run(["logits"], feeds))
    ours, bare = _pairs(lambda: engine.run(x, MASK), lambda: engine.session.run(["logits"], feeds))
    overhead = ours - bare
    return [
        _row("prediction after a swap", swapped, "ms", "baked graph, bare session", swapped / plain),
        _row(
            "engine.run over session.run", overhead, "ms", f"limit {LIMIT_OVERHEAD_MS} ms", overhead / LIMIT_OVERHEAD_MS
        ),
        _row(
            "graph file", graph.stat().st_size / 1e3, "kB", "with weights", graph.stat().st_size / baked.stat().st_size
        ),
    ]


def _row(name: str, value: float, unit: str, reference: str, ratio: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio}


__all__ = ["run", "spec_220k"]

"""Engines at the size of ResNet-18: hot-swaps against new exports, our overhead over bare ONNX Runtime, and int8."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from edge_sdk import datasets
from edge_sdk.core import parity
from edge_sdk.core.clock import WallClock
from edge_sdk.core.events import ignore
from edge_sdk.core.records import Float32, Int64, ModelTensors, RoundData, Window
from edge_sdk.core.spec import FederationSpec, ModalitySpec, ModelSpec
from edge_sdk.learn import params
from edge_sdk.learn.local_training import single_thread
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from edge_sdk.runtime.inference import Predictor, Serving
from edge_sdk.runtime.timebase import StreamTime
from export import graphs
from export.engines.ort import CPU, OrtEngine, session_options
from export.quantize import Report, quantize
from export.to_onnx import export_onnx, export_standalone
from export.trace import random_tensors, trace
from export.weights import WeightMap

LIMIT_SWAP_MS = 120.0
LIMIT_OVERHEAD = 1.05  # of bare ONNX Runtime
LIMIT_LOSS = 0.005  # accuracy
EPOCHS = 3
NEEDS = Needs()
Row = dict[str, Any]


def run() -> list[Row]:
    """Returns the rows of this benchmark."""
    single_thread()  # engines predict on one thread; the other core is somebody else's
    with tempfile.TemporaryDirectory() as folder:
        return [*resnet(Path(folder)), *int8(Path(folder))]


def resnet_spec() -> FederationSpec:
    """ResNet-18 over images, 1,000 classes: 11.7 million parameters."""
    image = ModalitySpec(name="camera", shape=(3, 224, 224), encoder="resnet18")
    classes = tuple(f"c{i}" for i in range(1000))
    return FederationSpec(name="images", modalities=(image,), classes=classes, model=ModelSpec(feature_dim=512))


def resnet(folder: Path) -> list[Row]:
    """Measures swaps and latency of the large model."""
    spec, graph = resnet_spec(), folder / "resnet.onnx"
    versions = [build.initial_tensors(spec, NEEDS, seed) for seed in range(3)]
    size = sum(s.params.size for s in versions[0].values()) / 1e6
    export_onnx(spec, NEEDS, graph)
    engine, x, mask = OrtEngine(graph, versions[0]), parity.noise(spec, 1, 0), np.ones((1, 1), np.float32)
    swaps = [ms(lambda i=i: engine.with_tensors(versions[i % 3]).run(x, mask)) for i in range(9)]
    swap, again = statistics.median(swaps), min(ms(lambda: exported_again(spec, versions[1], x)) for _ in range(2))
    swapped = engine.with_tensors(versions[1])
    baked = folder / "baked.onnx"
    export_standalone(spec, NEEDS, versions[1], baked, graph=graph)
    bare = onnxruntime.InferenceSession(baked.read_bytes(), session_options(1, optimise=True), providers=[CPU])
    feeds = {**x, "mask": mask}
    after, like_baked = pairs(lambda: swapped.run(x, mask), lambda: bare.run(["logits"], feeds))
    predictor, window = runtime(spec, swapped), one_window(x)
    ours, like_bare = pairs(lambda: predictor.predict(window), lambda: swapped.session.run(["logits"], feeds))
    name = f"ResNet-18, {size:.1f} M parameters"
    quick, faster, _ = quantised(spec, versions[1], noise(spec, 40), graph)
    return [
        row(f"hot-swap with first prediction, {name}", swap, "ms", f"limit {LIMIT_SWAP_MS:g} ms", swap / LIMIT_SWAP_MS),
        row(f"export + new session, {name}", again, "ms", "hot-swap, at least 20", again / swap),
        row(f"prediction after a swap, {name}", after, "ms", "folded graph with baked weights", like_baked),
        row(
            f"a device's prediction, {name}",
            ours,
            "ms",
            f"bare session.run, limit {LIMIT_OVERHEAD}",
            like_bare,
        ),
        row(f"int8 prediction, {name}", quick, "ms", "float32 / int8, at least 2", faster),
    ]


def runtime(spec: FederationSpec, engine: OrtEngine) -> Predictor:
    """Returns the device's predictor around an engine, its events thrown away."""
    clock = WallClock()
    predictor = Predictor(spec, "d1", clock=clock, time=StreamTime(clock, clock), emit=ignore)
    predictor.swap(Serving(engine, None))
    return predictor


def one_window(x: dict[str, Float32]) -> Window:
    """Returns a complete window."""
    data = {m: a[0] for m, a in x.items()}
    return Window(0, 0, 10**9, data, dict.fromkeys(data, 0.0), dict.fromkeys(data, 1.0))


def exported_again(spec: FederationSpec, tensors: ModelTensors, x: dict[str, Float32]) -> None:
    """The plain way, without our proof of the map: trace, put the weights in, make a session, predict."""
    proto, weights = trace(spec, NEEDS, random_tensors(build.layout(spec), 1))
    graphs.bake(proto.graph, WeightMap(build.layout(spec), weights).apply(tensors))
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), session_options(1, optimise=True), providers=[CPU]
    )
    session.run(None, {**x, "mask": np.ones((1, 1), np.float32)})


def int8(folder: Path) -> list[Row]:
    """Trains ResNet-18 on spectrograms of UCI-HAR and quantises it with half of the windows it has not seen."""
    data = datasets.select("uci_har")
    images = spectrograms(np.concatenate([data.x["acc"], data.x["gyro"]], axis=1))
    order = np.random.default_rng(0).permutation(len(images))
    seen, unseen = np.split(order, [2 * len(order) // 3])
    mean, std = images[seen].mean((0, 2, 3)), images[seen].std((0, 2, 3))
    modality = ModalitySpec(
        name="motion",
        shape=images.shape[1:],
        encoder="resnet18",
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
    )
    spec = FederationSpec(name="har", modalities=(modality,), classes=data.classes, model=ModelSpec(feature_dim=512))
    tensors = trained(spec, images[seen], data.y[seen])
    there = {"motion": np.ones(len(unseen), bool)}
    graph = folder / "motion.onnx"
    export_onnx(spec, NEEDS, graph)
    judged = RoundData(unseen, data.y[unseen], {"motion": images[unseen]}, there)
    quick, faster, report = quantised(spec, tensors, judged, graph)
    loss, name = report.accuracy_fp32 - report.accuracy, "ResNet-18 trained on UCI-HAR"
    return [
        row(f"accuracy in float32, {name}", report.accuracy_fp32, "", f"{report.evaluated} unseen windows", 1.0),
        row(f"accuracy in int8, {name}", report.accuracy, "", f"loss, limit {LIMIT_LOSS}", max(0.0, loss) / LIMIT_LOSS),
        row(f"int8 prediction, {name}", quick, "ms", "float32 / int8, at least 2", faster),
    ]


def spectrograms(x: Float32) -> Float32:
    """Returns log magnitudes of short Fourier transforms: (n, 6, 128) -> (n, 6, 33, 33)."""
    pieces = np.lib.stride_tricks.sliding_window_view(x, 64, axis=2)[:, :, ::2]  # (n, 6, 33, 64)
    return np.log1p(np.abs(np.fft.rfft(pieces * np.hanning(64), axis=3))).astype(np.float32)


def trained(spec: FederationSpec, x: Float32, y: Int64) -> ModelTensors:
    """Returns the values of a model after a few epochs."""
    torch.manual_seed(0)
    model = build.build(spec, NEEDS, 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs, labels, mask = torch.from_numpy(x), torch.from_numpy(y), torch.ones(64, 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=EPOCHS * (len(x) // 64))
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x))[: len(x) // 64 * 64].view(-1, 64):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(model({"motion": inputs[rows]}, mask), labels[rows])
            loss.backward()
            optimiser.step()
            schedule.step()
    return params.read(model.named())


def quantised(
    spec: FederationSpec, tensors: ModelTensors, data: RoundData, graph: Path
) -> tuple[float, float, Report]:  # fmt: skip
    """Returns what one window takes in int8, ms, how many times float32 takes that, and the report."""
    done = quantize(spec, NEEDS, tensors, graph.with_name("int8.onnx"), data=data, max_drop=1.0, graph=graph)
    plain, x, mask = OrtEngine(graph, tensors), parity.noise(spec, 1, 0), np.ones((1, 1), np.float32)
    quick, ratio = pairs(lambda: done.engine.run(x, mask), lambda: plain.run(x, mask))
    return quick, 1 / ratio, done.report


def noise(spec: FederationSpec, n: int) -> RoundData:
    """Returns windows of noise without labels."""
    x = parity.noise(spec, n, 0)
    return RoundData(np.arange(n), np.full(n, -1), x, {m: np.ones(n, bool) for m in x})


def ms(call: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def pairs(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Returns what the first call takes, ms of processor time, median, and its ratio to the second one.

    The calls are made in turn on this thread, and the ratio is the median of the pairs'. Processor time, because on a
    machine with a load of 7 on two cores a call of 20 ms rarely keeps its core to the end.
    """
    times = [(cpu_ms(first), cpu_ms(second)) for _ in range(60)]
    return statistics.median(a for a, _ in times), statistics.median(a / b for a, b in times)


def cpu_ms(call: Callable[[], object]) -> float:
    """Returns the processor time that a call takes on this thread."""
    start = time.thread_time()
    call()
    return 1e3 * (time.thread_time() - start)


def row(name: str, value: float, unit: str, reference: str, ratio: float) -> Row:
    """Returns one row of bench.json."""
    return {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio}


__all__ = ["resnet_spec", "run"]

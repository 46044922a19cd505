"""What the device runtime costs: imports, memory, latency beside a bare ONNX Runtime, training next door, hot-swaps."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.codecs import wire
from edge_sdk.core import registry
from edge_sdk.core.clock import WallClock
from edge_sdk.core.compute import TRAIN, FieldCompute
from edge_sdk.core.config import HealthConfig, SensorConfig
from edge_sdk.core.messages import Plan
from edge_sdk.core.records import Arrival, Chunk, ModelTensors, ModelVersion, RoundData, VersionId, Window
from edge_sdk.core.spec import FederationSpec, WindowSpec
from edge_sdk.learn.local_training import single_thread
from edge_sdk.learn.records import Phase, PhaseJob, RoundView
from edge_sdk.methods.base import find
from edge_sdk.models import build
from edge_sdk.runtime import jobs
from edge_sdk.runtime.events import EngineSwapped, PredictionMade
from edge_sdk.runtime.inference import Predictor, Serving
from edge_sdk.runtime.reference import TorchReference
from edge_sdk.runtime.state import MODEL, DeviceState
from edge_sdk.runtime.swapping import Kit, Proof, Swapper
from edge_sdk.runtime.timebase import StreamTime
from edge_sdk.streams.pipeline import Streams
from edge_sdk.streams.watch import Watches
from tests.bench.bench_export import spec_220k

Row = dict[str, Any]

LIMIT_IMPORT_S = 0.2
LIMIT_RSS_MB = 120.0
LIMIT_ADDED_MS = 0.3
LIMIT_WHILE_TRAINING = 1.3
LIMIT_P99, LIMIT_P99_MS = 2.0, 10.0  # times the p99 without training, or so many ms: whichever is more
SWAPS = 1000
LIMIT_SWAP_MS = 20.0
RATE_HZ = 50.0
SPEED = 20.0  # stream seconds per second: a window every 64 ms
SWAP_SPEED = 4.0  # for hot-swaps: sensors of a real device do not work twenty times as hard
PAIRS = 5
SEGMENT_S = 3.0


def run() -> list[Row]:
    """Returns the rows of this benchmark."""
    spec = bench_spec()
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        jobs.export_graph(spec, graph)
        versions = [build.initial_tensors(spec, find(spec.method.name).needs, seed) for seed in range(4)]
        single_thread()
        rows = [*imports(), resident(spec, graph, versions[0], Path(folder))]
        rows += asyncio.run(latency(spec, graph, versions[0]))
        rows += asyncio.run(training_next_door(spec, graph, versions[0]))
        rows += asyncio.run(swapping(spec, graph, versions))
        rows += asyncio.run(many_swaps(spec, graph, versions))
        return rows


def bench_spec() -> FederationSpec:
    """The two-modality model of 220,000 parameters on a live grid."""
    spec = spec_220k()
    timed = tuple(m.model_copy(update={"rate_hz": RATE_HZ}) for m in spec.modalities)
    window = WindowSpec(length_s=2.56, hop_s=1.28, deadline_s=2.0)
    return spec.model_copy(update={"modalities": timed, "window": window})


def imports() -> list[Row]:
    """Times imports in fresh interpreters: the package, and with the records and the spec that a script uses."""
    rows = []
    for what, code in (
        ("import edge_sdk", ""),
        ("import edge_sdk, first use of its records", "; edge_sdk.FederationSpec"),
    ):
        script = f"import time; t = time.perf_counter(); import edge_sdk{code}; print(time.perf_counter() - t)"
        times = [float(subprocess.check_output([sys.executable, "-c", script])) for _ in range(5)]
        rows.append(
            row(f"{what}, min of five", min(times), "s", f"limit {LIMIT_IMPORT_S} s", min(times) / LIMIT_IMPORT_S)
        )
    return rows


def resident(spec: FederationSpec, graph: Path, tensors: ModelTensors, folder: Path) -> Row:
    """Measures a device agent that senses and predicts, as a process of its own."""
    state = DeviceState.open(folder, spec.name, "d1")
    state.keep_spec(spec)
    version = VersionId("ab" * 16, 1, wire.tensors_digest(tensors))
    state.keep_model(MODEL, ModelVersion(version, tensors), spec.shape_digest)
    state.close()
    config, events = folder / "device.toml", folder / "events.jsonl"
    config.write_text(agent_toml(spec, graph, folder))
    command = [
        sys.executable,
        "-m",
        "edge_sdk.cli",
        "run",
        str(config),
        "--events",
        str(events),
        "--log-level",
        "error",
    ]
    process = subprocess.Popen(command)
    try:
        while not events.exists() or events.read_text().count("PredictionMade") < 50:
            time.sleep(0.1)
            if process.poll() is not None:
                raise SystemExit("the agent ended early")
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    finally:
        process.terminate()
        process.wait(10)
    mb = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return row("resident, agent that senses and predicts", mb, "MB", f"limit {LIMIT_RSS_MB:g} MB", mb / LIMIT_RSS_MB)


def agent_toml(spec: FederationSpec, graph: Path, folder: Path) -> str:
    """Returns the configuration of an agent with synthetic sensors and no broker."""
    lines = [
        f'[device]\nid = "d1"\nfederation = "{spec.name}"\nstate_dir = "{folder}"\nstream_speed = {SPEED}',
        f'[broker]\nport = 1\n[training]\nenabled = false\n[inference]\ngraph = "{graph}"',
        *(f'[sensors.{m.name}]\ndriver = "synthetic"\noptions = {options(m.shape[0])}' for m in spec.modalities),
    ]
    return "\n".join(lines)


def options(channels: int) -> str:
    """Returns a synthetic sensor's options as TOML."""
    return f"{{ rate_hz = {RATE_HZ}, channels = {channels}, chunk = 10 }}"


class Bench:
    """Live windows through a predictor."""

    def __init__(self, spec: FederationSpec, graph: Path, tensors: ModelTensors, *, speed: float = SPEED) -> None:
        self.spec = spec
        self.clock, self.stream_clock = WallClock(), WallClock(speed)
        self.events: list[Any] = []
        self.engine = registry.load("engines", "ort").open(graph, tensors)
        self.predictor = Predictor(
            spec, "d1", clock=self.clock, time=StreamTime(self.clock, self.stream_clock, speed), emit=self.events.append
        )  # fmt: skip
        self.predictor.swap(Serving(self.engine, None))
        self.windows: list[int] = []
        self.whole: dict[int, float] = {}  # window → from the chunk that completed it to its prediction, ms
        self._chunk_s = 0.0  # when the newest chunk came

    async def live(
        self, work: Callable[[], Awaitable[None]], beside: Callable[[Window, bool], None] | None = None
    ) -> None:
        """Predicts live windows until the work is done.

        Args:
            work: what to wait for.
            beside: called before and after every prediction; told which.
        """
        sensors = {
            m.name: SensorConfig(driver="synthetic", options={"rate_hz": RATE_HZ, "channels": m.shape[0]})
            for m in self.spec.modalities
        }
        streams = Streams(self.spec, sensors, self.stream_clock, tap=self._tap, watches=Watches(HealthConfig()))

        async def sense() -> None:
            await streams.start()
            async for item in streams.items():
                if isinstance(item, Window):
                    self.windows.append(item.index)
                    if beside is not None:
                        beside(item, False)
                    self.predictor.predict(item)
                    self.whole[item.index] = (time.perf_counter() - self._chunk_s) * 1e3
                    streams.windower.assessed(item)  # as a device does, when the prediction is out
                    if beside is not None:
                        beside(item, True)

        async with self.clock.group() as group:
            task = group.start(sense(), name="sense")
            await work()
            task.cancel()
        await streams.aclose()

    def _tap(self, chunk: Chunk) -> None:
        self._chunk_s = time.perf_counter()

    def taken(self) -> list[float]:
        """Returns the latencies since the last call, ms."""
        latencies = [e.latency_ms for e in self.events if isinstance(e, PredictionMade)]
        self.events.clear()
        return latencies

    @property
    def skipped(self) -> int:
        """Windows of the grid that were not predicted."""
        return self.windows[-1] - self.windows[0] + 1 - len(self.windows)


async def latency(spec: FederationSpec, graph: Path, tensors: ModelTensors) -> list[Row]:
    """Compares a window's prediction with the bare session on live windows of the same kind.

    After the pause between two windows whoever is first finds cold caches, and takes three times as long as right after
    another run. So the two take turns in being first, and first ones are compared with first ones.
    """
    bench = Bench(spec, graph, tensors)
    bare: dict[bool, list[float]] = {True: [], False: []}  # first after the pause, right after a prediction
    order = spec.modality_names

    def alone(window: Window, after: bool) -> None:
        feeds = {m: window.data[m][None] for m in order if m in window.data}
        first = bool(window.index % 2)
        if len(feeds) < len(order) or first == after:
            return
        feeds["mask"] = np.ones((1, len(order)), np.float32)
        start = time.perf_counter()
        bench.engine.session.run(["logits"], feeds)
        bare[first].append((time.perf_counter() - start) * 1e3)

    await bench.live(lambda: bench.clock.sleep(12.0), alone)
    made = [e for e in bench.events if isinstance(e, PredictionMade)]
    first = statistics.median(e.latency_ms for e in made if e.index % 2 == 0)
    second = statistics.median(e.latency_ms for e in made if e.index % 2)
    whole = statistics.median(ms for index, ms in bench.whole.items() if index % 2 == 0)
    cold, warm = statistics.median(bare[True]), statistics.median(bare[False])
    added = {
        "latency that the runtime adds, window → prediction, median": first - cold,
        "the same, both right after another run": second - warm,
        "the same from the chunk that completes the window, through queues and windower": whole - cold,
    }
    return [
        row(
            "prediction of a live window, median", first, "ms", "bare ORT run in its place, same process", first / cold
        ),
        *(
            row(name, max(0.0, ms), "ms", f"limit {LIMIT_ADDED_MS} ms", max(0.0, ms) / LIMIT_ADDED_MS)
            for name, ms in added.items()
        ),
    ]


async def training_next_door(spec: FederationSpec, graph: Path, tensors: ModelTensors) -> list[Row]:
    """Compares predictions with and without training in the child, in alternating segments."""
    bench, compute = Bench(spec, graph, tensors), FieldCompute(single_thread)
    job = phase_job(spec, tensors)
    await compute.run(TRAIN, 0, jobs.run_phase, job)  # the child has to import torch first
    medians: dict[bool, list[float]] = {False: [], True: []}
    slowest: dict[bool, list[float]] = {False: [], True: []}

    async def train() -> None:
        while True:
            await compute.run(TRAIN, 0, jobs.run_phase, job)

    async def segments() -> None:
        for _ in range(PAIRS):
            for busy in (False, True):
                work = asyncio.ensure_future(train()) if busy else None
                await bench.clock.sleep(0.3)
                bench.taken()
                await bench.clock.sleep(SEGMENT_S)
                latencies = bench.taken()
                medians[busy].append(statistics.median(latencies))
                slowest[busy].append(float(np.percentile(latencies, 99)))
                if work is not None:
                    work.cancel()
                    await asyncio.wait([work])

    await bench.live(segments)
    await compute.aclose()
    ratio = statistics.median(b / a for a, b in zip(medians[False], medians[True], strict=True))
    p99 = statistics.median(
        b / max(LIMIT_P99 * a, LIMIT_P99_MS) for a, b in zip(slowest[False], slowest[True], strict=True)
    )
    return [
        row(
            f"prediction while the child trains, median of {PAIRS} pairs", statistics.median(medians[True]), "ms",
            f"without training, limit {LIMIT_WHILE_TRAINING} ×", ratio,
        ),
        row(
            f"its p99, median of {PAIRS} pairs", statistics.median(slowest[True]), "ms",
            f"limit, {LIMIT_P99:g} × that without training or {LIMIT_P99_MS:g} ms", p99,
        ),
        row("windows skipped meanwhile", bench.skipped, "windows", f"of {len(bench.windows)}", bench.skipped),
    ]  # fmt: skip


def phase_job(spec: FederationSpec, tensors: ModelTensors) -> PhaseJob:
    """Returns a fused phase on 256 windows."""
    rng = np.random.default_rng(0)
    rows = 256
    data = RoundData(
        np.arange(rows), np.arange(rows) % len(spec.classes),
        {m.name: rng.standard_normal((rows, *m.shape)).astype(np.float32) for m in spec.modalities},
        {m.name: np.ones(rows, bool) for m in spec.modalities},
    )  # fmt: skip
    plan = Plan(spec.modality_names, 1, 0.001, 64)
    modules = (*(f"encoder.{m}" for m in spec.modality_names), "fusion")
    phase = Phase("fused", spec.modality_names, modules, 1, final=True)
    view = RoundView(plan, tuple(Arrival(m, 0, rows) for m in spec.modality_names), (), ())
    return PhaseJob(
        spec=spec, method="fedasync", phase=phase, view=view, plan=plan, start=tensors, current={}, data=data,
        memory={}, carry={}, extras={}, seed=1,
    )  # fmt: skip


async def swapping(spec: FederationSpec, graph: Path, versions: list[ModelTensors]) -> list[Row]:
    """Swaps engines under live windows, parity against torch included, beside a new export and session."""
    bench, compute = Bench(spec, graph, versions[0], speed=SWAP_SPEED), FieldCompute(single_thread)
    proof = Proof(spec, TorchReference(spec), 1e-3)

    async def tools() -> Kit:
        return Kit(bench.engine.with_tensors, proof)

    swapper = Swapper(
        bench.predictor, tools, device="d1", clock=bench.clock, compute=compute, emit=bench.events.append
    )  # fmt: skip
    swaps: list[float] = []
    late: list[float] = []

    async def swap() -> None:
        for i in range(40):
            await swapper.offer(VersionId("ab" * 16, i, "cd" * 16), versions[i % 4])
            await bench.clock.sleep(0.1)
        swaps.extend(e.swap_ms for e in bench.events if isinstance(e, EngineSwapped))
        late.extend(e.late_ms for e in bench.events if isinstance(e, PredictionMade))

    await bench.live(swap)
    await compute.aclose()
    again = min(new_session(spec, graph.with_name("again.onnx"), versions[1]) for _ in range(2))
    median = statistics.median(swaps)
    worst = max(0.0, max(late) / 1e3 - spec.window.deadline_s) / spec.window.hop_s
    return [
        row("hot-swap with parity check, median", median, "ms", f"limit {LIMIT_SWAP_MS:g} ms", median / LIMIT_SWAP_MS),
        row("export + new session", again, "ms", "hot-swap with parity check, at least 50", again / median),
        row("windows skipped by 40 hot-swaps", bench.skipped, "windows", f"of {len(bench.windows)}", bench.skipped),
        row("latest prediction meanwhile, after its deadline", worst, "hops", "limit 1 hop", worst),
    ]


async def many_swaps(spec: FederationSpec, graph: Path, versions: list[ModelTensors]) -> list[Row]:
    """Swaps engines as fast as they can be made while live windows are predicted, and counts what is lost."""
    bench, compute = Bench(spec, graph, versions[0]), FieldCompute()

    async def tools() -> Kit:
        return Kit(bench.engine.with_tensors, Proof(spec, None, 1e-3))

    swapper = Swapper(
        bench.predictor, tools, device="d1", clock=bench.clock, compute=compute, emit=bench.events.append
    )  # fmt: skip

    async def swap() -> None:
        for i in range(SWAPS):
            await swapper.offer(VersionId("ab" * 16, i, "cd" * 16), versions[i % 4])

    await bench.live(swap)
    await compute.aclose()
    swapped = sum(isinstance(e, EngineSwapped) for e in bench.events)
    made = sum(isinstance(e, PredictionMade) for e in bench.events)
    lost = bench.skipped + len(bench.windows) - made
    return [row(f"predictions lost over {swapped} hot-swaps", lost, "windows", f"of {len(bench.windows)}", lost)]


def new_session(spec: FederationSpec, path: Path, tensors: ModelTensors) -> float:
    """Returns what a new model costs without hot-swapping, ms."""
    start = time.perf_counter()
    jobs.export_graph(spec, path)
    registry.load("engines", "ort").open(path, tensors)
    return (time.perf_counter() - start) * 1e3


def row(name: str, value: float, unit: str, reference: str, ratio: float) -> Row:
    """Returns one row of bench.json."""
    return {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio}


if __name__ == "__main__":
    for line in run():
        print(line)

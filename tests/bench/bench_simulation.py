"""The simulator beside a bare torch loop that does the same gradient steps, and what a large fleet costs.

The world: two modalities, 1-D CNN, 32 clients of 64 samples, 8 of them busy at a time, 5 epochs of batches of 32 under
FedAsync with the codec off, one torch thread per process. Everything that a run has is there: coordinator, admission,
versions, chunks, virtual clock. The bare loop loads the global model, trains and mixes, client after client, with
`torch.optim.SGD`. It does one client after every update of the simulation with one worker, in CPU time, so that both
meet the same machine; once more with `--stack auto`. On a busy machine wall time says how often the core was lost, and
CPU time changes by half from one minute to the next. Two workers can only be measured in wall time, beside one worker
in the next run; the time runs from the 40th update to the last, so that starting the processes does not count.

`python -m tests.bench.bench_simulation --devices 1000 --updates 10000` runs one large fleet and prints time and memory;
`make bench` does it with fewer updates, in processes of their own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from coordinator.preparation import Split, spec_of
from coordinator.simulation import stacking
from coordinator.simulation.profiles import ARRIVALS, Board, WorldProfile
from coordinator.simulation.simulate import Simulation, World
from edge_sdk.core.records import Dataset
from edge_sdk.core.spec import CodecSpec, FederationSpec, TrainingSpec
from edge_sdk.learn.local_training import single_thread
from edge_sdk.models import build
from tests.bench import stacked_steps

DEVICES, BUSY, ROWS = 32, 8, 64
EPOCHS, BATCH, LR = 5, 32, 0.01
UPDATES, WARM, PAIRS = 160, 40, 3
LARGE, LARGE_UPDATES = 1000, 300
ROOT = Path(__file__).resolve().parents[2]
# Data come over links of different speed, and training takes long beside that: 8 clients train at the same time, and do
# not all end at the same instant, at which nothing would be left for a second worker to do.
PROFILE = WorldProfile(board=Board(sample_s=2e-4, slow_fraction=0.0), arrivals=ARRIVALS["together"])


def run() -> list[dict[str, Any]]:
    """Returns the rows of this benchmark."""
    threads = torch.get_num_threads()
    single_thread()
    try:
        return [*_beside_a_bare_loop(), *stacked_steps.rows(), *_large_fleets()]
    finally:
        torch.set_deterministic_debug_mode("default")
        torch.set_num_threads(threads)


def _beside_a_bare_loop() -> list[dict[str, Any]]:
    spec, data = federation(DEVICES)
    alone, stacked, gains, rates = [], [], [], []
    for _ in range(PAIRS):
        alone.append(_beside(spec, data, World(**_world(), workers=1)))
        stacked.append(_beside(spec, data, World(**_world(), workers=1, stack=stacking.size("auto", spec))))
        one, two = (_wall_s(spec, data, World(**_world(), workers=workers)) for workers in (1, 2))
        rates.append(1 / two)
        gains.append(one / two)
    rows = [
        ("simulation.one_worker", alone, "bare torch loop, same steps, CPU time; at least 0.9"),
        ("simulation.one_worker_stacked", stacked, "the same loop, with --stack auto"),
    ]
    return [
        *(_row(name, _median(runs, 0), "ms/update", reference, _median(runs, 1)) for name, runs, reference in rows),
        _row(
            "simulation.two_workers", statistics.median(rates), "updates/s", "one worker; at least 1.7",
            statistics.median(gains),
        ),
    ]  # fmt: skip


def _median(runs: list[tuple[float, float]], column: int) -> float:
    return statistics.median(run[column] for run in runs)


def _beside(spec: FederationSpec, data: Split, world: World) -> tuple[float, float]:
    """Returns CPU milliseconds per update, and the bare loop's time over the simulation's."""
    beside = Beside(Bare(spec, data.train).step)
    Simulation(spec, data, world, progress=beside).run()
    simulated, bare = sum(beside.simulated[WARM:]), sum(beside.bare[WARM:])
    return 1e3 * simulated / (UPDATES - WARM), bare / simulated


def _world() -> dict[str, Any]:
    return {
        "devices": DEVICES, "updates": UPDATES, "seed": 1, "partition": "iid", "fraction": BUSY / DEVICES,
        "profile": PROFILE, "evaluate_every": 10**9,
    }  # fmt: skip


class Beside:
    """Does a piece of other work after every update, and times both.

    Args:
        work: what is done.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self.simulated: list[float] = []  # CPU seconds of each update, after the end of the work before it
        self.bare: list[float] = []  # CPU seconds of the work
        self._work = work
        self._since = time.process_time()

    def __call__(self, _updates: int) -> None:
        start = time.process_time()
        self.simulated.append(start - self._since)
        self._work()
        self._since = time.process_time()
        self.bare.append(self._since - start)


def _wall_s(spec: FederationSpec, data: Split, world: World) -> float:
    """Returns seconds per update between the WARM-th and the last."""
    times: list[float] = []
    Simulation(spec, data, world, progress=lambda _: times.append(time.perf_counter())).run()
    return (times[-1] - times[WARM - 1]) / (len(times) - WARM)


def federation(devices: int) -> tuple[FederationSpec, Split]:
    """Returns a federation on noise: what is learnt does not matter here."""
    train, test = _noise(devices * ROWS, 0), _noise(ROWS, 1)
    training = TrainingSpec(lr=LR, epochs=EPOCHS, batch_size=BATCH)
    spec = spec_of(train, name="bench", method="fedasync", training=training)
    return spec.model_copy(update={"codec": CodecSpec(up="fp32", down="fp32")}), Split(train, test)


def _noise(rows: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    x = {m: rng.standard_normal((rows, 3, 128), dtype=np.float32) for m in ("acc", "gyro")}
    has = {m: np.ones(rows, np.bool_) for m in x}
    return Dataset("noise", x, rng.integers(0, 6, rows), tuple("abcdef"), has)


class Bare:
    """Trains client after client from the global model and mixes what comes of it, with nothing around it."""

    def __init__(self, spec: FederationSpec, train: Dataset) -> None:
        self.model = build.build(spec).train()
        self.theta = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.x, self.y = {m: torch.from_numpy(a) for m, a in train.x.items()}, torch.from_numpy(train.y)
        self.mask = torch.ones(ROWS, len(self.x))
        self.clients = itertools.cycle(torch.randperm(len(self.y)).view(-1, ROWS))

    def step(self) -> None:
        """One client's update."""
        rows, loss = next(self.clients), nn.CrossEntropyLoss()
        x, y = {m: a[rows] for m, a in self.x.items()}, self.y[rows]
        self.model.load_state_dict(self.theta)
        optimiser = torch.optim.SGD(self.model.parameters(), lr=LR)
        for _ in range(EPOCHS):
            for batch in torch.split(torch.randperm(ROWS), BATCH):
                optimiser.zero_grad()
                loss(self.model({m: a[batch] for m, a in x.items()}, self.mask[batch]), y[batch]).backward()
                optimiser.step()
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.theta[name].lerp_(value, 0.5)


def _large_fleets() -> list[dict[str, Any]]:
    """Memory and time of 1,000 devices beside 100, with as many models in flight, and with ten times as many."""
    few, many, busy = (_large(devices, busy) for devices, busy in ((LARGE // 10, BUSY), (LARGE, BUSY), (LARGE, 80)))
    per_device = 1e3 * (many["peak_mb"] - few["peak_mb"]) / (LARGE - LARGE // 10)
    per_flight = 1e3 * (busy["peak_mb"] - many["peak_mb"]) / (80 - BUSY)
    return [
        _row(
            f"simulation.{LARGE}_devices", many["ms_per_update"], "ms/update", f"{LARGE // 10} devices",
            few["ms_per_update"] / many["ms_per_update"],
        ),
        _row(
            "simulation.memory_per_device", per_device, "kB", f"its own data, {many['data_kb']:.0f} kB",
            many["data_kb"] / per_device,
        ),
        _row(
            "simulation.memory_per_busy_device", per_flight, "kB", f"one model, {many['model_kb']:.0f} kB",
            many["model_kb"] / per_flight,
        ),
    ]  # fmt: skip


def _large(devices: int, busy: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.bench_simulation", "--devices", str(devices), "--busy", str(busy)]
    command += ["--updates", str(LARGE_UPDATES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def large(devices: int, updates: int, busy: int, workers: int) -> dict[str, float]:
    """Runs one fleet and returns what it took."""
    single_thread()
    spec, data = federation(devices)
    world = World(
        devices=devices, updates=updates, seed=1, partition="iid", fraction=busy / devices, profile=PROFILE,
        evaluate_every=10**9, workers=workers,
    )  # fmt: skip
    start = time.perf_counter()
    report = Simulation(spec, data, world).run()
    wall_s = time.perf_counter() - start
    return {
        "devices": devices, "updates": report.updates, "busy": busy, "workers": workers, "wall_s": wall_s,
        "ms_per_update": 1e3 * wall_s / report.updates, "mean_staleness": report.mean_staleness,
        "peak_mb": _peak_mb(),
        "data_kb": sum(a.nbytes for a in data.train.x.values()) / devices / 1e3,
        "model_kb": 4 * sum(m.params for m in build.layout(spec).values()) / 1e3,
    }  # fmt: skip


def _peak_mb() -> float:
    """Returns the most memory that this program has had; `ru_maxrss` would count the one that started it too."""
    (kb,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return float(kb) / 1e3


def _row(name: str, value: float, unit: str, reference: str, ratio: float) -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio}


def main() -> None:
    """Runs one fleet and prints what it took, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=LARGE)
    parser.add_argument("--updates", type=int, default=LARGE_UPDATES)
    parser.add_argument("--busy", type=int, default=BUSY, help="devices that train at a time")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    print(json.dumps(large(asked.devices, asked.updates, asked.busy, asked.workers)))


if __name__ == "__main__":
    main()

__all__ = ["federation", "large", "run"]

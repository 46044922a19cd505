"""The simulator beside a bare torch loop that does the same gradient steps, and what a large fleet costs.

The world: two modalities, 1-D CNN, 32 clients of 64 samples, 8 of them busy at a time, 5 epochs of batches of 32 under
FedAsync with the codec off, one torch thread per process. Everything that a run has is there: coordinator, admission,
journal, versions, chunks, virtual clock. The bare loop loads the global model, trains and mixes, client after client,
with `torch.optim.SGD`. One worker is measured in CPU time beside it, in alternating runs: on a busy machine wall time
says how often the core was lost. Two workers can only be measured in wall time, beside one worker in the next run; the
time runs from the 40th update to the last, so that starting the processes does not count.

`python -m tests.bench.bench_simulation --devices 1000 --updates 10000` runs one large fleet and prints time and memory;
`make bench` does it with fewer updates, in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from coordinator.preparation import Split, spec_of
from coordinator.simulation.profiles import WorldProfile
from coordinator.simulation.simulate import Simulation, World
from edge_sdk.core.records import Dataset
from edge_sdk.core.spec import CodecSpec, FederationSpec, TrainingSpec
from edge_sdk.learn.local_training import single_thread
from edge_sdk.models import build

DEVICES, BUSY, ROWS = 32, 8, 64
EPOCHS, BATCH, LR = 5, 32, 0.01
UPDATES, WARM, PAIRS = 160, 40, 3
LARGE, LARGE_UPDATES = 1000, 300
ROOT = Path(__file__).resolve().parents[2]
# Everybody is equally fast and has all data at once: 8 clients train at the same time, as long as they last.
PROFILE = WorldProfile(delay_s=0.0, bandwidth_low_kbps=1e9, bandwidth_high_kbps=1e9, slow_fraction=0.0)


def run() -> list[dict[str, Any]]:
    """Returns the rows of this benchmark."""
    threads = torch.get_num_threads()
    single_thread()
    try:
        return [*_beside_a_bare_loop(), *_large_fleets()]
    finally:
        torch.set_deterministic_debug_mode("default")
        torch.set_num_threads(threads)


def _beside_a_bare_loop() -> list[dict[str, Any]]:
    spec, data = federation(DEVICES)
    _bare(spec, data.train, WARM)
    cpu_ratios, cpu_ms, wall_ratios, rates = [], [], [], []
    for _ in range(PAIRS):
        bare_s = _cpu(lambda: _bare(spec, data.train, UPDATES - WARM)) / (UPDATES - WARM)
        one, two = (_timed(spec, data, World(**_world(), workers=workers)) for workers in (1, 2))
        cpu_ms.append(1e3 * one.cpu_s)
        cpu_ratios.append(bare_s / one.cpu_s)
        rates.append(1 / two.wall_s)
        wall_ratios.append(one.wall_s / two.wall_s)
    return [
        _row(
            "simulation.one_worker", statistics.median(cpu_ms), "ms/update",
            "bare torch loop, same steps, CPU time; at least 0.9", statistics.median(cpu_ratios),
        ),
        _row(
            "simulation.two_workers", statistics.median(rates), "updates/s", "one worker; at least 1.7",
            statistics.median(wall_ratios),
        ),
    ]  # fmt: skip


def _world() -> dict[str, Any]:
    return {
        "devices": DEVICES, "updates": UPDATES, "seed": 1, "partition": "iid", "fraction": BUSY / DEVICES,
        "profile": PROFILE, "evaluate_every": 10**9,
    }  # fmt: skip


@dataclass(slots=True)
class Watch:
    """Time per update between the WARM-th update and the last."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def __call__(self, _updates: int) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    @property
    def wall_s(self) -> float:
        """Seconds per update."""
        return (self.wall[-1] - self.wall[WARM - 1]) / (len(self.wall) - WARM)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of this process per update."""
        return (self.cpu[-1] - self.cpu[WARM - 1]) / (len(self.cpu) - WARM)


def _timed(spec: FederationSpec, data: Split, world: World) -> Watch:
    watch = Watch()
    Simulation(spec, data, world, progress=watch).run()
    return watch


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


def _bare(spec: FederationSpec, train: Dataset, updates: int) -> None:
    """Trains client after client from the global model and mixes what comes of it, with nothing around it."""
    model, loss = build.build(spec).train(), nn.CrossEntropyLoss()
    theta = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = {m: torch.from_numpy(a) for m, a in train.x.items()}, torch.from_numpy(train.y)
    mask, clients = torch.ones(ROWS, len(x)), torch.randperm(len(y)).view(-1, ROWS)
    for update in range(updates):
        rows = clients[update % len(clients)]
        mine, labels = {m: a[rows] for m, a in x.items()}, y[rows]
        model.load_state_dict(theta)
        optimiser = torch.optim.SGD(model.parameters(), lr=LR)
        for _ in range(EPOCHS):
            for batch in torch.split(torch.randperm(ROWS), BATCH):
                optimiser.zero_grad()
                loss(model({m: a[batch] for m, a in mine.items()}, mask[batch]), labels[batch]).backward()
                optimiser.step()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                theta[name].lerp_(value, 0.5)


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
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "data_kb": sum(a.nbytes for a in data.train.x.values()) / devices / 1e3,
        "model_kb": 4 * sum(m.params for m in build.layout(spec).values()) / 1e3,
    }  # fmt: skip


def _cpu(go: Callable[[], None]) -> float:
    start = time.process_time()
    go()
    return time.process_time() - start


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

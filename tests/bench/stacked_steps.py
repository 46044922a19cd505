"""Eight devices trained as one computation beside the loop over them, per encoder and batch size.

Two modalities, 64 rows per device, 5 epochs, one torch thread; the phase as a whole, from the values that come with the
job to those that go back. Loop and stack take turns, in CPU time; on a GPU by the clock, after it is done.

`python -m tests.bench.stacked_steps --devices 24` measures stacks of another size.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from coordinator.preparation import spec_of
from edge_sdk.core.messages import Plan
from edge_sdk.core.records import Arrival, Dataset, RoundData
from edge_sdk.core.spec import TrainingSpec
from edge_sdk.learn import local_training, stacked_training
from edge_sdk.learn.records import PhaseJob, RoundView
from edge_sdk.methods.base import find
from edge_sdk.models import build

ROWS, EPOCHS, REPEATS = 64, 5, 3
DEVICES = 8
WINDOWS: Mapping[str, tuple[int, ...]] = {
    "mlp_64": (64,), "mlp_561": (561,), "cnn1d_3x128": (3, 128), "cnn2d_12x12": (1, 12, 12), "cnn2d_28x28": (1, 28, 28),
}  # fmt: skip
RULE = find("fedavg").client_rule({})


def rows(devices: int = DEVICES) -> list[dict[str, Any]]:
    """Returns the rows of all encoders: on the CPU, and on a GPU where there is one."""
    found = [_row(name, batch, devices, "cpu") for name in WINDOWS for batch in (8, 32)]
    if not torch.cuda.is_available():
        print("simulation.stacked.*.cuda: not measured, torch finds no CUDA device")
        return found
    return found + [_row(name, batch, devices, "cuda") for name in WINDOWS for batch in (8, 32)]


def _row(name: str, batch: int, devices: int, place: str) -> dict[str, Any]:
    jobs = _jobs(WINDOWS[name], batch, devices)
    model = build.build(jobs[0].spec)
    clock = time.process_time if place == "cpu" else time.perf_counter
    loop = _timed(clock, lambda: [local_training.train(job, RULE, model) for job in jobs])
    stack = _timed(clock, lambda: stacked_training.train(jobs, RULE, model, place))
    next(loop), next(stack)  # the first times import, allocate and choose kernels
    pairs = [(next(loop), next(stack)) for _ in range(REPEATS)]
    steps = devices * EPOCHS * ROWS // batch
    return {
        "name": f"simulation.stacked.{name}.batch_{batch}" + (".cuda" if place != "cpu" else ""),
        "value": 1e3 * statistics.median(stacked for _, stacked in pairs) / steps, "unit": "ms/step",
        "reference": f"each of {devices} devices by itself",
        "ratio": statistics.median(alone / stacked for alone, stacked in pairs),
    }  # fmt: skip


def _timed(clock: Callable[[], float], work: Callable[[], object]) -> Any:
    while True:
        start = clock()
        work()
        yield clock() - start


def _jobs(window: tuple[int, ...], batch: int, devices: int) -> list[PhaseJob]:
    rng = np.random.default_rng(0)
    whole = {m: rng.standard_normal((devices * ROWS, *window), dtype=np.float32) for m in ("a", "b")}
    has = {m: np.ones(devices * ROWS, np.bool_) for m in whole}
    data = Dataset("noise", whole, rng.integers(0, 6, devices * ROWS), tuple("uvwxyz"), has)
    spec = spec_of(data, name="bench", method="fedavg", training=TrainingSpec(lr=0.01, epochs=EPOCHS, batch_size=batch))
    view = RoundView(Plan(data.modalities, EPOCHS, 0.01, batch), tuple(Arrival(m, 0, ROWS) for m in whole), (), ())
    (phase,) = RULE.schedule(view)
    start = build.initial_tensors(spec)
    jobs = []
    for number in range(devices):
        own = data.take(np.arange(number * ROWS, (number + 1) * ROWS))
        given = RoundData(np.arange(ROWS), own.y, own.x, own.has)
        jobs.append(PhaseJob(spec, "fedavg", phase, view, view.plan, start, {}, given, {}, {}, {}, number))
    return jobs


def main() -> None:
    """Prints the rows for stacks of one size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=DEVICES)
    asked = parser.parse_args()
    local_training.single_thread()
    for row in rows(asked.devices):
        print(
            f"{row['name']:<46} {row['value']:>8.3f} {row['unit']} {row['ratio']:>6.2f} × {row['reference']}",
            flush=True,
        )


if __name__ == "__main__":
    main()

__all__ = ["rows"]

"""Small federations, round sets and phase jobs for the tests of learning and methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_sdk.core.messages import Plan
from edge_sdk.core.records import Array, Arrival, ModelTensors, RoundData
from edge_sdk.core.spec import FederationSpec, MethodSpec, ModalitySpec, ModelSpec, TrainingSpec
from edge_sdk.learn import local_training
from edge_sdk.learn.records import Phase, PhaseJob, PhaseResult, RoundView, UpdateView
from edge_sdk.methods.base import find
from edge_sdk.models import build

NAMES = ("acc", "gyro", "mic")


def spec(
    modalities: int = 2, *, method: str = "mba", config: Mapping[str, Any] | None = None, **training: Any
) -> FederationSpec:
    """Returns a federation of feature vectors: 8 numbers per modality, 3 classes, D = 6."""
    return FederationSpec(
        name="test",
        modalities=tuple(ModalitySpec(name=m, shape=(8,), encoder_config={"hidden": 8}) for m in NAMES[:modalities]),
        classes=("a", "b", "c"),
        model=ModelSpec(feature_dim=6),
        method=MethodSpec(name=method, config=dict(config or {})),
        training=TrainingSpec(**{"lr": 0.1, "epochs": 2, "batch_size": 16, **training}),
    )


def round_data(n: int = 40, modalities: int = 2, *, seed: int = 0, first_index: int = 100) -> RoundData:
    """Returns rows whose class can be read off every modality."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(3, 8))
    y = rng.integers(0, 3, n)
    x = {m: (centres[y] + 0.5 * rng.normal(size=(n, 8))).astype(np.float32) for m in NAMES[:modalities]}
    return RoundData(np.arange(first_index, first_index + n), y, x, {m: np.ones(n, np.bool_) for m in x})


def view(
    here: tuple[str, ...], *, planned: tuple[str, ...] = NAMES[:2], absent: tuple[str, ...] = (),
    finished: tuple[Phase, ...] = (), epochs: int = 2, lr: float = 0.1, times_ns: tuple[int, ...] = (),
) -> RoundView:  # fmt: skip
    """Returns what a schedule sees; arrivals a second apart unless `times_ns` says otherwise."""
    times = times_ns or tuple(range(0, 10**9 * len(here), 10**9))
    arrivals = tuple(Arrival(m, t, 40) for m, t in zip(here, times, strict=True))
    return RoundView(Plan(planned, epochs, lr, 16), arrivals, absent, finished)


def job(
    spec: FederationSpec, phase: Phase, view: RoundView, *, data: RoundData | None = None,
    start: ModelTensors | None = None, current: ModelTensors | None = None, memory: Mapping[str, Array] | None = None,
    carry: Mapping[str, Array] | None = None, seed: int = 1,
) -> PhaseJob:  # fmt: skip
    """Returns a phase job with everything that a test does not care about filled in."""
    return PhaseJob(
        spec=spec, method=spec.method.name, phase=phase, view=view, plan=view.plan,
        start=build.initial_tensors(spec) if start is None else start, current=current or {},
        data=round_data(modalities=len(spec.modalities)) if data is None else data,
        memory=dict(memory or {}), carry=dict(carry or {}), extras={}, seed=seed,
    )  # fmt: skip


def train_phase(job: PhaseJob) -> PhaseResult:
    """Trains one phase with the method and the model that the spec names."""
    method = find(job.method)
    rule = method.client_rule(job.spec.method.config)
    return local_training.train(job, rule, build.build(job.spec, method.needs))


def train_round(
    spec: FederationSpec, order: tuple[str, ...], *, data: RoundData | None = None, start: ModelTensors | None = None,
    memory: Mapping[str, Array] | None = None, seed: int = 1,
) -> tuple[PhaseResult, list[PhaseResult]]:  # fmt: skip
    """Carries out a whole round as a trainer does, modalities arriving one after the other as phases end.

    Returns:
        The final phase's result, and the results of all phases.
    """
    rule = find(spec.method.name).client_rule(spec.method.config)
    results: list[PhaseResult] = []
    finished: list[Phase] = []
    here = 1
    while True:
        now = view(order[:here], planned=spec.modality_names, finished=tuple(finished), epochs=spec.training.epochs)
        phases = rule.schedule(now)
        if not phases:
            here += 1
            continue
        last = results[-1] if results else None
        result = train_phase(
            job(
                spec, phases[0], now, data=data, start=start, seed=seed,
                current=last.tensors if last else {}, carry=last.carry if last else {},
                memory=last.memory if last else memory,
            )
        )  # fmt: skip
        results.append(result)
        finished.append(phases[0])
        if phases[0].final:
            return result, results


def update_view(
    device: str, version: int, *, staleness: int = 0, modalities: tuple[str, ...] = NAMES[:2],
    distances: Mapping[str, float] | None = None,
) -> UpdateView:  # fmt: skip
    """Returns the header of an update of a device that trained these modalities."""
    return UpdateView(
        device=device, version=version, staleness=staleness,
        modules=(*(f"encoder.{m}" for m in modalities), "fusion"), modalities=modalities, num_samples=40, num_steps=6,
        payload={f"distance.{m}": np.asarray(d, np.float32) for m, d in (distances or {}).items()},
    )  # fmt: skip


def equal(a: ModelTensors, b: ModelTensors) -> bool:
    """Returns True if both hold the same modules with the same bits."""
    return a.keys() == b.keys() and all(
        np.array_equal(x, y, equal_nan=True)
        for m in a
        for x, y in zip((a[m].params, a[m].stats, a[m].counters), (b[m].params, b[m].stats, b[m].counters), strict=True)
    )

"""Small federations, round sets and phase jobs for the tests of learning and methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edge_sdk.codecs.wire import pack_array, unpack_array
from edge_sdk.core.messages import Plan
from edge_sdk.core.records import Array, Arrival, ModelTensors, RoundData, Segments
from edge_sdk.core.spec import FederationSpec, MethodSpec, ModalitySpec, ModelSpec, TrainingSpec
from edge_sdk.learn import aggregation, local_training, params, seeds
from edge_sdk.learn.records import (
    Answer,
    Assignment,
    Candidate,
    Cohort,
    Member,
    Phase,
    PhaseJob,
    PhaseResult,
    Pool,
    Query,
    RoundView,
    State,
    UpdateView,
)
from edge_sdk.methods.base import Method, SyncServerRule, find
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
        start=build.initial_tensors(spec, find(spec.method.name).needs) if start is None else start,
        current=current or {},
        data=round_data(modalities=len(spec.modalities)) if data is None else data,
        memory=dict(memory or {}), carry=dict(carry or {}), extras={}, seed=seed,
    )  # fmt: skip


def train_phase(job: PhaseJob) -> PhaseResult:
    """Trains one phase with the method and the model that the spec names."""
    method = find(job.method)
    rule = (method.query_rule if job.phase.asks else method.client_rule)(job.spec.method.config)
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


@dataclass
class Federation:
    """Devices and a synchronous server in one process: what `sync_round` works on, and leaves changed.

    A device has the modalities of its data; its private memory is kept from round to round.
    """

    spec: FederationSpec
    data: Mapping[str, RoundData]  # device → its rows
    seed: int = 1
    round: int = 0
    theta: dict[str, Segments] = field(default_factory=dict)  # {}: freshly built
    state: dict[str, Array] = field(default_factory=dict)  # of the server rule
    memory: dict[str, dict[str, Array]] = field(default_factory=dict)  # device → its client rule's
    asked: list[Query] = field(default_factory=list)  # in all rounds so far
    chosen: tuple[Assignment, ...] = ()  # in the last round

    def __post_init__(self) -> None:
        if not self.theta:
            self.theta = params.copy(self.rule.initial(build.initial_tensors(self.spec, self.method.needs)))
        self.state = self.state or dict(self.rule.init())

    @property
    def method(self) -> Method:
        return find(self.spec.method.name)

    @property
    def rule(self) -> SyncServerRule[Any]:
        rule = self.method.server_rule(self.spec.method.config, self.spec)
        assert isinstance(rule, SyncServerRule)
        return rule

    @property
    def fleet(self) -> tuple[Candidate, ...]:
        names = self.spec.modality_names
        return tuple(Candidate(d, tuple(m for m in names if m in self.data[d].x)) for d in sorted(self.data))


def sync_round(
    fed: Federation, *, size: int | None = None, late: tuple[str, ...] = (), silent: tuple[str, ...] = ()
) -> Cohort:  # fmt: skip
    """Carries out one synchronous round as a coordinator does: query, select, train, weigh.

    Args:
        fed: the federation; its model, state, memory and round number move on.
        size: K; every device by default.
        late: devices that do not come in time: they train, and nothing of it arrives.
        silent: devices that neither answer nor train.

    Returns:
        The cohort; where nobody came, nothing has been weighed.
    """
    rule, rng = fed.rule, np.random.default_rng(seeds.derive(fed.seed, fed.round, "round"))
    k = len(fed.data) if size is None else size
    answers = []
    queries = rule.query(fed.state, fed.fleet, k, rng)
    fed.asked += queries
    for query in (q for q in queries if q.device not in silent):
        have = {c.device: c.modalities for c in fed.fleet}[query.device]
        looked_at = tuple(m for m in have if m in query.modalities or not query.modalities)
        result = _carry_out(fed, query, looked_at, rule.extras(fed.state, query))
        fed.method.answers.check(result.payload, fed.spec)
        answers.append(Answer(query.device, looked_at, result.num_samples, result.payload))
    said = tuple(sorted(answers, key=lambda a: a.device))
    _patch(fed, rule.answered(fed.state, said))
    members = []
    fed.chosen = rule.select(fed.state, Pool(fed.round, fed.fleet, said, k), rng)
    for task in (t for t in fed.chosen if t.device not in silent):
        result = _carry_out(fed, task, task.modalities, rule.extras(fed.state, task))
        fed.method.uploads.check(result.payload, fed.spec)
        if task.device not in late:
            sizes = (result.num_samples, result.num_steps)
            members.append(Member(task.device, task.modalities, *sizes, result.payload, result.tensors))
    return weigh(fed, tuple(sorted(members, key=lambda m: m.device)))


def weigh(fed: Federation, members: tuple[Member, ...]) -> Cohort:
    """Lets the server rule weigh a cohort, carries out what it decided, and returns the cohort."""
    layout = build.layout(fed.spec, fed.method.needs)
    cohort = Cohort(fed.round, params.copy(fed.theta), members, layout)
    fed.round += 1
    if not members:
        return cohort
    weights, patch = fed.rule.weights(fed.state, cohort)
    made = fed.rule.replaced(fed.state, cohort)
    params.check(layout, made)
    aggregation.combine(fed.theta, layout, {m.device: m.tensors for m in members}, aggregation.checked(weights))
    fed.theta |= params.copy(made)
    _patch(fed, patch)
    return cohort


def _patch(fed: Federation, patch: State) -> None:
    """Changes the state; what it holds is read back from a journal's bytes."""
    assert all(v.dtype == np.float64 and np.isfinite(v).all() for v in patch.values())
    fed.state |= {key: unpack_array(pack_array(np.asarray(value))) for key, value in patch.items()}


def _carry_out(
    fed: Federation, task: Assignment | Query, modalities: tuple[str, ...], extras: Mapping[str, Array]
) -> PhaseResult:  # fmt: skip
    spec, asks = fed.spec, isinstance(task, Query)
    rule = (fed.method.query_rule if asks else fed.method.client_rule)(spec.method.config)
    epochs = task.epochs if asks or task.epochs else spec.training.epochs
    lr = spec.training.lr * spec.training.lr_decay**fed.round * (1.0 if asks else task.lr_scale)
    kept: dict[str, Any] = {"memory": fed.memory.get(task.device, {}), "carry": {}, "current": {}}
    done: list[Phase] = []
    while True:
        now = view(modalities, planned=modalities, finished=tuple(done), epochs=epochs, lr=lr)
        now = replace(now, plan=replace(now.plan, phase=task.phase, batch_size=spec.training.batch_size))
        step = (rule.inquire if asks else rule.schedule)(now)[0]
        work = job(
            spec, step, now, data=fed.data[task.device], start=fed.theta,
            seed=seeds.derive(fed.seed, task.device, fed.round), **kept,
        )  # fmt: skip
        model = build.build(spec, fed.method.needs)
        result = local_training.train(replace(work, extras=dict(extras)), rule, model)
        kept = {"memory": result.memory, "carry": result.carry, "current": result.tensors}
        done.append(step)
        if step.final:
            fed.memory[task.device] = result.memory
            own = {f"{kind}.{m}" for kind in ("encoder", "head") for m in modalities} | {"fusion", "gates"}
            assert result.tensors.keys() <= (set() if asks else own)
            return result


INCONGRUOUS: Mapping[str, tuple[str, ...]] = {
    "d0": NAMES, "d1": NAMES, "d2": NAMES, "d3": ("acc", "gyro"), "d4": ("gyro",),
}  # fmt: skip


def federation(
    method: str, *, config: Mapping[str, Any] | None = None, fleet: Mapping[str, tuple[str, ...]] = INCONGRUOUS,
    modalities: int = 3, seed: int = 0, **training: Any,
) -> Federation:  # fmt: skip
    """Returns a federation whose devices have different modalities, and 24 rows, 26, 28, …, in the order of names."""
    data = {}
    for number, (device, own) in enumerate(sorted(fleet.items())):
        whole = round_data(24 + 2 * number, modalities, seed=100 * seed + number)
        data[device] = replace(whole, x={m: whole.x[m] for m in own}, has={m: whole.has[m] for m in own})
    return Federation(spec(modalities, method=method, config=config, **training), data, seed)


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

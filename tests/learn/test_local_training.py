from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_sdk.core.errors import ShapeMismatch, TrainingError
from edge_sdk.core.records import Array, RoundData
from edge_sdk.core.spec import ModelSpec
from edge_sdk.learn import local_training, params
from edge_sdk.learn.records import Batch, ClientContext, Out, Phase, PhaseJob, PhaseResult
from edge_sdk.methods.base import ClientRule, NoConfig
from edge_sdk.models import build
from tests.helpers import learning

FUSED = Phase("fused", ("acc", "gyro"), ("encoder.acc", "encoder.gyro", "fusion"), epochs=2, final=True)


class Recorder(ClientRule[NoConfig]):
    """Notes what the loop does."""

    def __init__(self) -> None:
        super().__init__(NoConfig())
        self.calls: list[str] = []
        self.batches: list[Batch] = []

    def begin(self, ctx: ClientContext) -> None:
        self.calls.append("begin")

    def forward(self, ctx: ClientContext, batch: Batch) -> Out:
        self.calls.append("forward")
        self.batches.append(batch)
        return super().forward(ctx, batch)

    def after_backward(self, ctx: ClientContext, batch: Batch, out: Out) -> None:
        self.calls.append("after_backward")

    def end_epoch(self, ctx: ClientContext) -> None:
        self.calls.append(f"end_epoch {ctx.epoch}")

    def end(self, ctx: ClientContext) -> None:
        self.calls.append("end")
        ctx.memory["seen"] = np.zeros(1)
        ctx.carry["note"] = np.ones(1)

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        self.calls.append("payload")
        return {"n": np.zeros(1)}


def job(phase: Phase = FUSED, data: RoundData | None = None, **spec: object) -> PhaseJob:
    federation = learning.spec(method="fedasync", **spec)
    return learning.job(federation, phase, learning.view(("acc", "gyro")), data=data)


def run(work: PhaseJob, rule: local_training.Rule | None = None) -> PhaseResult:
    return local_training.train(work, rule or ClientRule(NoConfig()), build.build(work.spec, seed=9))


def test_hooks_in_order_and_what_comes_back() -> None:
    rule, work = Recorder(), job(data=learning.round_data(20))
    result = local_training.train(work, rule, build.build(work.spec))
    step = ["forward", "after_backward"]
    assert rule.calls == ["begin", *step * 2, "end_epoch 0", *step * 2, "end_epoch 1", "end", "payload"]
    assert (result.num_steps, result.num_samples) == (4, 20)
    assert set(result.tensors) == set(FUSED.train)
    assert set(result.memory) == {"seen"}
    assert set(result.carry) == {"note"}
    assert set(result.payload) == {"n"}
    assert work.memory == {}  # the job's own record stays


def test_every_row_once_per_epoch_in_another_order() -> None:
    rule = Recorder()
    run(job(data=learning.round_data(20)), rule)
    rows = [b.rows.tolist() for b in rule.batches]
    assert [len(r) for r in rows] == [16, 4, 16, 4]
    first, second = rows[0] + rows[1], rows[2] + rows[3]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


@pytest.mark.parametrize(
    ("steps", "sizes", "epochs"), [(1, [16], 1), (2, [16, 4], 1), (5, [16, 4, 16, 4, 16], 3), (6, [16, 4] * 3, 3)]
)
def test_steps_are_counted_instead_of_epochs(steps: int, sizes: list[int], epochs: int) -> None:
    rule = Recorder()
    result = run(job(replace(FUSED, steps=steps), learning.round_data(20)), rule)
    assert result.num_steps == steps  # what FedNova counts
    assert [len(b.rows) for b in rule.batches] == sizes
    assert [c for c in rule.calls if c.startswith("end_epoch")] == [f"end_epoch {i}" for i in range(epochs)]
    assert rule.calls[-2:] == ["end", "payload"]


def test_as_many_steps_as_epochs_have_are_the_same_bits() -> None:
    by_epochs = run(job(data=learning.round_data(20)))
    by_steps = run(job(replace(FUSED, steps=4), learning.round_data(20)))
    assert learning.equal(by_epochs.tensors, by_steps.tensors)
    assert by_epochs.loss == by_steps.loss


def test_the_loss_of_a_pass_cut_short_is_the_mean_of_its_rows() -> None:
    result = run(job(replace(FUSED, steps=1), learning.round_data(20)), rule := Recorder())
    model = build.build(learning.spec(method="fedasync"))
    params.load(model.named(), job().start)
    (batch,) = rule.batches
    with torch.no_grad():
        logits = model.fuse(model.train().encode(batch.x, ("acc", "gyro")), batch.mask)
    assert result.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, batch.y)), rel=1e-6)


def test_loss_falls() -> None:
    long = Phase("fused", FUSED.modalities, FUSED.train, epochs=30, final=True)
    assert run(job(long)).loss < 0.55  # half of ln 3


def test_same_job_same_bits_and_no_trace_in_the_global_generator() -> None:
    state = torch.get_rng_state()
    one = run(job())
    torch.rand(3)
    other = run(job())
    assert learning.equal(one.tensors, other.tensors)
    torch.set_rng_state(state)
    run(job())
    assert torch.equal(torch.get_rng_state(), state)


def test_seed_and_phase_change_the_batches() -> None:
    orders = []
    for phase, seed in ((FUSED, 1), (FUSED, 2), (Phase("other", FUSED.modalities, FUSED.train, 2, final=True), 1)):
        rule = Recorder()
        work = learning.job(learning.spec(method="fedasync"), phase, learning.view(("acc", "gyro")), seed=seed)
        run(work, rule)
        orders.append(rule.batches[0].rows.tolist())
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_only_modules_of_the_phase_are_trained() -> None:
    phase = Phase("fused", ("acc", "gyro"), ("encoder.acc",), epochs=1, final=True)
    work = job(phase)
    model = build.build(work.spec)
    result = local_training.train(work, ClientRule(NoConfig()), model)
    after = params.read(model.named())
    for name in ("encoder.gyro", "fusion"):
        assert learning.equal({name: after[name]}, {name: work.start[name]})
    assert not np.array_equal(after["encoder.acc"].params, work.start["encoder.acc"].params)
    assert set(result.tensors) == {"encoder.acc"}


def test_starts_from_the_start_version_whatever_the_model_held() -> None:
    work = job()
    model = build.build(work.spec, seed=5)
    first = local_training.train(work, ClientRule(NoConfig()), model)
    second = local_training.train(work, ClientRule(NoConfig()), model)  # the model holds the first result now
    assert learning.equal(first.tensors, second.tensors)


def test_keep_takes_modules_of_earlier_phases() -> None:
    anchor = Phase("anchor", ("acc",), ("encoder.acc",), epochs=1)
    fused = Phase("fused", ("acc", "gyro"), FUSED.train, epochs=0, final=True, keep=("encoder.acc",))
    spec = learning.spec(method="fedasync")
    now = learning.view(("acc", "gyro"))
    early = run(learning.job(spec, anchor, now))
    late = run(learning.job(spec, fused, now, current=early.tensors))
    assert learning.equal({"encoder.acc": late.tensors["encoder.acc"]}, early.tensors)


def test_results_of_early_phases_add_up() -> None:
    spec = learning.spec(3, method="fedasync")
    now = learning.view(("acc", "gyro"), planned=spec.modality_names)
    first = run(learning.job(spec, Phase("anchor", ("acc",), ("encoder.acc",), 1), now))
    second = run(learning.job(spec, Phase("anchor", ("gyro",), ("encoder.gyro",), 1), now, current=first.tensors))
    assert set(second.tensors) == {"encoder.acc", "encoder.gyro"}


def test_a_masked_modality_changes_nothing() -> None:
    data = learning.round_data(20)
    has = {"acc": data.has["acc"], "gyro": np.zeros(20, np.bool_)}
    noisy = {"acc": data.x["acc"], "gyro": data.x["gyro"] + 1e3}
    work = job(data=RoundData(data.indices, data.y, data.x, has))
    one, other = run(work), run(job(data=RoundData(data.indices, data.y, noisy, has)))
    assert learning.equal(one.tensors, other.tensors)
    assert learning.equal(
        {"e": one.tensors["encoder.gyro"]},
        {"e": work.start["encoder.gyro"]},
    )


def test_unlabelled_rows_and_rows_without_a_modality_are_left_out() -> None:
    data = learning.round_data(20)
    y = data.y.copy()
    y[:3] = -1
    has = {m: a.copy() for m, a in data.has.items()}
    has["acc"][5] = has["gyro"][5] = False
    has["acc"][6] = False
    rule = Recorder()
    result = run(job(data=RoundData(data.indices, y, data.x, has)), rule)
    seen = {r for b in rule.batches for r in b.rows.tolist()}
    assert seen == set(range(3, 20)) - {5}
    assert result.num_samples == 16
    row = next(b.mask[b.rows.tolist().index(6)] for b in rule.batches if 6 in b.rows.tolist())
    assert row.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (16, [16]), (17, [17]), (18, [16, 2]), (33, [16, 17])])
def test_a_single_last_row_joins_the_batch_before(n: int, sizes: list[int]) -> None:
    rows = torch.arange(n)
    parts = list(local_training.batches(rows, 16, torch.Generator().manual_seed(0)))
    assert [len(p) for p in parts] == sizes
    assert sorted(torch.cat(parts).tolist()) == list(range(n))


def test_one_row_can_be_trained_on() -> None:
    assert run(job(data=learning.round_data(1))).num_steps == 2


def test_nothing_to_train_on() -> None:
    data = learning.round_data(4)
    unlabelled = RoundData(data.indices, np.full(4, -1), data.x, data.has)
    with pytest.raises(TrainingError, match=r"none of 4 windows has a label and one of acc, gyro"):
        run(job(data=unlabelled))
    with pytest.raises(TrainingError, match=r"none of 0 windows"):
        run(job(data=learning.round_data(0)))
    with pytest.raises(TrainingError, match=r"reads 'gyro', the round set has acc"):
        run(job(data=RoundData(data.indices, data.y, {"acc": data.x["acc"]}, data.has)))


def test_divergence_stops_with_a_reason() -> None:
    data = learning.round_data(40)
    data.x["acc"][7] = np.inf
    with pytest.raises(TrainingError, match=r"the loss is nan after .* learning rate 0.1"):
        run(job(data=data))


def test_a_start_version_that_does_not_fit() -> None:
    wide = learning.spec(method="fedasync").model_copy(update={"model": ModelSpec(feature_dim=7)})
    start = build.initial_tensors(wide)
    work = learning.job(learning.spec(method="fedasync"), FUSED, learning.view(("acc", "gyro")), start=start)
    with pytest.raises(ShapeMismatch, match=r"encoder.acc.params: expected float32 \(142,\), found float32 \(151,\)"):
        run(work)


def test_full_pass_sees_all_rows_in_order_without_gradient() -> None:
    seen: list[torch.Tensor] = []

    class Passing(Recorder):
        def end(self, ctx: ClientContext) -> None:
            features = local_training.full_pass(ctx, lambda b: ctx.model.encode(b.x, ("acc",))["acc"])
            rows = local_training.full_pass(ctx, lambda b: b.rows)
            seen.extend([features, rows])

    data = learning.round_data(700)
    y = data.y.copy()
    y[10] = -1
    run(job(data=RoundData(data.indices, y, data.x, data.has)), Passing())
    features, rows = seen
    assert rows.tolist() == [r for r in range(700) if r != 10]
    assert features.shape == (699, 6)
    assert not features.requires_grad


def test_own_modules_are_trained_by_the_same_optimiser() -> None:
    weights: list[torch.Tensor] = []

    class Own(ClientRule[NoConfig]):
        def begin(self, ctx: ClientContext) -> None:
            ctx.own["scale"] = torch.nn.Linear(3, 3)
            weights.append(ctx.own["scale"].weight.detach().clone())

        def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
            logits = ctx.own["scale"](out.logits)
            yield 1.0, torch.nn.functional.cross_entropy(logits, batch.y)
            yield 0.5, logits.square().mean()

        def end(self, ctx: ClientContext) -> None:
            weights.append(ctx.own["scale"].weight.detach().clone())

    run(job(), Own(NoConfig()))
    assert not torch.equal(*weights)


def test_momentum_and_weight_decay_come_from_the_spec() -> None:
    plain = run(job())
    for change in ({"momentum": 0.9}, {"weight_decay": 0.1}):
        assert not learning.equal(plain.tensors, run(job(**change)).tensors)

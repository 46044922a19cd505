"""Several devices trained as one computation come to what each of them comes to by itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edge_sdk.core.errors import TrainingError
from edge_sdk.core.records import ModelTensors, RoundData
from edge_sdk.core.spec import FederationSpec, ModalitySpec
from edge_sdk.learn import local_training, stacked_training
from edge_sdk.learn.records import Batch, ClientContext, Effort, Out, Phase, PhaseJob, PhaseResult
from edge_sdk.methods.base import ClientRule, NoConfig, find
from edge_sdk.models import build
from tests.helpers import learning

FUSED = Phase("fused", ("acc", "gyro"), ("encoder.acc", "encoder.gyro", "fusion"), epochs=3, final=True)
SHAPES = {"mlp": (8,), "cnn1d": (3, 32), "cnn2d": (1, 12, 12)}


class Plain(ClientRule[NoConfig]):
    """The defaults, as a rule that says that it stacks."""

    def stacks(self, phase: Phase) -> bool:
        return True


def jobs(
    encoder: str = "mlp", *, phase: Phase = FUSED, count: int = 4, method: str = "fedavg", **training: float
) -> list[PhaseJob]:  # fmt: skip
    """Returns the same phase for some devices: other rows, other seeds, other start versions."""
    spec = learning.spec(method=method, **training)
    shaped = tuple(ModalitySpec(name=m.name, shape=SHAPES[encoder]) for m in spec.modalities)
    spec = spec.model_copy(update={"modalities": shaped})
    return [one(spec, phase, number) for number in range(count)]


def one(spec: FederationSpec, phase: Phase, number: int) -> PhaseJob:
    rng = np.random.default_rng(number)
    x = {m.name: rng.standard_normal((40, *m.shape), dtype=np.float32) for m in spec.modalities}
    has = {m: np.ones(40, np.bool_) for m in x}
    has["gyro"][number : number + 5] = False
    data = RoundData(np.arange(40), rng.integers(0, 3, 40), x, has)
    start = build.initial_tensors(spec, find(spec.method.name).needs, number)
    return learning.job(spec, phase, learning.view(("acc", "gyro")), data=data, start=start, seed=number)


def together(work: list[PhaseJob], rule: ClientRule | None = None) -> list[PhaseResult | TrainingError]:
    return stacked_training.train(work, rule or Plain(NoConfig()), model(work[0]))


def model(job: PhaseJob) -> build.FusedModel:
    return build.build(job.spec, find(job.method).needs, seed=9)


def close(a: ModelTensors, b: ModelTensors, start: ModelTensors) -> None:
    """Asserts that two trainings from one start are the same up to rounding, and went somewhere."""
    assert a.keys() == b.keys()
    for name in a:
        moved = float(np.abs(b[name].params - start[name].params).max())
        assert moved > 1e-3
        np.testing.assert_allclose(a[name].params, b[name].params, rtol=1e-4, atol=1e-3 * moved)


@pytest.mark.parametrize("training", [{}, {"momentum": 0.9, "weight_decay": 0.01}], ids=["plain", "momentum"])
@pytest.mark.parametrize("encoder", SHAPES)
def test_devices_come_to_what_the_loop_comes_to(encoder: str, training: dict[str, float]) -> None:
    work = jobs(encoder, **training)
    for job, found in zip(work, together(work), strict=True):
        alone = local_training.train(job, Plain(NoConfig()), model(job))
        assert isinstance(found, PhaseResult)
        close(found.tensors, alone.tensors, job.start)
        assert (found.num_samples, found.num_steps) == (alone.num_samples, alone.num_steps) == (40, 9)
        assert found.loss == pytest.approx(alone.loss, rel=1e-4)


def test_every_device_has_its_own_learning_rate() -> None:
    work = [replace(job, plan=replace(job.plan, lr=0.2 / (1 + k))) for k, job in enumerate(jobs())]
    for job, found in zip(work, together(work), strict=True):
        assert isinstance(found, PhaseResult)
        close(found.tensors, local_training.train(job, Plain(NoConfig()), model(job)).tensors, job.start)


def test_last_batches_of_different_lengths() -> None:
    """33 rows are batches of 16 and 17, 32 of 16 and 16, 30 of 16 and 14: two steps. Four of a kind are stacked."""
    work, counts = [], (33, 32, 30, 32, 32, 33, 32)
    for job, rows in zip(jobs(count=7, momentum=0.9, weight_decay=0.01), counts, strict=True):
        whole, cut = job.data, slice(rows)
        x, has = ({m: a[cut] for m, a in part.items()} for part in (whole.x, whole.has))
        work.append(replace(job, data=RoundData(whole.indices[cut], whole.y[cut], x, has)))
    assert len({stacked_training.key(job, Plain(NoConfig()), model(job)) for job in work}) == 1
    for job, found in zip(work, together(work), strict=True):
        alone = local_training.train(job, Plain(NoConfig()), model(job))
        assert isinstance(found, PhaseResult)
        close(found.tensors, alone.tensors, job.start)
        assert (found.num_samples, found.num_steps) == (alone.num_samples, 6)
        assert found.loss == pytest.approx(alone.loss, rel=1e-4)


@pytest.mark.parametrize("size", [1, 2, 16])
def test_the_number_of_batches_is_known_beforehand(size: int) -> None:
    for rows in (*range(1, 7), 15, 16, 17, 18, 31, 32, 33, 34):
        made = list(local_training.batches(torch.arange(rows), size, torch.Generator()))
        assert len(made) == local_training.steps_of_pass(rows, size)


def test_steps_in_place_of_epochs_and_modules_that_stay() -> None:
    phase = replace(FUSED, train=("encoder.gyro", "fusion"), steps=4, epochs=0)  # 3 steps a pass
    work = jobs(phase=phase)
    for job, found in zip(work, together(work), strict=True):
        alone = local_training.train(job, Plain(NoConfig()), model(job))
        assert isinstance(found, PhaseResult)
        assert found.tensors.keys() == {"encoder.gyro", "fusion"}
        assert found.num_steps == alone.num_steps == 4
        close(
            found.tensors, alone.tensors, job.start
        )  # each device's own encoder.acc was read, though nobody trains it


def test_one_that_diverges_fails_alone() -> None:
    work = jobs(count=4)
    work[1] = replace(work[1], plan=replace(work[1].plan, lr=1e30))
    first, second, third, _ = together(work)
    with pytest.raises(TrainingError) as alone:
        local_training.train(work[1], Plain(NoConfig()), model(work[1]))
    assert isinstance(second, TrainingError)
    assert str(second) == str(alone.value)
    for job, found in ((work[0], first), (work[2], third)):
        assert isinstance(found, PhaseResult)
        close(found.tensors, local_training.train(job, Plain(NoConfig()), model(job)).tensors, job.start)


def test_few_devices_are_trained_one_by_one() -> None:
    """Together they would be slower."""
    work = jobs(count=stacked_training.LEAST - 1)
    for job, found in zip(work, together(work), strict=True):
        assert isinstance(found, PhaseResult)
        assert learning.equal(found.tensors, local_training.train(job, Plain(NoConfig()), model(job)).tensors)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device: steps on a GPU are not tried")
@pytest.mark.parametrize("encoder", SHAPES)
def test_steps_on_a_gpu_come_to_what_the_loop_comes_to(encoder: str) -> None:
    work = jobs(encoder, momentum=0.9)
    found = stacked_training.train(work, Plain(NoConfig()), model(work[0]), "cuda")
    for job, result in zip(work, found, strict=True):
        assert isinstance(result, PhaseResult)
        alone = local_training.train(job, Plain(NoConfig()), model(job))
        for name, values in alone.tensors.items():
            np.testing.assert_allclose(result.tensors[name].params, values.params, rtol=1e-2, atol=1e-3)


def test_keys() -> None:
    """What has to be equal, and who is left to the loop."""
    rule, (a, b, c) = Plain(NoConfig()), jobs(count=3)
    whole = model(a)
    assert stacked_training.key(a, rule, whole) == stacked_training.key(b, rule, whole) is not None
    fewer = replace(c, data=replace(c.data, y=np.where(np.arange(40) < 9, -1, c.data.y)))  # nine without a label
    smaller = replace(c, plan=replace(c.plan, batch_size=8))
    longer = replace(c, phase=replace(c.phase, epochs=4))
    shorter = replace(c, plan=replace(c.plan, batch_size=64))  # a pass is one step, and nothing would be in common
    fewest = replace(shorter, data=fewer.data)
    assert stacked_training.key(shorter, rule, whole) != stacked_training.key(fewest, rule, whole)
    keys = {stacked_training.key(job, rule, whole) for job in (a, fewer, smaller, longer)}
    assert len(keys) == 4
    for job in (
        replace(a, effort=Effort(precision="bfloat16")),
        replace(a, phase=replace(FUSED, asks=True)),
        replace(a, data=replace(a.data, y=np.full(40, -1))),
        replace(a, phase=replace(FUSED, train=())),
    ):
        assert stacked_training.key(job, rule, whole) is None
    assert stacked_training.key(a, ClientRule(NoConfig()), whole) is None


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.BatchNorm1d(6), "fusion keeps running statistics"),
        (nn.Dropout(0.5), "fusion has dropout"),
    ],
)
def test_layers_that_cannot_be_stacked_are_left_to_the_loop(
    layer: nn.Module, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    (job,) = jobs(count=1)
    whole = model(job)
    whole.fusion.add_module("extra", layer)
    with caplog.at_level(logging.WARNING):
        assert stacked_training.key(job, Plain(NoConfig()), whole) is None
        assert stacked_training.key(job, Plain(NoConfig()), whole) is None
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == [why]  # once
    frozen = replace(job, phase=replace(FUSED, train=("encoder.acc",)))
    assert stacked_training.key(frozen, Plain(NoConfig()), whole) is not None  # it does not train, it only computes


def test_a_model_that_cannot_be_traced_is_left_to_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    class Choosy(Plain):
        def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
            for weight, term in super().loss_terms(ctx, batch, out):
                yield weight, term * 2 if float(term.detach()) > 1 else term

    work, rule = jobs(), Choosy(NoConfig())
    whole = model(work[0])
    with caplog.at_level(logging.WARNING):
        found = stacked_training.train(work, rule, whole)
    assert len(caplog.records) == 1
    assert "vmap" in caplog.text
    for job, result in zip(work, found, strict=True):
        assert isinstance(result, PhaseResult)
        assert learning.equal(result.tensors, local_training.train(job, rule, model(job)).tensors)
    assert stacked_training.key(work[0], rule, whole) is None  # next time it is not tried


def test_the_heads_of_anchors_are_each_devices_own() -> None:
    phase = Phase("anchor", ("acc",), ("encoder.acc",), epochs=2)
    work, rule = jobs(phase=phase, method="mba"), find("mba").client_rule({})
    assert rule.stacks(phase)
    for job, found in zip(work, stacked_training.train(work, rule, model(work[0])), strict=True):
        alone = local_training.train(job, rule, model(job))
        assert isinstance(found, PhaseResult)
        close(found.tensors, {"encoder.acc": alone.tensors["encoder.acc"]}, job.start)
        for kept, expected in ((found.memory, alone.memory), (found.carry, alone.carry)):
            assert kept.keys() == expected.keys()
            for name in kept:
                np.testing.assert_allclose(kept[name], expected[name], rtol=1e-3, atol=1e-4)

"""Held-out accuracy: fused under the mask, each modality alone with the others' features at zero."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from coordinator.config import EvaluateConfig
from coordinator.evaluate import Evaluation, evaluate, unimodal, without
from coordinator.service.evaluator import Evaluator
from coordinator.store import Stored
from coordinator.store.memory import MemoryStore
from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.compute import InlineCompute
from edge_sdk.core.messages import Published
from edge_sdk.core.records import VersionId
from edge_sdk.learn import params
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from tests.helpers.field import dataset, spec_of


def test_it_equals_a_plain_loop_over_the_rows_whatever_the_batches() -> None:
    spec, data = spec_of(), dataset(1100)
    data.has["gyro"][::3] = False
    tensors = build.initial_tensors(spec, seed=4)
    found = evaluate(spec, Needs(), tensors, data)
    model = build.build(spec)
    params.load(model.named(), tensors)
    model.eval()
    x = {m: torch.from_numpy(data.x[m]) for m in spec.modality_names}
    has = {m: torch.from_numpy(data.has[m].astype(np.float32)) for m in spec.modality_names}
    with torch.no_grad():
        fused = model(x, torch.stack([has["acc"], has["gyro"]], dim=1)).argmax(1).numpy()
        alone = model(x, torch.tensor([[0.0, 1.0]]).repeat(1100, 1)).argmax(1).numpy()
    assert found.n == 1100
    assert found.acc == np.mean(fused == data.y)
    rows = data.has["gyro"]
    assert found.acc_by_modality["gyro"] == np.mean(alone[rows] == data.y[rows])


def test_a_modality_that_the_data_lack_has_accuracy_zero_and_does_not_disturb() -> None:
    spec, data = spec_of(), dataset(50)
    lacking = replace(data, x={"acc": data.x["acc"]}, has={"acc": data.has["acc"]})
    found = evaluate(spec, Needs(), build.initial_tensors(spec), lacking)
    assert found.acc_by_modality["gyro"] == 0.0
    assert found.acc == found.acc_by_modality["acc"]


def test_without_a_modality_only_the_others_are_seen() -> None:
    spec, data = spec_of(), dataset(700)
    tensors = build.initial_tensors(spec, seed=4)
    alone = evaluate(spec, Needs(), tensors, data).acc_by_modality
    assert without(spec, Needs(), tensors, data) == {"acc": alone["gyro"], "gyro": alone["acc"]}
    assert alone["acc"] != alone["gyro"]


def test_at_most_so_many_rows_spread_over_the_set() -> None:
    spec, data = spec_of(), dataset(500)
    assert evaluate(spec, Needs(), build.initial_tensors(spec), data, max_rows=64).n == 64


def test_with_gates_no_modality_sees_another_one_that_is_masked() -> None:
    """Gates mix what the encoders see: encoded once and masked later, a modality alone would still know the others."""
    needs = Needs(heads=True, gates=True)
    spec, data = spec_of(), dataset(200)
    tensors = build.initial_tensors(spec, needs, seed=4)
    found = evaluate(spec, needs, tensors, data)
    blind = replace(data, x={"acc": data.x["acc"], "gyro": 100.0 - data.x["gyro"]})
    assert evaluate(spec, needs, tensors, blind).acc_by_modality["acc"] == found.acc_by_modality["acc"]


def test_acc_by_modality_in_three_ways() -> None:
    spec, train, test = spec_of(), dataset(300, seed=1), dataset(120, seed=2)
    tensors = build.initial_tensors(spec, seed=4)
    found = unimodal(spec, Needs(), tensors, train, test)
    zeros = evaluate(spec, Needs(), tensors, test).acc_by_modality
    assert found["zero_feature"] == zeros
    model = build.build(spec)
    params.load(model.named(), tensors)
    model.eval()
    with torch.no_grad():
        h, seen = (model.encode({"acc": torch.from_numpy(d.x["acc"])})["acc"].double().numpy() for d in (test, train))
    means = np.stack([seen[train.y == c].mean(0) for c in range(3)])
    near = ((h[:, None] - means[None]) ** 2).sum(2).argmin(1)
    assert found["nearest_prototype"]["acc"] == np.mean(near == test.y)
    assert set(found["linear_block"]) == {"acc", "gyro"}


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_versions_or_their_running_mean_are_tested_every_so_often(weight: float) -> None:
    """Thirteen versions, published faster than they can be tested at times; the mean sees all of them."""
    spec, data = spec_of(), dataset(60)
    models = [build.initial_tensors(spec, seed=n) for n in range(13)]
    done: list[tuple[int, Evaluation]] = []
    tested = {}

    async def main(clock: VirtualClock) -> None:
        store = MemoryStore(lineage="ab" * 16)

        async def took(stored: Stored, result: Evaluation) -> None:
            done.append((stored.id.number, result))
            assert evaluator.tested is not None
            tested[stored.id.number] = evaluator.tested

        config = EvaluateConfig(every_updates=5, running_mean=weight)
        evaluator = Evaluator(
            config, spec, Needs(), test=data, compute=InlineCompute(), store=store, done=took
        )  # fmt: skip
        async with clock.group() as group:
            group.start(evaluator.run(), name="evaluator")
            for n, tensors in enumerate(models):
                id_ = VersionId(store.lineage, n, f"{n:032x}")
                stored = Stored(Published(id_, 1, 1, n % 4, "0" * 32, "fp32"), n, updates=n)
                store.save_version(stored, tensors, b"x")
                evaluator.offer(stored, final=n == 12)
                if n % 3 == 0:
                    await clock.sleep(1.0)
            await evaluator.idle.wait()
            assert evaluator.in_use == frozenset()
            group.cancel()

    run_virtual(main)
    assert [number for number, _ in done] == [0, 5, 12]  # 10 gave way: it still waited when 12 came
    mean = {name: s.params.astype(np.float64) for name, s in models[0].items()}
    for n, tensors in enumerate(models):
        w = max(weight, 1 / (n + 1))
        mean = {name: (1 - w) * mean[name] + w * s.params for name, s in tensors.items()}
        if n in tested:
            assert all(np.allclose(tested[n][name].params, mean[name], atol=1e-6) for name in mean)
            assert evaluate(spec, Needs(), tested[n], data) == dict(done)[n]

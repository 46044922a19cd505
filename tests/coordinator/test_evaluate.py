"""Held-out accuracy: fused under the mask, each modality alone with the others' features at zero."""

from dataclasses import replace

import numpy as np
import torch

from coordinator.evaluate import evaluate, unimodal
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

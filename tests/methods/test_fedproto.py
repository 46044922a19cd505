from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edge_sdk.core.errors import ConfigError
from edge_sdk.learn import own_modules, params
from edge_sdk.learn.prototype_tables import Table
from edge_sdk.learn.records import ClientContext, Out, Samples
from edge_sdk.methods import fedproto
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import guards, learning

TABLES = {
    "prototypes.acc": np.array([[1] * 6, [3] * 6, [0] * 6], np.float32), "counts.acc": np.array([4, 1, 0]),
    "prototypes.gyro": np.zeros((3, 6), np.float32), "counts.gyro": np.array([0, 2, 0]),
}  # fmt: skip


def test_the_pull_by_hand() -> None:
    table = Table(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([True, False]))
    h = torch.tensor([[3.0, 1.0], [9.0, 9.0]], requires_grad=True)
    found = fedproto.pull(h, torch.tensor([0, 1]), table)
    assert float(found.detach()) == pytest.approx(((4 + 1) / 2 + 0) / 2)
    found.backward()
    assert h.grad is not None
    assert h.grad.tolist() == [[1.0, 0.5], [0.0, 0.0]]  # 2 (h − c) / (D n)


def terms(y: list[int], *, mask: list[list[float]], **config: Any) -> list[tuple[float, float]]:
    """Returns the loss terms of a batch with features of zeros in acc and ones in gyro."""
    spec = learning.spec(method="fedproto")
    rule = find("fedproto").client_rule(config)
    now, n = learning.view(("acc", "gyro")), len(y)
    work = replace(learning.job(spec, rule.schedule(now)[0], now), extras=TABLES)
    samples = Samples({}, torch.tensor(y), torch.tensor(mask), torch.arange(n))
    ctx = ClientContext(work, build.build(spec), samples, torch.Generator(), {}, {})
    rule.begin(ctx)
    out = Out({"acc": torch.zeros(n, 6), "gyro": torch.ones(n, 6)}, torch.zeros(n, 3))
    return [(w, float(t)) for w, t in rule.loss_terms(ctx, samples.batch(samples.rows), out)]


def test_the_loss_by_hand() -> None:
    both = [[1.0, 1.0]] * 2
    found = terms([0, 1], mask=both, lam=0.5)
    assert found[0] == (1.0, pytest.approx(np.log(3)))
    # acc: (1 + 9) / 2; gyro: class 0 has no prototype and counts as 0, class 1 lies at 1: (0 + 1) / 2
    assert found[1:] == [(0.5, pytest.approx(5.0)), (0.5, pytest.approx(0.5))]
    assert terms([0, 1], mask=[[1.0, 0.0], [0.0, 1.0]])[1:] == [(1.0, pytest.approx(1.0)), (1.0, pytest.approx(1.0))]
    assert len(terms([0, 1], mask=[[1.0, 0.0]] * 2)) == 2
    assert len(terms([0, 1], mask=both, lam=0.0)) == 1


def test_the_loss_with_prototype_cross_entropy_by_hand() -> None:
    found = terms([0, 1], mask=[[1.0, 1.0]] * 2, term="pce", lam=2.0)
    near, far = -np.sqrt(6.0), -3 * np.sqrt(6.0)  # distances of zeros from ones and from threes
    total = np.log(np.exp(near) + np.exp(far))
    assert found[1] == (2.0, pytest.approx(-(near - total + far - total) / 2, rel=1e-5))
    assert found[2] == (2.0, pytest.approx(0.0))  # gyro knows one class: the softmax over it is 1


def test_prototypes_go_up_are_merged_and_come_down() -> None:
    fed = learning.federation("fedproto")
    cohort = learning.sync_round(fed, size=3)
    for m in learning.NAMES:
        told = [c.payload for c in cohort.members if f"counts.{m}" in c.payload]
        counts = np.array([p[f"counts.{m}"] for p in told], float)
        mean = (
            sum(n[:, None] * p[f"prototypes.{m}"] for n, p in zip(counts, told, strict=True)) / counts.sum(0)[:, None]
        )
        np.testing.assert_allclose(fed.state[f"prototypes/{m}"], mean, atol=1e-6)
    down = fed.rule.extras(fed.state, fed.chosen[0])
    assert set(down) == {f"{k}.{m}" for k in ("prototypes", "counts") for m in learning.NAMES}
    before = params.copy(fed.theta)
    learning.sync_round(fed, size=3)
    plain = learning.federation("fedavg")
    plain.theta, plain.round = before, 1
    learning.sync_round(plain, size=3)
    assert not learning.equal(plain.theta, fed.theta)


def test_without_lambda_it_is_fedavg_to_the_last_bit() -> None:
    ours, theirs = learning.federation("fedproto", config={"lam": 0.0}), learning.federation("fedavg")
    for fed in (ours, theirs):
        learning.sync_round(fed, size=3)
        learning.sync_round(fed, size=3)
    assert learning.equal(ours.theta, theirs.theta)


def test_weights_that_are_not_shared_stay_on_the_device() -> None:
    fed = learning.federation("fedproto", config={"share_weights": False})
    before = params.copy(fed.theta)
    first = learning.sync_round(fed)
    kept = {d: dict(memory) for d, memory in fed.memory.items()}
    assert all(not m.tensors and m.payload for m in first.members)
    assert learning.equal(fed.theta, before)
    learning.sync_round(fed)
    own = own_modules.unpacked(kept["d4"], ("encoder.acc", "encoder.gyro", "fusion"), fedproto.OWN)
    assert own.keys() == {"encoder.gyro", "fusion"}  # d4 has gyro alone
    moved = own_modules.unpacked(fed.memory["d4"], ("encoder.gyro", "fusion"), fedproto.OWN)
    assert not learning.equal(moved, own)
    again = guards.play("fedproto", fed.data["d0"], config={"share_weights": False}, memory=kept["d0"])
    fresh = guards.play("fedproto", fed.data["d0"], config={"share_weights": False})
    assert not np.array_equal(again.payload["prototypes.acc"], fresh.payload["prototypes.acc"])
    assert again.loss < fresh.loss  # it went on from its own model


@pytest.mark.parametrize("term", ["mse", "pce"])
@pytest.mark.parametrize("what", guards.DATA)
def test_poor_data_with_prototypes(what: str, term: str) -> None:
    here = ("acc", "gyro") if what == "gaps" else learning.NAMES
    extras = guards.play("fedproto", guards.DATA[what](), here=here).payload
    assert guards.finite(
        guards.play("fedproto", guards.DATA[what](), here=here, extras=extras, config={"term": term})
    )  # fmt: skip


def test_meaningless_compositions() -> None:
    with pytest.raises(ConfigError, match=r"ogm_ge\+fedproto: the server of fedproto lives on"):
        find("ogm_ge+fedproto")
    with pytest.raises(ConfigError, match=r"fedproto\+fedavg: the clients of fedproto need"):
        find("fedproto+fedavg")

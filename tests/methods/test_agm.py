from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from edge_sdk.learn import local_training
from edge_sdk.learn.records import Batch, ClientContext, Out
from edge_sdk.methods import agm, fedavg
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import guards, learning


def test_ratios_and_coefficients_by_hand() -> None:
    r = agm.ratios(np.array([1.0, 3.0]))
    assert r.tolist() == pytest.approx([np.e**2, np.e**-2])
    assert agm.ratios(np.array([1.0, 2.0, 3.0])).tolist() == pytest.approx([np.e**1.5, 1.0, np.e**-1.5])
    assert agm.ratios(np.array([7.0])).tolist() == [1.0]
    k = agm.coefficients(np.array([2.0, 0.5]), np.array([1.0, 100.0]), alpha=0.5)
    assert k.tolist() == pytest.approx([np.exp(-0.5), np.exp(5.0)])  # the second is held at 10


def test_swapping_the_modalities_swaps_the_coefficients() -> None:
    s, means = np.array([0.3, 1.7]), np.array([0.9, 1.1])
    k = agm.coefficients(agm.ratios(s), agm.ratios(means), 1.0)
    swapped = agm.coefficients(agm.ratios(s[::-1]), agm.ratios(means[::-1]), 1.0)
    assert k.tolist() == swapped[::-1].tolist()


def games(names: tuple[str, ...], rows: int) -> dict[frozenset[str], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    subsets = [frozenset(n for i, n in enumerate(names) if k >> i & 1) for k in range(1, 2 ** len(names))]
    return {s: torch.randn(rows, 4, generator=generator) for s in subsets}


def test_two_modalities_are_the_formula_of_the_paper() -> None:
    f = games(("a", "v"), 5)
    everybody = {m: torch.ones(5, dtype=torch.bool) for m in "av"}
    o = agm.shapley(f, everybody)
    full, a, v = f[frozenset("av")], f[frozenset("a")], f[frozenset("v")]
    torch.testing.assert_close(o["a"], 0.5 * (full - v + a))
    torch.testing.assert_close(o["v"], 0.5 * (full - a + v))


def test_three_modalities_by_all_orders_of_arrival() -> None:
    f, names = games(("a", "v", "t"), 5), ("a", "v", "t")
    o = agm.shapley(f, {m: torch.ones(5, dtype=torch.bool) for m in names})
    for m in names:
        expected = torch.zeros(5, 4)
        for order in permutations(names):
            before = frozenset(order[: order.index(m)])
            expected += (f[before | {m}] - (f[before] if before else 0.0)) / 6
        torch.testing.assert_close(o[m], expected)
    torch.testing.assert_close(o["a"] + o["v"] + o["t"], f[frozenset(names)])


def test_a_row_is_shared_among_what_it_has() -> None:
    f, names = games(("a", "v", "t"), 3), ("a", "v", "t")
    has = {"a": torch.tensor([True, True, False]), "v": torch.tensor([True, False, False])}
    o = agm.shapley(f, {**has, "t": torch.tensor([True, True, True])})
    alone = agm.shapley({s: v[2:] for s, v in f.items() if s == {"t"}}, {"t": torch.ones(1, dtype=torch.bool)})
    torch.testing.assert_close(o["t"][2:], alone["t"])
    assert not o["v"][1].any()
    assert not o["a"][2].any()
    two = agm.shapley({s: v[1:2] for s, v in f.items() if "v" not in s}, dict.fromkeys("at", has["a"][:1]))
    torch.testing.assert_close(o["a"][1:2], two["a"])
    torch.testing.assert_close((o["a"] + o["v"] + o["t"])[0], f[frozenset(names)][0])


def test_the_gradient_is_scaled_and_the_value_is_not() -> None:
    x = torch.tensor([1.5, -2.0], requires_grad=True)
    y = agm.scaled_gradient(x, 0.25)
    assert torch.equal(y, x)
    y.sum().backward()
    assert x.grad.tolist() == [0.25, 0.25]


class Watched(agm.Client):
    """Keeps what it computed."""

    def begin(self, ctx: ClientContext) -> None:
        super().begin(ctx)
        self.seen: list = []
        self.pairs: list = []

    def forward(self, ctx: ClientContext, batch: Batch) -> Out:
        means, steps = ctx.scratch["means"].copy(), ctx.scratch["steps"].copy()
        out = super().forward(ctx, batch)
        self.seen.append((batch, out.logits.detach().clone(), ctx.scratch["seen"][1], means, steps))
        return out

    def after_backward(self, ctx: ClientContext, batch: Batch, out: Out) -> None:
        before = [p.grad.clone() for p in ctx.model.parameters()]
        super().after_backward(ctx, batch, out)
        self.pairs.append((before, [p.grad.clone() for p in ctx.model.parameters()]))


def play(rule: agm.Client, memory: dict | None = None) -> tuple:
    spec = learning.spec(2, method="agm")
    view = learning.view(("acc", "gyro"))
    job = learning.job(spec, rule.schedule(view)[0], view, memory=memory)
    return local_training.train(job, rule, build.build(spec)), job


def test_scores_and_their_running_means_by_independent_numpy() -> None:
    rule = Watched(agm.Config())
    result, job = play(rule)
    batch, logits, s, means, steps = rule.seen[0]
    model = build.build(job.spec)  # at the same initial values
    with torch.no_grad():
        h = model.encode(batch.x)
        zero = model.encode({m: torch.zeros_like(a) for m, a in batch.x.items()})
        full, a, v = (
            model.fuse(f, batch.mask)
            for f in (h, {"acc": h["acc"], "gyro": zero["gyro"]}, {"acc": zero["acc"], "gyro": h["gyro"]})
        )
    torch.testing.assert_close(logits, full, rtol=1e-5, atol=1e-6)
    for number, mono in enumerate((0.5 * (full - v + a), 0.5 * (full - a + v))):
        z = mono.double().numpy()
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        assert s[number] == pytest.approx(-np.log(p[np.arange(len(z)), batch.y.numpy()]).mean(), rel=1e-5)
    assert (means.tolist(), steps.tolist()) == ([0.0, 0.0], [0.0, 0.0])
    expected = np.mean([seen[2] for seen in rule.seen], axis=0)
    assert result.memory["agm/scores"].tolist() == pytest.approx(expected.tolist())
    assert result.memory["agm/steps"].tolist() == [result.num_steps] * 2
    again = play(Watched(agm.Config()), result.memory)[0]
    assert again.memory["agm/steps"].tolist() == [2 * result.num_steps] * 2


def test_gradients_are_clipped_where_the_fusions_exceed_the_limit() -> None:
    rule = Watched(agm.Config(clip=1e-3))
    play(rule)
    for _, after in rule.pairs:
        assert sum(float((g**2).sum()) for g in after) ** 0.5 <= 1e-3 * 1.001
    rule = Watched(agm.Config(clip=1e3))
    play(rule)
    assert all(torch.equal(b, a) for before, after in rule.pairs for b, a in zip(before, after, strict=True))


def tensors(name: str, **config: object) -> dict:
    return learning.train_round(learning.spec(2, method=name, config=config), ("acc", "gyro"))[0].tensors


def test_without_strength_it_is_fedavg() -> None:
    plain, same, other = tensors("fedavg"), tensors("agm", alpha=0.0, clip=1e9), tensors("agm", clip=1e9)
    for name in plain:
        np.testing.assert_allclose(same[name].params, plain[name].params, atol=2e-6)
        assert not np.allclose(other[name].params, plain[name].params, atol=1e-4)
    inverted = tensors("agm", clip=1e9, inverted=True)
    assert not learning.equal(inverted, other)


def test_extreme_scores_give_finite_gradients() -> None:
    spec = learning.spec(2, method="agm", config={"alpha": 5.0})
    memory = {"agm/scores": np.array([18.4, 0.0]), "agm/steps": np.array([5.0, 5.0])}
    assert guards.finite(learning.train_round(spec, ("acc", "gyro"), memory=memory)[0])


def test_a_modality_that_only_some_rows_have() -> None:
    data = learning.round_data(24, 3)
    data.has["mic"][::2] = False
    result = guards.play("agm", data)
    assert guards.finite(result)
    assert (result.memory["agm/steps"] > 0).all()
    alone = guards.play("agm", replace(data), here=("gyro",))
    assert alone.memory["agm/steps"].tolist() == [0.0, alone.num_steps, 0.0]


def test_rounds_and_names() -> None:
    fed = learning.federation("agm")
    for _ in range(2):
        learning.sync_round(fed)
    assert fed.memory["d0"]["agm/steps"][0] == 2 * 2 * 2  # two rounds of two epochs of 24 rows in batches of 16
    assert find("agm").server is fedavg.Server
    assert find("agm+fedasync").mode == "async"

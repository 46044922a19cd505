from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.core.errors import ConfigError
from edge_sdk.learn.records import Batch, ClientContext, Out
from edge_sdk.methods import fedasync, fedavg, ogm_ge
from edge_sdk.methods.base import find
from tests.helpers import learning


def test_coefficients_by_hand() -> None:
    assert ogm_ge.coefficients(np.array([0.6, 0.3]), 0.5) == pytest.approx([1 - math.tanh(1.0), 1.0])
    assert ogm_ge.coefficients(np.array([0.3, 0.6]), 0.5) == pytest.approx([1.0, 1 - math.tanh(1.0)])
    three = ogm_ge.coefficients(np.array([0.6, 0.5, 0.1]), 0.1)
    assert three == pytest.approx([1 - math.tanh(0.2), 1 - math.tanh(0.1 * 0.5 / 0.35), 1.0])
    assert ogm_ge.coefficients(np.array([0.4, 0.4]), 0.5).tolist() == [1.0, 1.0]
    assert ogm_ge.coefficients(np.array([0.4]), 0.5).tolist() == [1.0]


@given(st.lists(st.floats(1e-8, 1), min_size=2, max_size=5), st.floats(0, 50))
def test_at_most_all_but_one_are_held_back(values: list[float], alpha: float) -> None:
    """Invariant 10."""
    k = ogm_ge.coefficients(np.array(values), alpha)
    assert ((k > 0) & (k <= 1)).all()
    assert (k < 1).sum() <= len(values) - 1


def test_modulate() -> None:
    g = torch.tensor([1.0, 3.0, 5.0])
    assert ogm_ge.modulate(g, 0.5, noise=None).tolist() == [0.5, 1.5, 2.5]
    noise = torch.randn(3, generator=torch.Generator().manual_seed(4))
    expected = 0.5 * g + (2.0 + 1e-8) * noise  # std of 1, 3, 5 is 2
    torch.testing.assert_close(ogm_ge.modulate(g, 0.5, noise=torch.Generator().manual_seed(4)), expected)
    single = ogm_ge.modulate(torch.tensor([3.0]), 0.5, noise=torch.Generator().manual_seed(4))
    assert single.tolist() == [1.5]
    zero = ogm_ge.modulate(torch.zeros(1000), 1.0, noise=torch.Generator().manual_seed(4))
    assert float(zero.abs().max()) < 1e-6


class Watching(ogm_ge.Client):
    """Notes gradients before and after, and the scores that an independent reading of the batch gives."""

    def after_backward(self, ctx: ClientContext, batch: Batch, out: Out) -> None:
        names = [f"encoder.{m}" for m in out.features] + ["fusion"]
        before = {n: [p.grad.clone() for p in ctx.model.module(n).parameters()] for n in names}
        super().after_backward(ctx, batch, out)
        after = {n: [p.grad.clone() for p in ctx.model.module(n).parameters()] for n in names}
        linear = ctx.model.module("fusion").linear
        seen = {}
        for i, m in enumerate(out.features):
            w = linear.weight[:, 6 * i : 6 * i + 6].detach().numpy()
            z = out.features[m].detach().numpy() @ w.T + linear.bias.detach().numpy() / 2
            e = np.exp(z - z.max(1, keepdims=True))
            seen[m] = float((e / e.sum(1, keepdims=True))[np.arange(len(z)), batch.y.numpy()].sum())
        ctx.scratch.setdefault("seen", []).append((before, after, seen))
        self.seen = ctx.scratch["seen"]


def test_gradients_of_a_batch_are_scaled_as_an_independent_numpy_reading_says() -> None:
    from edge_sdk.learn import local_training
    from edge_sdk.models import build

    spec = learning.spec(method="ogm_ge")
    rule = Watching(ogm_ge.Config(alpha=0.5, noise=False))
    now = learning.view(("acc", "gyro"))
    local_training.train(learning.job(spec, rule.schedule(now)[0], now), rule, build.build(spec))
    held = 0
    for before, after, seen in rule.seen:
        r = {"acc": seen["acc"] / seen["gyro"], "gyro": seen["gyro"] / seen["acc"]}
        for m in ("acc", "gyro"):
            k = 1 - math.tanh(0.5 * r[m]) if r[m] > 1 else 1.0
            held += k < 1
            for b, a in zip(before[f"encoder.{m}"], after[f"encoder.{m}"], strict=True):
                torch.testing.assert_close(a, k * b, rtol=1e-4, atol=1e-7)
        assert all(torch.equal(b, a) for b, a in zip(before["fusion"], after["fusion"], strict=True))
    assert held == len(rule.seen)


def tensors(name: str, **client: object) -> dict:
    config = {"client": client} if client else {}
    return learning.train_round(learning.spec(method=name, config=config), ("acc", "gyro"))[0].tensors


def test_without_modulation_it_is_fedasync_to_the_last_bit() -> None:
    plain = tensors("fedasync")
    assert learning.equal(tensors("ogm_ge", alpha=0.0, noise=False), plain)
    assert learning.equal(tensors("ogm_ge", conv_only=True), plain)  # these encoders have no convolution
    assert not learning.equal(tensors("ogm_ge", noise=False), plain)
    assert not learning.equal(tensors("ogm_ge", alpha=0.0), plain)


def test_rounds_end_the_modulation() -> None:
    config = {"client": {"rounds": 2}}
    spec, memory = learning.spec(method="ogm_ge", config=config), {}
    plain, equal = tensors("fedasync"), []
    for _ in range(3):
        result = learning.train_round(spec, ("acc", "gyro"), memory=memory)[0]
        memory = result.memory
        equal.append(learning.equal(result.tensors, plain))
    assert equal == [False, False, True]


def test_the_published_name_is_the_composition() -> None:
    alias, composed = find("fed_ogm_ge_async"), find("ogm_ge+fedasync")
    assert (alias.client, alias.server, alias.server_config) == (ogm_ge.Client, fedasync.Server, fedasync.Config)
    assert (composed.client, composed.server, composed.server_config) == (
        alias.client,
        alias.server,
        alias.server_config,
    )
    server = alias.server_rule({"server": {"alpha": 0.5}}, learning.spec())
    rates, patch = server.rates({}, learning.update_view("d", 1))
    assert (set(rates.by_module.values()), patch) == ({0.5}, {})


def test_with_the_server_of_fedavg_it_is_fed_ogm() -> None:
    alias, composed = find("fed_ogm"), find("ogm_ge+fedavg")
    assert (alias.mode, alias.client, alias.server) == ("sync", ogm_ge.Client, fedavg.Server)
    assert (composed.client, composed.server, composed.config) == (alias.client, alias.server, alias.config)
    still = {"client": {"alpha": 0.0, "noise": False}}
    ours, moved = (learning.federation("fed_ogm", config=config) for config in (still, {}))
    plain = learning.federation("fedavg")
    for fed in (ours, moved, plain):
        learning.sync_round(fed, size=3)
        learning.sync_round(fed, size=3)
    assert learning.equal(ours.theta, plain.theta)
    assert not learning.equal(moved.theta, plain.theta)


def test_the_server_of_mba_is_refused_for_it_lives_on_distances() -> None:
    with pytest.raises(ConfigError, match=r"ogm_ge\+mba: the server of mba lives on distance"):
        find("ogm_ge+mba")

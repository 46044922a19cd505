from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_sdk.learn import probes
from edge_sdk.learn.records import ClientContext, Samples
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import learning


def test_a_window_is_held_out_in_every_round() -> None:
    index = np.arange(5000)
    held = probes.held_out(index, 0.2, 0)
    assert held.mean() == pytest.approx(0.2, abs=0.02)
    order = np.random.default_rng(0).permutation(5000)[:100]
    assert np.array_equal(probes.held_out(order, 0.2, 0), held[order])
    other = probes.held_out(index, 0.2, 1)
    assert (held & other).mean() == pytest.approx(0.04, abs=0.02)  # seeds choose independently
    assert not probes.held_out(index, 0.0, 0).any()


def test_split_leaves_something_to_train_on() -> None:
    rows = torch.tensor([3, 5, 8])
    train, held = probes.split(rows, np.arange(9), fraction=0.5, seed=0)
    assert sorted([*train.tolist(), *held.tolist()]) == [3, 5, 8]
    train, held = probes.split(rows, np.arange(9), fraction=1.0, seed=0)
    assert (train.tolist(), held.tolist()) == ([3], [5, 8])


def test_head_losses_by_hand() -> None:
    z = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    losses = probes.head_losses(
        [z, z], torch.tensor([0, 1]), [torch.tensor([True, True]), torch.tensor([False, True])]
    )  # fmt: skip
    assert losses[:, 0].tolist() == pytest.approx([np.log(2), np.log(4 / 3)])
    assert torch.isnan(losses[0, 1])
    assert losses[1, 1] == pytest.approx(np.log(4 / 3))


def test_mean_losses_puts_the_rows_back_and_skips_what_does_not_count() -> None:
    spec = learning.spec(method="fedasync")
    now = learning.view(("acc", "gyro"))
    phase = find("fedasync").client_rule({}).schedule(now)[0]
    samples = Samples({}, torch.tensor([0, 1, 2]), torch.ones(3, 2), torch.arange(3))
    ctx = ClientContext(learning.job(spec, phase, now), build.build(spec), samples, torch.Generator(), {}, {})
    values = torch.tensor([[1.0, torch.nan, torch.nan], [9.0, 9.0, 9.0], [3.0, 4.0, torch.nan]])
    means = probes.mean_losses(ctx, torch.tensor([0, 2]), lambda batch: values[batch.rows])
    assert means[:2].tolist() == [2.0, 4.0]
    assert np.isnan(means[2])
    assert ctx.samples is samples

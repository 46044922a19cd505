from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.sgd import sgd

from edge_sdk.learn.sgd import Sgd


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_same_bits_as_torch(momentum: float, weight_decay: float) -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(4))]
    theirs = [p.detach().clone() for p in ours]
    mine = Sgd(ours, 0.1, momentum=momentum, weight_decay=weight_decay)
    buffers: list[torch.Tensor | None] = [None, None]
    for _ in range(5):
        mine.zero_grad()
        ((ours[0] ** 3).sum() + (ours[1] ** 2).sum()).backward()
        grads = [p.grad.clone() for p in ours]
        mine.step()
        sgd(
            theirs, grads, buffers, has_sparse_grad=False, foreach=False, weight_decay=weight_decay,
            momentum=momentum, lr=0.1, dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_without_a_gradient_nothing_moves() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimiser = Sgd([used, unused], 0.1, momentum=0.9, weight_decay=0.1)
    used.sum().backward()
    optimiser.step()
    assert unused.tolist() == [1.0, 1.0]
    assert used.tolist() == pytest.approx([0.89, 0.89])

"""Stochastic gradient descent, as `torch.optim.SGD` computes it.

Written out because creating any torch optimiser imports torch's compiler, which costs a training child one to two
seconds and some 100 MB for nothing. A test holds it against torch's own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Sgd:
    """SGD with momentum (dampening 0, no Nesterov) and L2 weight decay.

    Args:
        parameters: what is trained; those without a gradient in a step stay as they are.
        lr: learning rate.
        momentum: 0 keeps no buffer.
        weight_decay: times the value is added to the gradient.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self._velocity: dict[nn.Parameter, torch.Tensor] = {}

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter against its gradient."""
        moved: list[torch.Tensor] = []
        directions = []
        for p in self.parameters:
            if p.grad is not None:
                moved.append(p)
                directions.append(self._direction(p, p.grad))
        if moved:  # in one call: dozens of small ones are a noticeable part of a small model's step
            self._move(moved, directions)

    def _move(self, moved: list[torch.Tensor], directions: list[torch.Tensor]) -> None:
        torch._foreach_add_(moved, directions, alpha=-self.lr)

    def _direction(self, p: nn.Parameter, grad: torch.Tensor) -> torch.Tensor:
        if self.weight_decay:
            grad = grad.add(p, alpha=self.weight_decay)
        if not self.momentum:
            return grad
        if p in self._velocity:
            return self._velocity[p].mul_(self.momentum).add_(grad)
        self._velocity[p] = grad.clone()
        return self._velocity[p]


__all__ = ["Sgd"]

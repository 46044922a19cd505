"""FedProx: local training that stays near the model it started from.

Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
arXiv:1812.06127, Algorithm 2.
Differs from the source: all clients train the plan's epochs (the source lets each stop at its own inexactness), and
clients are drawn uniformly and weighted by samples, as FedAvg does.

    client   g ← g + μ (θ − θ_t)            every trained parameter, the gradient of μ/2 ‖θ − θ_t‖²
    server   as FedAvg
"""

from __future__ import annotations

import torch
from pydantic import Field

from edge_sdk.core.spec import Model
from edge_sdk.learn.records import Batch, ClientContext, Out
from edge_sdk.methods import fedavg
from edge_sdk.methods.base import ClientRule, Method


class Config(Model):
    """Options of FedProx's clients."""

    mu: float = Field(default=1.0, ge=0)  # μ; the source uses 0.001 to 1, BMSFed's experiments 1 to 2


def pull(grad: torch.Tensor, w: torch.Tensor, start: torch.Tensor, mu: float) -> torch.Tensor:
    """Returns g + μ(w − w_t), all of one shape."""
    return grad + mu * (w - start)


class Client(ClientRule[Config]):
    """Fused training, pulled back towards the model that was received."""

    def begin(self, ctx: ClientContext) -> None:
        live = [p for name in ctx.phase.train for p in ctx.model.module(name).parameters()]
        ctx.scratch["pairs"] = [(p, p.detach().clone()) for p in live] if self.config.mu else []

    @torch.no_grad()
    def after_backward(self, ctx: ClientContext, batch: Batch, out: Out) -> None:
        for p, start in ctx.scratch["pairs"]:
            if p.grad is not None:
                p.grad = pull(p.grad, p, start, self.config.mu)


METHOD = Method("fedprox", Config, Client, fedavg.Server, source="arXiv:1812.06127")

__all__ = ["METHOD", "Client", "Config", "pull"]

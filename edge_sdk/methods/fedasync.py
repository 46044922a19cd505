"""FedAsync, with an optional proximal client: the asynchronous baseline (Fed-Concat-Async).

Source: Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", arXiv:1903.03934, Algorithm 1.
Differs from the source: the proximal term is off by default (rho_prox = 0), alpha = 0.9 (source: about 0.6), and the
client waits for all its modalities before it trains their concatenation.

    client   θ_k  = argmin f_k(θ) + rho_prox/2 ‖θ − θ_t‖²
    server   θ   ← (1 − r) θ + r θ_k,   r = alpha · s(τ)
             s(τ) = 1 | (τ + 1)^−a | 1 if τ ≤ b else 1 / (a(τ − b) + 1)

`modalities = "available"` trains at once on what is there: the biased alternative to waiting, as a baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field

from edge_sdk.core.errors import Reason, UpdateRejected
from edge_sdk.core.spec import Model
from edge_sdk.learn import params, staleness
from edge_sdk.learn.records import Batch, ClientContext, Out, Phase, Rates, RoundView, State, UpdateView
from edge_sdk.methods.base import AsyncServerRule, ClientRule, Method, fused_phase


class Config(Model):
    """Options of FedAsync."""

    alpha: float = Field(default=0.9, gt=0, le=1)
    staleness: Literal["constant", "polynomial", "hinge"] = "polynomial"
    a: float = Field(default=0.5, ge=0)  # exponent of the polynomial
    hinge_a: float = Field(default=10.0, ge=0)
    hinge_b: float = Field(default=4.0, ge=0)
    rho_prox: float = Field(default=0.0, ge=0)
    max_staleness: int = Field(default=0, ge=0)  # updates older than this are dropped; 0: none
    modalities: Literal["all", "available"] = "all"


class Client(ClientRule[Config]):
    """Plain training of the fused model, near the start version if rho_prox is set."""

    def schedule(self, view: RoundView) -> tuple[Phase, ...]:
        if self.config.modalities == "available" and view.here:
            return (fused_phase(view),)
        return super().schedule(view)

    def stacks(self, phase: Phase) -> bool:
        return not self.config.rho_prox

    def begin(self, ctx: ClientContext) -> None:
        if self.config.rho_prox:
            ctx.scratch["live"] = [p for name in ctx.phase.train for p in ctx.model.module(name).parameters()]
            ctx.scratch["start"] = [p.detach().clone() for p in ctx.scratch["live"]]

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        yield from super().loss_terms(ctx, batch, out)
        if self.config.rho_prox:
            yield self.config.rho_prox / 2, params.sq_dist(ctx.scratch["live"], ctx.scratch["start"])


class Server(AsyncServerRule[Config]):
    """One mixing rate for all modules, smaller for staler updates."""

    def rates(self, state: State, update: UpdateView) -> tuple[Rates, State]:
        c, tau = self.config, update.staleness
        if c.max_staleness and tau > c.max_staleness:
            raise UpdateRejected(Reason.STALE, f"staleness {tau} is above max_staleness = {c.max_staleness}")
        decay: Mapping[str, Callable[[], float]] = {
            "constant": lambda: staleness.constant(tau),
            "polynomial": lambda: staleness.polynomial(tau, c.a),
            "hinge": lambda: staleness.hinge(tau, c.hinge_a, c.hinge_b),
        }
        return Rates.same(update.modules, c.alpha * decay[c.staleness]()), {}


METHOD = Method("fedasync", Config, Client, Server, source="arXiv:1903.03934")

__all__ = ["METHOD", "Client", "Config", "Server"]

"""ABC-Async: an additive classifier, trained block by block while the client waits, and a server that adds changes.

Source: none, this project's own. Its parts are known (uni-modal losses on blocks of the fusion, block-coordinate steps,
adding changes); whether their combination is new was not searched for.

    z_A  = b + Σ_{m∈A} W_m φ_m(x_m)                          (B1)  ψ with zero features for what is missing; z_m = z_{m}
    ℓ    = CE(z_S, y) + lam Σ_{m∈S} CE(z_m, y)               (B2)  S: the modalities that a row has
    early   each m as it arrives, except the last: epochs_early epochs of CE(z_m, y) on φ_m, W_m, b
    final   epochs of (B2) on everything, from where the early steps left the local copy
    server  s = alpha0 (τ + 1)^−a;   θ ← θ + s Δ_n           (B3)  "delta";   "mix": θ ← (1 − s) θ + s θ_n, as FedAsync

The sums of (B2) are means over a batch: CE(z_m) over its rows that have m, 0 where none has.

    users   θ̄ ← (1 − μ_t) θ̄ + μ_t θ,   μ_t = max(μ, 1/(t + 1))   (B4)  not here: `running_mean` of inference, evaluation

a = 1, where the definition has 0.5 as MBA does: of K equally fast clients each update is K − 1 versions old, s = α0/K,
and what they bring together moves θ by α0 of their mean change, whatever K is. With 0.5 the step grows as √K.

Differs from the definition: a; θ is published, and the mean of (B4) is kept by whoever uses the versions: off by
default (μ = 1), on with `running_mean = 0.1` in [inference] of a device, [evaluate] of a coordinator, or `simulate`.
A fusion that is not linear has z_m = ψ(0, …, h_m, …, 0), and only the weights that read m stand for W_m: what lies
behind them moves in every early step, as b does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol, cast

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from pydantic import Field

from edge_sdk.core.spec import Model
from edge_sdk.learn import staleness
from edge_sdk.learn.records import Batch, ClientContext, Out, Phase, Rates, RoundView, State, UpdateView
from edge_sdk.methods.base import AsyncServerRule, ClientRule, Method, fused_phase

EARLY = "early"
_OPS = {"delta": "add", "mix": "mix"}


class _Fusion(Protocol):
    def reading(self, modality: str) -> list[tuple[torch.Tensor, slice]]:
        """Returns the weights that read one modality, and which of their last dimension's entries do."""


class Config(Model):
    """Options of ABC-Async."""

    lam: float = Field(default=1.0, ge=0)  # λ, weight of the uni-modal terms
    epochs_early: int | None = Field(default=None, ge=0)  # E_w; not given: as many as the plan says; 0: no early steps
    alpha0: float = Field(default=0.9, gt=0, le=1)
    a: float = Field(default=1.0, ge=0)  # exponent of the staleness decay
    server: Literal["delta", "mix"] = "delta"


class Client(ClientRule[Config]):
    """Block-coordinate steps while waiting, then every subset's classifier at once."""

    def schedule(self, view: RoundView) -> tuple[Phase, ...]:
        epochs = view.plan.epochs if self.config.epochs_early is None else self.config.epochs_early
        early = view.in_order if view.waiting else view.in_order[:-1]
        phases = tuple(_early(m, epochs) for m in early) if epochs else ()
        todo = tuple(phase for phase in phases if phase not in view.finished)
        if view.waiting or not view.here:
            return todo
        trained = dict.fromkeys(module for phase in (*view.finished, *todo) for module in phase.train)
        return (*todo, fused_phase(view, keep=tuple(trained)))

    def stacks(self, phase: Phase) -> bool:
        return True

    def begin(self, ctx: ClientContext) -> None:
        if ctx.phase.name == EARLY:
            ctx.scratch["others"] = [(w, w.detach().clone()) for w in self._others(ctx)]

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        yield from super().loss_terms(ctx, batch, out)  # early: the phase reads m alone, so these logits are z_m
        if ctx.phase.name == EARLY or not self.config.lam:
            return
        for m, h in out.features.items():
            has = batch.mask[:, ctx.model.modalities.index(m)]  # (B,)
            each = F.cross_entropy(ctx.model.fuse({m: h}, batch.mask), batch.y, reduction="none")  # (B,)
            yield self.config.lam, (has * each).sum() / has.sum().clamp(min=1.0)

    def end(self, ctx: ClientContext) -> None:
        """Puts the other blocks back: they had no gradient, but momentum or weight decay may move all of a tensor."""
        with torch.no_grad():
            for weight, start in ctx.scratch.get("others", ()):
                weight.copy_(start)

    def _others(self, ctx: ClientContext) -> list[torch.Tensor]:
        """Returns W_k of the modalities that an early phase does not read, views of the live weights."""
        fusion = cast(_Fusion, ctx.model.module("fusion"))
        others = [k for k in ctx.model.modalities if k not in ctx.phase.modalities]
        return [weight[..., columns] for k in others for weight, columns in fusion.reading(k)]


def _early(m: str, epochs: int) -> Phase:
    """Returns the steps on φ_m, W_m, b, in the local copy that earlier ones left."""
    return Phase(EARLY, (m,), (f"encoder.{m}", "fusion"), epochs, keep=("fusion",))


class Server(AsyncServerRule[Config]):
    """One rate for all modules, smaller for staler updates: of the change, or of the model."""

    def rates(self, state: State, update: UpdateView) -> tuple[Rates, State]:
        c = self.config
        return Rates.same(update.modules, c.alpha0 * staleness.polynomial(update.staleness, c.a), _OPS[c.server]), {}


METHOD = Method("abc_async", Config, Client, Server, "this project's own")

__all__ = ["METHOD", "Client", "Config", "Server"]

"""AGM: adaptive gradient modulation by what each modality adds to the fused logits. Alone, in rounds as FedAvg.

Source: Li, Li, Hu, Lei, Li, Zhang, "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation",
ICCV 2023, arXiv:2308.07686, in the form of the authors' code; a baseline of BMSFed.

    f(S)   logits with the inputs of all modalities outside S set to zero, in evaluation mode unless S is everything
    o_m  = Σ_{S ∌ m} |S|! (M − |S| − 1)! / M! (f(S ∪ m) − f(S)),  f(∅) = 0      Shapley value; Σ_m o_m = f(all)
    s_m  = mean_i −log max(softmax(o_m)_{y_i}, 1e-8)                             rows that have m
    r_m  = exp(mean of the other s − s_m);   r̂_m the same of the running means ŝ before this batch
    κ_m  = exp(alpha · min(r̂_m − r_m, 10))          the gradient that flows back through o_m is multiplied by it
    ŝ_m ← ŝ_m (t − 1)/t + s_m / t                    over all steps t of this device so far

M = 2: o_a = ½(f(a, v) − f(0, v) + f(a, 0)).  Where a gradient of the fusion exceeds `clip` in magnitude, the
gradient of the step is clipped to that norm.

Differs from the source: any number of modalities; in a row only the modalities that it has are players; ŝ and t are
kept per device; r̂ is 1 until every modality of a batch has a running mean. A re-implementation (BMSFed's) inverts the
exponents of r and r̂, so that a better modality is amplified: `inverted`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import factorial

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.spec import Model
from edge_sdk.learn import scores
from edge_sdk.learn.records import Batch, ClientContext, Out
from edge_sdk.methods import fedavg
from edge_sdk.methods.base import ClientRule, Method

MEANS, STEPS = "agm/scores", "agm/steps"  # ŝ (M,) and t (M,) of a device, in its memory
SMALLEST = 1e-8  # probability

Floats = NDArray[np.float64]


class Config(Model):
    """Options of AGM's clients."""

    alpha: float = Field(default=1.0, ge=0, le=5)  # strength; the source uses 0.2 to 2.5
    clip: float = Field(default=1.0, gt=0)  # of the norm of a step's gradient
    inverted: bool = False  # r_m = exp(s_m − mean of the other s)


def ratios(s: Floats) -> Floats:
    """Returns r_m = exp(mean of the other s − s_m), (M,) -> (M,); 1 where there is no other."""
    if len(s) < 2:
        return np.ones_like(s)
    r: Floats = np.exp((s.sum() - s) / (len(s) - 1) - s)
    return r


def coefficients(r: Floats, reference: Floats, alpha: float) -> Floats:
    """Returns κ_m = exp(alpha · min(r̂_m − r_m, 10)), (M,), (M,) -> (M,)."""
    k: Floats = np.exp(alpha * np.minimum(reference - r, 10.0))
    return k


def shapley(values: Mapping[frozenset[str], torch.Tensor], has: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns o_m (B, C) per modality; a row that lacks m has 0 there, and they sum to f(all that the row has).

    Args:
        values: f(S) (B, C) for every subset S of the modalities but the empty one.
        has: modality → bool (B,) rows that have it.
    """
    players = torch.stack(list(has.values())).sum(dim=0)  # (B,)
    contributions = {m: torch.zeros_like(next(iter(values.values()))) for m in has}
    for with_m, value in values.items():
        inside = torch.stack([has[m] for m in with_m]).all(dim=0)  # rows for which S ∪ m are players
        weight = torch.tensor([_weight(len(with_m) - 1, n) for n in range(len(has) + 1)])[players] * inside  # (B,)
        for m in with_m:
            gain = value - values[with_m - {m}] if len(with_m) > 1 else value
            contributions[m] = contributions[m] + weight[:, None] * gain
    return contributions


def _weight(size: int, players: int) -> float:
    """Returns |S|! (n − |S| − 1)! / n!; 0 for more members than players."""
    if size >= players:
        return 0.0
    return factorial(size) * factorial(players - size - 1) / factorial(players)


def scaled_gradient(x: torch.Tensor, k: float) -> torch.Tensor:
    """Returns x to the last bit, with k times its gradient."""
    return x.detach() + k * (x - x.detach())


class Client(ClientRule[Config]):
    """Fused training in which gradients are shared out anew among the modalities."""

    def begin(self, ctx: ClientContext) -> None:
        modalities = len(ctx.spec.modalities)
        ctx.scratch["means"] = np.array(ctx.memory.get(MEANS, np.zeros(modalities)))
        ctx.scratch["steps"] = np.array(ctx.memory.get(STEPS, np.zeros(modalities)))

    def forward(self, ctx: ClientContext, batch: Batch) -> Out:
        out = super().forward(ctx, batch)
        here = scores.present(batch, ctx.spec.modality_names)
        has = {m: here[m] for m in ctx.phase.modalities if here[m].any()}
        mono = shapley(self._masked(ctx, batch, out, has), has)
        s = np.array([_score(mono[m][rows], batch.y[rows]) for m, rows in has.items()])
        columns = [ctx.spec.modality_names.index(m) for m in has]
        known = bool(ctx.scratch["steps"][columns].all())
        sign = -1.0 if self.config.inverted else 1.0
        r, reference = ratios(sign * s), ratios(sign * ctx.scratch["means"][columns]) if known else np.ones(len(s))
        k = coefficients(r, reference, self.config.alpha)
        ctx.scratch["seen"] = columns, s
        parts = [scaled_gradient(mono[m], k_m) for m, k_m in zip(has, k.tolist(), strict=True)]
        return Out(out.features, torch.stack(parts).sum(dim=0))

    def _masked(
        self, ctx: ClientContext, batch: Batch, out: Out, has: Mapping[str, torch.Tensor]
    ) -> dict[frozenset[str], torch.Tensor]:
        """Returns f(S) (B, C) for every subset but the empty one; where S is all that a row has, its fused logits."""
        ctx.model.train(mode=False)
        seen = ctx.model.encode(batch.x, tuple(has))
        blank = ctx.model.encode({m: torch.zeros_like(batch.x[m][:1]) for m in has}, tuple(has))
        values = {}
        for size in range(1, len(has) + 1):
            for chosen in combinations(has, size):
                features = {m: seen[m] if m in chosen else blank[m].expand_as(seen[m]) for m in has}
                whole = torch.stack([~rows | (m in chosen) for m, rows in has.items()]).all(dim=0)
                values[frozenset(chosen)] = torch.where(
                    whole[:, None], out.logits, ctx.model.fuse(features, batch.mask)
                )
        for name in ctx.phase.train:
            ctx.model.module(name).train()
        return values

    def after_backward(self, ctx: ClientContext, batch: Batch, out: Out) -> None:
        columns, s = ctx.scratch["seen"]
        ctx.scratch["steps"][columns] += 1
        t = ctx.scratch["steps"][columns]
        ctx.scratch["means"][columns] = ctx.scratch["means"][columns] * (t - 1) / t + s / t
        fusion = [p.grad for p in ctx.model.module("fusion").parameters() if p.grad is not None]
        if any(float(grad.abs().max()) > self.config.clip for grad in fusion):
            trained = [p for name in ctx.phase.train for p in ctx.model.module(name).parameters()]
            torch.nn.utils.clip_grad_norm_(trained, self.config.clip)

    def end(self, ctx: ClientContext) -> None:
        ctx.memory[MEANS], ctx.memory[STEPS] = ctx.scratch["means"], ctx.scratch["steps"]


def _score(logits: torch.Tensor, y: torch.Tensor) -> float:
    """Returns mean −log max(softmax_y, SMALLEST): (B, C), (B,) -> scalar."""
    chosen = torch.softmax(logits.detach().double(), dim=1).gather(1, y[:, None])
    return float(-chosen.clamp_min(SMALLEST).log().mean())


METHOD = Method("agm", Config, Client, fedavg.Server, "arXiv:2308.07686")

__all__ = ["METHOD", "Client", "Config", "coefficients", "ratios", "scaled_gradient", "shapley"]

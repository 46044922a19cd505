"""Gradient-Blending, online, one super-epoch per local round. Alone it mixes as FedAsync does.

Source: Wang, Tran, Feiszli, "What Makes Training Multi-Modal Classification Networks Hard?", CVPR 2020,
arXiv:1905.12681; with the server of FedAsync it is published as Fed-G-Blend-Async.

    M + 1 heads: one per modality, and the fused one;   L = Σ_i w_i ℓ_i
    before (n) and after (N) a local round, on training rows T and held-out rows V:
    ΔG_i = L^V_i(n) − L^V_i(N),   ΔO_i = (L^V_i(N) − L^T_i(N)) − (L^V_i(n) − L^T_i(n))
    w_i ∝ max(ΔG_i, 0) / max(ΔO_i², floor),  Σ w_i = 1        for this device's next local round

Differs from the source: weights are measured once per local round and used in the next one of the same device, uniform
in its first; they sum to 1 (the source's Z makes them sum to 2, which only scales the learning rate); heads that got
worse have weight 0, ΔO² has a floor, and if nothing is left, or nothing could be measured, weights are uniform. The
heads are shared and mixed like the rest of the model. A fifth of the windows, chosen by window number, is held out and
never trained on. Modalities that are not there leave their weight to the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.spec import Model
from edge_sdk.learn import probes
from edge_sdk.learn.records import Batch, ClientContext, Needs, Out, Phase, RoundView
from edge_sdk.methods import fedasync
from edge_sdk.methods.base import ClientRule, Method

WEIGHT = "g_blend/weight/{}"  # of a head, in a device's memory


class Config(Model):
    """Options of Gradient-Blending's clients."""

    validation: float = Field(default=0.2, gt=0, lt=1)  # share of windows held out
    validation_seed: int = Field(default=0, ge=0)
    floor: float = Field(default=1e-6, gt=0)  # smallest ΔO²
    min_weight: float = Field(default=0.0, ge=0, lt=1)  # of every head, before normalising; 0.01 steadies small sets


def blend_weights(
    gain: NDArray[np.float64], overfit: NDArray[np.float64], *, floor: float = 1e-6, least: float = 0.0
) -> NDArray[np.float64]:
    """Returns w_i, summing to 1, from ΔG and ΔO (H,); a head that could not be measured (NaN) has weight 0."""
    return probes.shares(probes.quotients(gain, overfit, floor), least)


class Client(ClientRule[Config]):
    """Training of all heads at once, weighted by how well each generalised in the last round."""

    @property
    def held_out(self) -> float:
        return self.config.validation

    def schedule(self, view: RoundView) -> tuple[Phase, ...]:
        phases = super().schedule(view)
        return tuple(replace(p, train=(*p.train, *(f"head.{m}" for m in p.modalities))) for p in phases)

    def begin(self, ctx: ClientContext) -> None:
        config, scratch = self.config, ctx.scratch
        scratch["all"] = ctx.samples
        train, held = probes.split(
            ctx.samples.rows, ctx.job.data.indices, fraction=config.validation, seed=config.validation_seed
        )
        ctx.samples = replace(ctx.samples, rows=train)
        scratch["heads"] = (*(f"head.{m}" for m in ctx.phase.modalities), "fusion")
        uniform = np.full(len(scratch["heads"]), 1.0 / len(scratch["heads"]))
        known = np.array([float(ctx.memory.get(WEIGHT.format(h), uniform)[0]) for h in scratch["heads"]])
        scratch["weights"] = known / known.sum() if known.sum() > 0 else uniform
        scratch["held"], scratch["before"] = held, self._probe(ctx, held)

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        yield from probes.weighted(probes.model_losses(ctx, batch, out), ctx.scratch["weights"].tolist())

    def end(self, ctx: ClientContext) -> None:
        before = ctx.scratch["before"]
        after = self._probe(ctx, ctx.scratch["held"])
        if before is not None and after is not None:
            weights = blend_weights(
                *probes.growth(before, after), floor=self.config.floor, least=self.config.min_weight
            )
            for name, weight in zip(ctx.scratch["heads"], weights.tolist(), strict=True):
                ctx.memory[WEIGHT.format(name)] = np.array([weight])
        ctx.samples = ctx.scratch["all"]

    def _probe(self, ctx: ClientContext, held: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Returns mean (training, held-out) losses per head, None without held-out rows."""
        if not len(held):
            return None
        losses = partial(_losses, self, ctx)
        return probes.mean_losses(ctx, ctx.samples.rows, losses), probes.mean_losses(ctx, held, losses)


def _losses(rule: Client, ctx: ClientContext, batch: Batch) -> torch.Tensor:
    return probes.model_losses(ctx, batch, rule.forward(ctx, batch))


METHOD = Method(
    "g_blend", Config, Client, fedasync.Server, "arXiv:1905.12681",
    needs=Needs(heads=True), server_config=fedasync.Config,
)  # fmt: skip

__all__ = ["METHOD", "Client", "Config", "blend_weights"]

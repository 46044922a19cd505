"""OGM-GE: on-the-fly gradient modulation with generalisation enhancement. Alone it mixes as FedAsync does.

Source: Peng, Wei, Deng, Wang, Hu, "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022,
arXiv:2203.15332; with the server of FedAsync it is published as Fed-OGM-GE-Async.

    s_m = mean_i softmax(W_m h_{i,m} + b/M)_{y_i}             rows that have modality m
    r_m = s_m / mean of the other scores                      M = 2: r_a = s_a / s_v = 1 / r_v
    k_m = 1 − tanh(alpha r_m) if r_m > 1 else 1
    g  ← k_m g + N(0, σ²),  σ = std(g) before scaling         every gradient tensor g of encoder m

Differs from the source: any number of modalities (r_m compares with the mean of the others); every parameter of an
encoder is modulated, not only convolution kernels (`conv_only` for those: tensors of three or more dimensions); scores
are means, not sums, so that rows without a modality do not count against it; a fusion that is not linear scores
ψ(0, …, h_m, …, 0). A client does not know when training ends: `rounds` counts a device's own local rounds with
modulation (0: all of them), where the source modulates half of its epochs. k_m is at least 1e-6.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.spec import Model
from edge_sdk.learn import local_rounds, scores
from edge_sdk.learn.records import Batch, ClientContext, Out
from edge_sdk.methods import fedasync
from edge_sdk.methods.base import ClientRule, Method

ROUNDS = "ogm_ge/rounds"  # local rounds of this device so far, in its memory


class Config(Model):
    """Options of OGM-GE's clients."""

    alpha: float = Field(default=0.1, ge=0)  # strength of the modulation; the source uses 0.1 to 0.8
    noise: bool = True  # GE
    conv_only: bool = False
    rounds: int = Field(default=0, ge=0)  # local rounds with modulation; 0: all


def coefficients(values: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Returns k_m in (0, 1] for scores s_m, (M,) -> (M,)."""
    r = scores.ratios(values)  # equal scores may differ from 1 by rounding
    k: NDArray[np.float64] = np.where(r > 1.0 + 1e-12, np.maximum(1.0 - np.tanh(alpha * r), 1e-6), 1.0)
    return k


def modulate(grad: torch.Tensor, k: float, *, noise: torch.Generator | None) -> torch.Tensor:
    """Returns k·g, plus N(0, σ²) with σ the standard deviation of g (0 for a single number)."""
    if noise is None:
        return k * grad
    sigma = float(grad.std()) + 1e-8 if grad.numel() > 1 else 0.0
    return k * grad + sigma * torch.randn(grad.shape, generator=noise)


class Client(ClientRule[Config]):
    """Fused training in which the modalities that do best learn more slowly."""

    def begin(self, ctx: ClientContext) -> None:
        ctx.scratch["active"] = local_rounds.within(ctx.memory, ROUNDS, self.config.rounds)

    def after_backward(self, ctx: ClientContext, batch: Batch, out: Out) -> None:
        if not ctx.scratch["active"] or len(out.features) < 2:
            return
        noise = ctx.rng if self.config.noise else None
        for m, k in self._coefficients(ctx, batch, out).items():
            for p in ctx.model.module(f"encoder.{m}").parameters():
                if p.grad is not None and (p.dim() >= 3 or not self.config.conv_only):
                    p.grad = modulate(p.grad, k, noise=noise)

    def _coefficients(self, ctx: ClientContext, batch: Batch, out: Out) -> dict[str, float]:
        """Returns k_m of the modalities that some row of the batch has."""
        with torch.no_grad():
            logits = scores.unimodal_logits(ctx.model, out.features)
        rows = {m: r for m, r in scores.present(batch, ctx.spec.modality_names).items() if m in logits and r.any()}
        values = np.array([scores.true_class_score(logits[m][r], batch.y[r]) for m, r in rows.items()])
        return dict(zip(rows, coefficients(values, self.config.alpha).tolist(), strict=True))

    def end(self, ctx: ClientContext) -> None:
        local_rounds.count(ctx.memory, ROUNDS, self.config.rounds)


METHOD = Method("ogm_ge", Config, Client, fedasync.Server, "arXiv:2203.15332", server_config=fedasync.Config)

__all__ = ["METHOD", "Client", "Config", "coefficients", "modulate"]

"""PMR: prototypical modal rebalance, over prototypes that the server keeps (Fed-PMR-Async).

Source: Fan, Xu, Wang, Wang, Guo, "PMR: Prototypical Modal Rebalance for Multimodal Learning", CVPR 2023,
arXiv:2211.07089; its asynchronous form is a baseline of MBA, whose paper says "decayed aggregation" of prototypes.

    client   s_m = mean_i softmax(−‖h_{i,m} − c_m‖)_{y_i},   r_m = mean of the other scores / s_m
             coef_m = clip(r_m − 1, 0, 1)                    no gradient; only the slower modalities are stimulated
             L = CE + strength · Σ_m coef_m · CE(−‖h_m − c_m‖, y) − entropy_weight · H_d
             H_d = mean_i entropy of softmax(−‖h_{i,d} − c_d‖),  d = the modality of the largest score   (PER)
             reports c_{n,m} (means of h_m by class, after training, evaluation mode) and their counts
    server   θ ← (1 − r) θ + r θ_n,   r = alpha (τ + 1)^−a
             c_{j,m} ← c_{n,j,m} if nobody had class j, else (1 − κ) c_{j,m} + κ c_{n,j,m},
             κ = (1 − momentum)(τ + 1)^−a

Differs from the source: any number of modalities; prototypes come from the whole local set and from all clients; κ
falls with staleness as the rate of the weights does; the public code has the constant `strength` in the place of the
clipped coefficient (`coefficient = "constant"`: for the modalities whose coefficient is not 0). Classes without a
prototype are masked out of the softmax, and rows of such a class have no term. `rounds` counts a device's own local
rounds with the stimulation (0: all), where the source stimulates in the first two thirds. PER, which slows the dominant
modality in the first epochs, is off (it is absent from the public code too); its first epochs are the device's first
`entropy_rounds` local rounds. Until the server has prototypes, CE alone. Scores are means over the rows that have the
modality.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from edge_sdk.core.records import Array
from edge_sdk.core.spec import Model
from edge_sdk.learn import local_rounds, prototype_tables, prototypes, staleness
from edge_sdk.learn.records import Batch, ClientContext, Out, Rates, State, UpdateView
from edge_sdk.methods.base import AsyncServerRule, ClientRule, Method, PayloadField, PayloadSchema

ROUNDS = "pmr/rounds"  # local rounds of this device so far, in its memory


class Config(Model):
    """Options of PMR."""

    alpha: float = Field(default=0.9, gt=0, le=1)  # mixing rate of the weights
    a: float = Field(default=0.5, ge=0)  # exponent of the staleness decay
    momentum: float = Field(default=0.2, ge=0, le=1)  # what an old prototype keeps; ε of the source
    strength: float = Field(default=1.0, ge=0)  # α of the source, 1 to 3
    coefficient: Literal["ratio", "constant"] = "ratio"
    rounds: int = Field(default=0, ge=0)  # local rounds with the stimulation; 0: all
    entropy_weight: float = Field(default=0.0, ge=0)  # μ of PER; 0: off
    entropy_rounds: int = Field(default=1, ge=0)  # local rounds with PER; 0: all


def kappa(tau: float, momentum: float, a: float) -> float:
    """Returns κ = (1 − momentum)(τ + 1)^−a."""
    return (1.0 - momentum) * staleness.polynomial(tau, a)


class Client(ClientRule[Config]):
    """Fused training in which slow modalities are drawn towards the prototypes of their classes."""

    def begin(self, ctx: ClientContext) -> None:
        c = self.config
        pulls, slows = (local_rounds.within(ctx.memory, ROUNDS, n) for n in (c.rounds, c.entropy_rounds))
        ctx.scratch["strength"] = c.strength if pulls else 0.0
        ctx.scratch["entropy"] = c.entropy_weight if slows else 0.0
        ctx.scratch["tables"] = (
            prototype_tables.received(ctx.job.extras, ctx.phase.modalities) if pulls or ctx.scratch["entropy"] else {}
        )

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        yield from super().loss_terms(ctx, batch, out)
        logits = prototype_tables.batch_logits(ctx.scratch["tables"], out.features, batch, ctx.spec.modality_names)
        coefficients = prototype_tables.stimulation(logits, constant=self.config.coefficient == "constant")
        yield from prototype_tables.terms(logits, coefficients, strength=ctx.scratch["strength"])
        yield from prototype_tables.entropy_terms(logits, ctx.scratch["entropy"])

    def end(self, ctx: ClientContext) -> None:
        c = self.config
        local_rounds.count(ctx.memory, ROUNDS, c.rounds, c.entropy_rounds if c.entropy_weight else 0)

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        return prototype_tables.measured(prototype_tables.features(ctx), ctx.num_classes)


class Server(AsyncServerRule[Config]):
    """FedAsync's mixing, and one table of prototypes per modality.

    State: "prototypes/<m>" (C, D); "counts/<m>" (C,) samples reported so far, 0 for a class without a prototype.
    """

    def extras(self, state: State, device: str) -> dict[str, Array]:
        return prototype_tables.sent(state, self.spec.modality_names)

    def rates(self, state: State, update: UpdateView) -> tuple[Rates, State]:
        c, patch = self.config, {}
        empty = np.zeros((len(self.spec.classes), self.spec.model.feature_dim))
        for m in self.spec.modality_names:
            if f"prototypes.{m}" in update.payload and f"counts.{m}" in update.payload:
                patch[f"prototypes/{m}"], patch[f"counts/{m}"] = prototypes.follow(
                    state.get(f"prototypes/{m}", empty), state.get(f"counts/{m}", empty[:, 0]),
                    new=np.asarray(update.payload[f"prototypes.{m}"], np.float64),
                    counts=np.asarray(update.payload[f"counts.{m}"], np.float64),
                    kappa=kappa(update.staleness, c.momentum, c.a),
                )  # fmt: skip
        return Rates.same(update.modules, c.alpha * staleness.polynomial(update.staleness, c.a)), patch

    def figures(self, state: State) -> dict[str, float]:
        known = [m for m in self.spec.modality_names if f"counts/{m}" in state]
        return {f"prototypes.{m}": float((state[f"counts/{m}"] > 0).sum()) for m in known}


UPLOADS = PayloadSchema(
    (PayloadField("prototypes.{modality}", ("C", "D")), PayloadField("counts.{modality}", ("C",), "int64", low=0))
)
METHOD = Method("pmr", Config, Client, Server, "arXiv:2211.07089", UPLOADS, sends=("prototypes",))

__all__ = ["METHOD", "Client", "Config", "Server", "kappa"]

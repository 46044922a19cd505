"""FedPMR: prototypical modal rebalance with the device's own prototypes, and FedAvg around it.

Source: Fan, Xu, Wang, Wang, Guo, "PMR: Prototypical Modal Rebalance for Multimodal Learning", CVPR 2023,
arXiv:2211.07089, as a baseline of BMSFed (ECCV 2024). `pmr` is the same with prototypes that a server keeps.

    client   c_m ← means of h_m by class of the received model, over the local set, evaluation mode
             L = CE + strength · Σ_m coef_m · CE(−‖h_m − c_m‖, y) − entropy_weight · H_d
             H_d = mean_i entropy of softmax(−‖h_{i,d} − c_d‖),  d = the modality of the largest score   (PER)
             s_m = mean_i softmax(−‖h_{i,m} − c_m‖)_{y_i},  coef_m = clip(mean of the other scores / s_m − 1, 0, 1)
             after every epoch  c_m ← momentum c_m + (1 − momentum) (means of h_m now)
    server   as FedAvg; nothing besides the weights is sent

Differs from the source: any number of modalities; prototypes come from the whole local set, not from a tenth of its
batches; the public code has the constant `strength` in the place of the clipped coefficient (`coefficient =
"constant"`: for the modalities whose coefficient is not 0). `rounds` counts a device's own local rounds with the
stimulation (0: all), where the source stimulates in the first two thirds. PER, which slows the dominant modality in
the first epochs, is off; its first epochs are the device's first `entropy_rounds` local rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field

from edge_sdk.core.spec import Model
from edge_sdk.learn import local_rounds, prototype_tables
from edge_sdk.learn.prototype_tables import Table
from edge_sdk.learn.records import Batch, ClientContext, Out
from edge_sdk.methods import fedavg
from edge_sdk.methods.base import ClientRule, Method

ROUNDS = "fed_pmr/rounds"  # local rounds of this device so far, in its memory


class Config(Model):
    """Options of FedPMR's clients."""

    strength: float = Field(default=1.0, ge=0)  # α of the source, 1 to 3
    momentum: float = Field(default=0.2, ge=0, le=1)  # what an old prototype keeps; ε of the source
    coefficient: Literal["ratio", "constant"] = "ratio"
    rounds: int = Field(default=0, ge=0)  # local rounds with the stimulation; 0: all
    entropy_weight: float = Field(default=0.0, ge=0)  # μ of PER; 0: off
    entropy_rounds: int = Field(default=1, ge=0)  # local rounds with PER; 0: all


def followed(old: Table, new: Table, momentum: float) -> Table:
    """Returns momentum · old + (1 − momentum) · new, class by class."""
    return Table(momentum * old.rows + (1.0 - momentum) * new.rows, new.known)


class Client(ClientRule[Config]):
    """Fused training in which slow modalities are drawn towards the device's own prototypes."""

    def begin(self, ctx: ClientContext) -> None:
        c = self.config
        pulls, slows = (local_rounds.within(ctx.memory, ROUNDS, n) for n in (c.rounds, c.entropy_rounds))
        ctx.scratch["strength"] = c.strength if pulls else 0.0
        ctx.scratch["entropy"] = c.entropy_weight if slows else 0.0
        ctx.scratch["tables"] = prototype_tables.own(ctx) if pulls or ctx.scratch["entropy"] else {}

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        yield from super().loss_terms(ctx, batch, out)
        logits = prototype_tables.batch_logits(ctx.scratch["tables"], out.features, batch, ctx.spec.modality_names)
        coefficients = prototype_tables.stimulation(logits, constant=self.config.coefficient == "constant")
        yield from prototype_tables.terms(logits, coefficients, strength=ctx.scratch["strength"])
        yield from prototype_tables.entropy_terms(logits, ctx.scratch["entropy"])

    def end_epoch(self, ctx: ClientContext) -> None:
        tables = ctx.scratch["tables"]
        if tables and ctx.epoch + 1 < ctx.phase.epochs:
            ctx.scratch["tables"] = {
                m: followed(tables[m], new, self.config.momentum) for m, new in prototype_tables.own(ctx).items()
            }

    def end(self, ctx: ClientContext) -> None:
        c = self.config
        local_rounds.count(ctx.memory, ROUNDS, c.rounds, c.entropy_rounds if c.entropy_weight else 0)


METHOD = Method("fed_pmr", Config, Client, fedavg.Server, "arXiv:2211.07089")

__all__ = ["METHOD", "Client", "Config", "followed"]

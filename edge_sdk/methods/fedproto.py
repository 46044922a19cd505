"""FedProto for several modalities: features are drawn to the global prototype of their class.

Source: Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, "FedProto: Federated Prototype Learning across Heterogeneous Clients",
AAAI 2022, arXiv:2105.00243; in the form of BMSFed's baseline, for every modality.
Differs from the source: weights are averaged as well, as in BMSFed (`share_weights = False` sends prototypes alone, and
keeps each model on its device); prototypes are weighted by counts, as in the paper (`average = "clients"`: alike, as in
its code).

    client   L = CE + λ Σ_m R_m
             mse   R_m = mean over the rows that have m, and over D, of (h_m − c^G_{y,m})²; 0 where c^G_y is not known
             pce   R_m = CE(−‖h_m − c^G_m‖, y), over the rows whose class has a prototype (BMSFed's variant)
             reports c_{n,m} (means of h_m by class after training, evaluation mode) and counts
    server   θ as FedAvg;  c^G_{j,m} = Σ_n N_{n,j} c_{n,j,m} / Σ_n N_{n,j} over those who trained m and have class j
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field

from edge_sdk.core.records import Array
from edge_sdk.core.spec import Model
from edge_sdk.learn import own_modules, prototype_tables, scores
from edge_sdk.learn.prototype_tables import Table
from edge_sdk.learn.records import (
    Assignment,
    Batch,
    ClientContext,
    Cohort,
    Out,
    Phase,
    Query,
    RoundView,
    State,
    Weights,
)
from edge_sdk.methods.base import ClientRule, Method, SyncServerRule
from edge_sdk.methods.pmr import UPLOADS

OWN = "fedproto/own/"  # the device's own model in its memory, where weights are not shared


class Config(Model):
    """Options of FedProto."""

    lam: float = Field(default=1.0, ge=0)  # λ
    term: Literal["mse", "pce"] = "mse"
    average: Literal["counts", "clients"] = "counts"
    share_weights: bool = True


def pull(h: torch.Tensor, y: torch.Tensor, table: Table) -> torch.Tensor:
    """Returns the mean over rows and dimensions of (h − c_y)², 0 for rows whose class has none: (n, D), (n,) -> ()."""
    squares = (h - table.rows[y]).square().mean(1)  # (n, D) -> (n,)
    return (squares * table.known[y]).mean()


class Client(ClientRule[Config]):
    """Fused training near the global prototypes."""

    def schedule(self, view: RoundView) -> tuple[Phase, ...]:
        phases = super().schedule(view)
        return phases if self.config.share_weights else tuple(replace(phase, send=()) for phase in phases)

    def begin(self, ctx: ClientContext) -> None:
        ctx.scratch["tables"] = prototype_tables.received(ctx.job.extras, ctx.phase.modalities)
        if not self.config.share_weights:
            own_modules.load(ctx, ctx.phase.train, OWN)

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        yield from super().loss_terms(ctx, batch, out)
        tables, lam = ctx.scratch["tables"], self.config.lam
        if self.config.term == "pce" and lam:
            logits = prototype_tables.batch_logits(tables, out.features, batch, ctx.spec.modality_names)
            yield from prototype_tables.terms(logits, dict.fromkeys(logits, lam))
        elif lam:
            here = scores.present(batch, ctx.spec.modality_names)
            for m, table in tables.items():
                if here[m].any():
                    yield lam, pull(out.features[m][here[m]], batch.y[here[m]], table)

    def end(self, ctx: ClientContext) -> None:
        if not self.config.share_weights:
            own_modules.save(ctx, ctx.phase.train, OWN)

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        return prototype_tables.measured(prototype_tables.features(ctx), ctx.num_classes)


class Server(SyncServerRule[Config]):
    """FedAvg, and one table of prototypes per modality.

    State: "prototypes/<m>" (C, D), "counts/<m>" (C,) samples behind them (`learn.prototype_tables`).
    """

    def extras(self, state: State, task: Assignment | Query) -> dict[str, Array]:
        return prototype_tables.sent(state, self.spec.modality_names)

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        weights, patch = super().weights(state, cohort)
        reports, alike = (m.payload for m in cohort.members), self.config.average == "clients"
        return weights, {**patch, **prototype_tables.merged(state, reports, self.spec.modality_names, alike=alike)}


METHOD = Method("fedproto", Config, Client, Server, "arXiv:2105.00243", UPLOADS, sends=("prototypes",))

__all__ = ["METHOD", "Client", "Config", "Server", "pull"]

"""FedAvg+ME: modal enhancement, the loss that BMSFed trains with, and FedAvg around it.

Source: Fan et al., "Overcome Modal Bias in Multi-modal Federated Learning via Balanced Modality Selection", ECCV 2024,
arXiv:2401.00403, eq. 6, 7, 15 to 17 and 19; alone it is a row of that paper's ablation.

    client   ME_m = CE(−‖h_m − c_m‖, y)                                                                        eq. 7
             s_m = mean_i softmax(−‖h_{i,m} − c_m‖)_{y_i},  ρ_m = mean of the other scores / s_m           eq. 16, 17
             L = CE + strength · Σ_m coef_m ME_m,  coef_m = clip(ρ_m − 1, 0, 1)                               eq. 19
             reports c_{n,m} (means of h_m by class after training, evaluation mode) and their counts
    server   θ as FedAvg;  c_{j,m} = Σ_n N_{n,j} c_{n,j,m} / Σ_n N_{n,j} over those who trained m          eq. 6, 15

c_m are the global prototypes; until there are any, and with `prototypes = "local"`, those of the received model on the
device's own data. `ratio_prototypes` says the same of eq. 16, whose text has local ones and whose code global ones.

Differs from the source: any number of modalities (ρ_m compares with the mean of the others; for two, eq. 17 and 19);
scores are means over the rows that have the modality. The code has the constant `strength` in the place of the clipped
coefficient: `coefficient = "constant"`, for the modalities whose coefficient is not 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeVar

import torch
from pydantic import Field

from edge_sdk.core.records import Array
from edge_sdk.core.spec import Model
from edge_sdk.learn import prototype_tables
from edge_sdk.learn.prototype_tables import Table
from edge_sdk.learn.records import Assignment, Batch, ClientContext, Cohort, Out, Query, State, Weights
from edge_sdk.methods.base import ClientRule, Method, SyncServerRule
from edge_sdk.methods.pmr import UPLOADS


class Config(Model):
    """Options of modal enhancement."""

    strength: float = Field(default=1.0, ge=0)  # 1 to 2 in the experiments
    prototypes: Literal["global", "local"] = "global"  # in ME
    ratio_prototypes: Literal["global", "local"] = "global"  # in ρ
    coefficient: Literal["ratio", "constant"] = "ratio"


C = TypeVar("C", bound=Config)


class Client(ClientRule[C]):
    """Fused training in which the slower modalities are drawn towards the prototypes of their classes."""

    def begin(self, ctx: ClientContext) -> None:
        c, known = self.config, prototype_tables.received(ctx.job.extras, ctx.phase.modalities)
        local: dict[str, Table] = {}
        if "local" in (c.prototypes, c.ratio_prototypes) or len(known) < len(ctx.phase.modalities):
            local = prototype_tables.own(ctx)
        tables = {"local": local, "global": {**local, **known}}
        ctx.scratch["tables"], ctx.scratch["ratio_tables"] = tables[c.prototypes], tables[c.ratio_prototypes]

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        yield from super().loss_terms(ctx, batch, out)
        logits, ratio_logits = (
            prototype_tables.batch_logits(ctx.scratch[tables], out.features, batch, ctx.spec.modality_names)
            for tables in ("tables", "ratio_tables")
        )
        yield from prototype_tables.terms(logits, self.shares(ctx, ratio_logits), strength=self.config.strength)

    def shares(self, ctx: ClientContext, ratio_logits: dict[str, prototype_tables.Rows]) -> dict[str, float]:
        """Returns coef_m of a batch; none where there is only one modality to compare. Eq. 17, 19."""
        return prototype_tables.stimulation(ratio_logits, constant=self.config.coefficient == "constant")

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        return prototype_tables.measured(prototype_tables.features(ctx), ctx.num_classes)


class Server(SyncServerRule[C]):
    """FedAvg, and one table of prototypes per modality.

    State: "prototypes/<m>" (C, D), "counts/<m>" (C,) samples behind them (`learn.prototype_tables`).
    """

    def extras(self, state: State, task: Assignment | Query) -> dict[str, Array]:
        return prototype_tables.sent(state, self.spec.modality_names)

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        weights, patch = super().weights(state, cohort)
        reports = (m.payload for m in cohort.members)
        return weights, {**patch, **prototype_tables.merged(state, reports, self.spec.modality_names)}


METHOD = Method("fedavg_me", Config, Client, Server, "arXiv:2401.00403", UPLOADS, sends=("prototypes",))

__all__ = ["METHOD", "Client", "Config", "Server"]

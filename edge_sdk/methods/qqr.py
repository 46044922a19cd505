"""QQR: modality quantity and quality rebalanced, online; with its predecessor PMM and the baselines PM, ZF and FM.

Source: Wang et al., arXiv:2508.11159 (QQR) and arXiv:2505.16138 (PMM, MMO-FL); no code published.
Differs from the source: the counts of persistent prototypes are kept per class and modality, not one for all (a class
that comes late would be biased to zero); prototypes may be built from every present modality of good quality, not only
by devices that have all (`proto_from`); quality is known from the rows, or estimated (`quality`).

    device   p_{k,c}^m = mean feature of class c over the buffer, by the model as received; modalities present and good
             PNR: a missing h_m of a sample with label y is p̄_y^m, a constant; unknown: 0
             L = CE + μ Σ_{m poor} mean_i ‖h_{i,m} − p̄_{y_i}^m‖² / D                                            (PLR)
             uploads θ_k and the p_{k,c}^m, b bits a value, every DL rounds
    server   θ ← mean of θ_k, each encoder over those that trained it
             p_c^m = mean over reporting devices,  p̄_c^m ← ((u − 1) p̄_c^m + p_c^m) / u,   u = reports of that cell

`fill` says what stands for a missing modality: "prototype" (PNR), "zero" features (PM: partial modality), or the
encoder run and trained on zero "input" (ZF). FM is PM in a world where nothing is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.records import Array
from edge_sdk.core.spec import Model
from edge_sdk.learn import aggregation, prototype_tables, prototypes, pulling, quantise
from edge_sdk.learn.prototype_tables import Rows, Table
from edge_sdk.learn.records import (
    Assignment,
    Batch,
    ClientContext,
    Cohort,
    Member,
    Out,
    Phase,
    Query,
    RoundView,
    State,
    Weights,
)  # fmt: skip
from edge_sdk.methods.base import ClientRule, Method, PayloadField, PayloadSchema, SyncServerRule, fused_phase

GOOD, POOR, MISSING = 0, 1, 2  # flags of a modality in a round
POOR_BELOW = 0.5  # mean quality, and mean cosine to the class prototypes

Floats = NDArray[np.float64]


class Config(Model):
    """Options of QQR."""

    fill: Literal["prototype", "zero", "input"] = "prototype"
    plr: Literal["mse", "contrastive", "off"] = "mse"
    mu: float = Field(default=1.0, ge=0)  # weight of PLR
    bits: Literal[0, 2, 4, 8] = 4  # of an uploaded prototype's values; 0: float32
    delay: int = Field(default=1, ge=1)  # DL: prototypes are built every so many rounds
    proto_from: Literal["present", "full_only"] = "present"
    quality: Literal["known", "estimated"] = "known"
    cross_modal_fallback: bool = False  # another modality's prototype where this one has none, if they look alike
    delta: float = Field(default=0.8, ge=-1, le=1)  # mean cosine from which two modalities look alike

    @property
    def asks(self) -> bool:
        """Says whether prototypes are needed at all."""
        return self.fill == "prototype" or self.plr != "off"


class Client(ClientRule[Config]):
    """Fused training in which prototypes stand for what is missing, and pull on what is poor."""

    def schedule(self, view: RoundView) -> tuple[Phase, ...]:
        if view.waiting or not view.here:
            return ()
        phase = fused_phase(view)
        if self.config.fill == "input":
            phase = replace(phase, train=(*(f"encoder.{m}" for m in view.plan.modalities), "fusion"))
        return (phase,)

    def begin(self, ctx: ClientContext) -> None:
        tables = prototype_tables.received(ctx.job.extras, ctx.spec.modality_names)
        found = prototype_tables.features(ctx) if self.config.asks else {}
        flags = {m: self._flag(ctx, m, found.get(m), tables.get(m)) for m in ctx.spec.modality_names}
        said = self._report(ctx, flags, found) if self.config.asks else {}
        if self.config.cross_modal_fallback:
            tables = pulling.with_fallback(tables, self.config.delta)
        ctx.scratch.update(tables=tables, flags=flags, said=said)

    def _flag(self, ctx: ClientContext, m: str, found: Rows | None, table: Table | None) -> int:
        if m not in ctx.phase.modalities:
            return MISSING
        if self.config.quality == "known":
            return POOR if float(np.mean(ctx.job.data.quality.get(m, 1.0))) < POOR_BELOW else GOOD
        alike = 1.0 if found is None or table is None else pulling.likeness(*found, table)
        return POOR if alike < POOR_BELOW else GOOD

    def _report(self, ctx: ClientContext, flags: dict[str, int], found: dict[str, Rows]) -> dict[str, Array]:
        due = bool(ctx.job.extras.get("due", True))
        whole = self.config.proto_from == "present" or not any(flags.values())
        told = {m: rows for m, rows in found.items() if due and whole and flags[m] == GOOD}
        said = prototype_tables.measured(told, ctx.num_classes)
        for m in told if self.config.bits else ():
            said[f"codes.{m}"], said[f"ranges.{m}"] = quantise.pack(said.pop(f"prototypes.{m}"), self.config.bits)
        return {**said, "flags": np.array(list(flags.values()), np.uint8)}

    def forward(self, ctx: ClientContext, batch: Batch) -> Out:
        features = ctx.model.encode(batch.x, ctx.phase.modalities)
        mask = batch.mask.clone()
        for column, m in enumerate(ctx.spec.modality_names):
            lacking = mask[:, column] == 0
            if m not in ctx.job.plan.modalities or not bool(lacking.any()):
                continue
            if self.config.fill == "input" and m not in features:
                zeros = torch.zeros(len(batch.y), *ctx.spec.modality(m).shape)
                features[m], mask[:, column] = ctx.model.encode({m: zeros}, (m,))[m], 1.0
            elif self.config.fill == "prototype" and m in ctx.scratch["tables"]:
                table: Table = ctx.scratch["tables"][m]
                stand_in = table.rows[batch.y]  # (C, D) -> (B, D)
                features[m] = torch.where(lacking[:, None], stand_in, features.get(m, stand_in))
                mask[lacking, column] = table.known[batch.y][lacking].float()
        return Out(features, ctx.model.fuse(features, mask))

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        yield from super().loss_terms(ctx, batch, out)
        pull = pulling.PULLS.get(self.config.plr)
        if pull is None or not self.config.mu:
            return
        for column, m in enumerate(ctx.spec.modality_names):
            if ctx.scratch["flags"][m] == POOR and m in ctx.scratch["tables"]:
                rows = batch.mask[:, column] > 0
                yield self.config.mu, pull(out.features[m][rows], batch.y[rows], ctx.scratch["tables"][m])

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        said: dict[str, Array] = ctx.scratch["said"]
        return said


class Server(SyncServerRule[Config]):
    """Plain means of models and of prototypes.

    State: "rounds" () done so far; "prototypes/<m>" (C, D) p̄; "counts/<m>" (C,) u.
    """

    def extras(self, state: State, task: Assignment | Query) -> dict[str, Array]:
        if not self.config.asks:
            return {}
        return {"due": np.asarray(self._due(state), np.uint8), **prototype_tables.sent(state, self.spec.modality_names)}

    def _due(self, state: State) -> bool:
        return int(state.get("rounds", np.zeros(()))) % self.config.delay == 0

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        patch: dict[str, Floats] = {"rounds": np.asarray(state.get("rounds", np.zeros(())) + 1.0)}
        for m in self.spec.modality_names if self.config.asks and self._due(state) else ():
            told = [report for member in cohort.members if (report := self._report(member, m)) is not None]
            if told:
                tables, counts = (np.stack(part) for part in zip(*told, strict=True))
                temporal = prototypes.merge(tables, np.minimum(counts, 1.0))  # devices count alike
                before = state.get(f"prototypes/{m}", np.zeros_like(temporal))
                reports, seen = state.get(f"counts/{m}", np.zeros(len(temporal))), np.asarray(counts.max(0) > 0)
                table, reports = prototypes.persistent(before, reports, temporal, seen=seen)
                patch |= {f"prototypes/{m}": table, f"counts/{m}": reports}
        return aggregation.modality_wise(cohort, lambda member: 1.0), patch

    def _report(self, member: Member, m: str) -> tuple[Floats, Floats] | None:
        """Returns a device's prototypes (C, D), dequantised, and counts; None: it told none that can be read."""
        said, values = member.payload, self.spec.model.feature_dim
        table, counts = said.get(f"prototypes.{m}"), said.get(f"counts.{m}")
        if table is None and self.config.bits:
            codes, ranges = said.get(f"codes.{m}"), said.get(f"ranges.{m}")
            if codes is not None and ranges is not None:
                table = quantise.unpack(codes, ranges, values=values, bits=self.config.bits)
        return None if table is None or counts is None else (table.astype(np.float64), counts.astype(np.float64))


UPLOADS = PayloadSchema(
    (
        PayloadField("flags", ("M",), "uint8", 0, 2),
        PayloadField("counts.{modality}", ("C",), "int64", 0),
        PayloadField("prototypes.{modality}", ("C", "D")),
        PayloadField("codes.{modality}", ("C", "*"), "uint8"),
        PayloadField("ranges.{modality}", ("C", 2)),
    )
)
METHOD = Method("qqr", Config, Client, Server, source="arXiv:2508.11159", uploads=UPLOADS, sends=("prototypes",))

__all__ = ["GOOD", "METHOD", "MISSING", "POOR", "Client", "Config", "Server"]

"""FedPAC: features aligned to global prototypes, and for every client a combination of everybody's classifiers.

Source: Xu, Tong, Huang, "Personalized Federated Learning with Feature Alignment and Classifier Collaboration",
ICLR 2023, arXiv:2306.11867, Algorithm 1; a baseline of BMSFed.

    client k  before training, on features f of all modalities side by side
              h_k[j] = π_kj μ_kj (mean of f over class j, times its share),   V_k = (mean ‖f‖² − Σ_j ‖h_k[j]‖²) / n_k
              ψ alone, one epoch, at classifier_lr times the learning rate, from its own ψ_k; then
              encoders alone, E epochs, CE + lam · MSE(h_m, c_{y,m}):  global prototype of the class, else its own
              reports h_k, V_k, and prototypes c_{k,m} of the trained encoders with their counts
    server    encoders by n_k;  c_m by counts;  for every client i of the cohort
              α_i = argmin αᵀ (diag(V) + G_i) α,  α ≥ 0,  Σ α = 1
              G_i[a, b] = Σ_j ⟨h_i[j] − h_a[j], h_i[j] − h_b[j]⟩
              α < 1e-3 → 0, normalised;   ψ_i = Σ_a α_{i,a} ψ_a, sent to i with its next task

The global model is encoders and the n-weighted mean of classifiers: evaluation needs no other.

Differs from the source: several modalities, each with prototypes of its own, over the rows that have it; one classifier
for all of them. The QP is solved by pairwise steps that begin with the client's own classifier, which is also what
remains where the matrix has nothing to say. Eigenvalues below `eigenvalue_floor` are dropped (as in the
code); G_i is complete (the code leaves its diagonal out). A class nobody reported keeps its prototype.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.records import Array, Segments
from edge_sdk.core.spec import Model
from edge_sdk.learn import aggregation, params, prototypes, scores, simplex
from edge_sdk.learn.local_training import full_pass
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
from edge_sdk.methods.base import ClientRule, Method, PayloadField, PayloadSchema, SyncServerRule, fused_phase

CLASSIFIER, FEATURES = "classifier", "features"  # the phases
OWN = "personal/fusion/{}"  # of a device, in the server's state
Floats = NDArray[np.float64]


class Config(Model):
    """Options of FedPAC."""

    lam: float = Field(default=1.0, ge=0)  # strength of the alignment
    classifier_epochs: int = Field(default=1, ge=0)
    classifier_lr: float = Field(default=10.0, gt=0)  # times the learning rate of the round
    eigenvalue_floor: float = Field(default=0.01, ge=0)
    smallest: float = Field(default=1e-3, ge=0, lt=1)  # shares below are 0


def statistics(f: Floats, y: NDArray[np.int64], num_classes: int) -> tuple[Floats, float]:
    """Returns h (C, F) and V ≥ 0 of features (n, F) with classes (n,)."""
    h = np.zeros((num_classes, f.shape[1]))
    np.add.at(h, y, f)
    h /= len(y)
    return h, max(0.0, float((f**2).sum(1).mean() - (h**2).sum())) / len(y)


def collaboration(h: Floats, v: Floats, i: int) -> Floats:
    """Returns diag(V) + G_i: (K, C, F), (K,) -> (K, K)."""
    apart = (h[i] - h).reshape(len(h), -1)  # (K, C·F)
    a: Floats = np.diag(v) + apart @ apart.T
    return a


def shares(a: Floats, i: int, *, floor: float = 0.01, smallest: float = 1e-3) -> Floats:
    """Returns α_i (K,) for the matrix of client i."""
    alpha = simplex.minimise(simplex.positive(a, floor), np.eye(len(a))[i])
    kept = np.where(alpha < smallest, 0.0, alpha)
    alone: Floats = np.eye(len(a))[i]
    return kept / kept.sum() if kept.sum() > 0 else alone


class Client(ClientRule[Config]):
    """The classifier first, then the encoders against it."""

    def schedule(self, view: RoundView) -> tuple[Phase, ...]:
        if view.waiting:
            return ()
        fused = fused_phase(view)
        encoders = fused.train[:-1]
        head = Phase(CLASSIFIER, fused.modalities, ("fusion",), self.config.classifier_epochs)
        body = Phase(FEATURES, fused.modalities, encoders, fused.epochs, final=True, keep=("fusion",), send=fused.train)
        return tuple(phase for phase in (head, body) if phase not in view.finished)

    def begin(self, ctx: ClientContext) -> None:
        if ctx.phase.name == FEATURES:
            ctx.scratch["tables"] = {m: self._table(ctx, m) for m in ctx.phase.modalities}
            return
        if "classifier" in ctx.job.extras:
            own, shared = np.asarray(ctx.job.extras["classifier"], np.float32), ctx.job.start["fusion"]
            params.load(
                {"fusion": ctx.model.module("fusion")}, {"fusion": Segments(own, shared.stats, shared.counters)}
            )
        h, v = statistics(_features(ctx), ctx.samples.y[ctx.samples.rows].numpy(), ctx.num_classes)
        ctx.carry.update({"h": h, "v": np.array(v)}, **_prototypes(ctx))

    def _table(self, ctx: ClientContext, m: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns prototypes (C, D) and which are known, bool (C,): global ones, else those of the received encoder."""
        own, counts = ctx.carry[f"prototypes.{m}"], ctx.carry[f"counts.{m}"]
        seen = np.asarray(ctx.job.extras.get(f"counts.{m}", np.zeros_like(counts))) > 0
        table = np.where(seen[:, None], ctx.job.extras.get(f"prototypes.{m}", own), own)
        return torch.tensor(table, dtype=torch.float32), torch.from_numpy(seen | (counts > 0))

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        yield from super().loss_terms(ctx, batch, out)
        if ctx.phase.name == FEATURES and self.config.lam:
            here, errors = scores.present(batch, ctx.spec.modality_names), []
            for m, (table, known) in ctx.scratch["tables"].items():
                rows = here[m] & known[batch.y]
                errors.append((out.features[m][rows] - table[batch.y[rows]]).square().flatten())
            if sum(e.numel() for e in errors):
                yield self.config.lam, torch.cat(errors).mean()

    def after_backward(self, ctx: ClientContext, batch: Batch, out: Out) -> None:
        if ctx.phase.name == CLASSIFIER:
            for p in ctx.model.module("fusion").parameters():
                if p.grad is not None:
                    p.grad.mul_(self.config.classifier_lr)

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        return {"h": ctx.carry["h"].astype(np.float32), "v": ctx.carry["v"].astype(np.float32), **_prototypes(ctx)}


def _features(ctx: ClientContext) -> Floats:
    """Returns the features of all rows side by side, (n, M·D)."""
    side = full_pass(
        ctx, lambda batch: ctx.model.concatenated(ctx.model.encode(batch.x, ctx.phase.modalities), batch.mask)
    )  # fmt: skip
    f: Floats = side.double().numpy()
    return f


def _prototypes(ctx: ClientContext) -> dict[str, Array]:
    """Returns prototypes and counts of every modality of the phase, by the model as it is now."""
    rows, found = ctx.samples.rows, dict[str, Array]()
    here = scores.present(ctx.samples.batch(rows), ctx.spec.modality_names)
    f = torch.from_numpy(_features(ctx)).reshape(len(rows), len(ctx.spec.modalities), -1)  # (n, M·D) -> (n, M, D)
    for m in ctx.phase.modalities:
        h = f[here[m], ctx.spec.modality_names.index(m)]
        table, counts = prototypes.local(h, ctx.samples.y[rows][here[m]], ctx.num_classes)
        found |= {f"prototypes.{m}": table.astype(np.float32), f"counts.{m}": counts}
    return found


class Server(SyncServerRule[Config]):
    """Encoders and prototypes by samples; for every client a classifier of its own.

    State: "personal/fusion/<device>" (P,); "prototypes/<m>" (C, D), "counts/<m>" (C,) behind them, in the last report.
    """

    def extras(self, state: State, task: Assignment | Query) -> dict[str, Array]:
        known = [m for m in self.spec.modality_names if f"counts/{m}" in state]
        found: dict[str, Array] = {f"prototypes.{m}": state[f"prototypes/{m}"].astype(np.float32) for m in known}
        found |= {f"counts.{m}": state[f"counts/{m}"].astype(np.int64) for m in known}
        if OWN.format(task.device) in state:
            found["classifier"] = state[OWN.format(task.device)].astype(np.float32)
        return found

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        members, c = cohort.members, self.config
        h = np.stack([np.asarray(m.payload["h"], np.float64) for m in members])  # (K, C, M·D)
        v = np.array([float(m.payload["v"]) for m in members])
        classifiers = np.stack([m.tensors["fusion"].params.astype(np.float64) for m in members])  # (K, P)
        patch: dict[str, Floats] = {}
        for i, member in enumerate(members):
            a = collaboration(h, v, i)
            alpha = shares(a, i, floor=c.eigenvalue_floor, smallest=c.smallest)
            mine = (alpha @ classifiers).astype(np.float32)  # as it travels: a store keeps that in half the room
            patch[OWN.format(member.device)] = mine.astype(np.float64)
        for m in self.spec.modality_names:
            patch |= self._follow(state, cohort, m)
        return aggregation.modality_wise(cohort), patch

    def _follow(self, state: State, cohort: Cohort, m: str) -> dict[str, Floats]:
        """Returns the new prototypes of a modality, nothing where nobody reported it."""
        reports = [r.payload for r in cohort.members if f"counts.{m}" in r.payload and f"prototypes.{m}" in r.payload]
        if not reports:
            return {}
        tables = np.stack([np.asarray(r[f"prototypes.{m}"], np.float64) for r in reports])
        counts = np.stack([np.asarray(r[f"counts.{m}"], np.float64) for r in reports])
        total, before = counts.sum(0), state.get(f"counts/{m}", np.zeros(tables.shape[1]))
        merged = prototypes.merge(tables, counts, state.get(f"prototypes/{m}"))
        return {f"prototypes/{m}": merged, f"counts/{m}": np.where(total > 0, total, before)}

    def figures(self, state: State) -> dict[str, float]:
        return {"classifiers": float(sum(name.startswith(OWN.format("")) for name in state))}


UPLOADS = PayloadSchema(
    (
        PayloadField("h", ("C", "M*D"), required=True),
        PayloadField("v", low=0, required=True),
        PayloadField("prototypes.{modality}", ("C", "D")),
        PayloadField("counts.{modality}", ("C",), "int64", low=0),
    )
)
METHOD = Method("fedpac", Config, Client, Server, "arXiv:2306.11867", UPLOADS, sends=("prototypes", "classifier"))

__all__ = ["METHOD", "Client", "Config", "Server", "collaboration", "shares", "statistics"]

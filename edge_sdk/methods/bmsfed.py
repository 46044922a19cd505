"""BMSFed: balanced modality selection. Some clients train everything, some only the modality that lags behind.

Source: Fan et al., "Overcome Modal Bias in Multi-modal Federated Learning via Balanced Modality Selection", ECCV 2024,
arXiv:2401.00403, eq. 6, 7, 13 and 15 to 19, and the authors' code.

    client    multi  L = CE(fused) + strength Σ_m coef_m ME_m                 modal enhancement, see `fedavg_me`
              uni w  L = CE(ψ(0, …, h_w, …, 0)) + strength coef_w ME_w,  coef_w = clip(ρ^k_w − 1, 0, 1)          eq. 19
              reports c_{n,m}, counts, and, of at least two modalities, ρ^k_m = mean of the other scores / s_m over its
              data; the change of its encoders shows in its update, and is the answer to a query before round 1
    server    D_M, D_m: distances between the changes of all encoders together, and of encoder m
              weak modality w = argmax_m ρ_m,  ρ_m = Σ_k n_k ρ^k_m / Σ_k n_k                                      eq. 18
              until K are chosen, of a random subset R of max(K, ⌊0.1 N⌋) of those left:
                  k1 = argmin_{k∈R} Σ_j min(m_M(j), D_M[j,k]),  k2 = argmin_{k∈R} Σ_j min(m_w(j), D_w[j,k])
              paper     k1 trains everything; k2 ≠ k1 trains w alone if ρ^{k2}_w > χ, else everything       eq. 13
                        m_M falls with those who train everything, m_w with all
              official  k2 trains w alone if ρ^{k2}_w > χ, else k1 everything; m_w or m_M falls, not both
              θ modality-wise; c_m as in `fedavg_me`

Differs from the source: any number of modalities; ρ_m compares with the mean of the others (for two, eq. 17 to 19). A
device without w, or whose ρ is not known, can only train everything it has. A uni-modal client takes ρ^k of its last
multi-modal training (coef_w = 1 before it has one). Vectors are projected (`learn.deltas`). `client_ratio =
"accuracy"` takes nearest-prototype accuracies for ρ^k, as the code does; the code's evaluation on a validation set, its
ownership weights of prototypes and its broken first selection are left out. With `lr_min`, the code's lr = lr0 − (lr0 −
lr_min) · round / T after round `lr_after`; `query = "step"` asks for one step in the place of the epoch before round 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.records import Array
from edge_sdk.learn import deltas, params, prototype_tables, schedules, scores, selection
from edge_sdk.learn.records import (
    Answer,
    Assignment,
    Candidate,
    ClientContext,
    Cohort,
    Member,
    Phase,
    Pool,
    Query,
    RoundView,
    State,
    Weights,
)
from edge_sdk.methods import fedavg_me, pmr
from edge_sdk.methods.base import Method, PayloadField, PayloadSchema

MULTI, UNI, ROUNDS = "multi", "uni", "rounds"
RATIO = "bmsfed/ratio/"  # the device's last ρ^k_m in its memory

Floats = NDArray[np.float64]


class Config(fedavg_me.Config, schedules.LinearDecay):
    """Options of BMSFed; those of modal enhancement and of a late linear decay of the learning rate besides."""

    mode: Literal["paper", "official"] = "paper"
    chi: float = Field(default=1.5, ge=0)  # χ, 1.2 to 2.5 by data set
    client_ratio: Literal["scores", "accuracy"] = "scores"  # what ρ^k is a ratio of
    ask_every: int = Field(default=5, ge=1)  # rounds between questions to those who have not answered
    query: Literal["epoch", "step"] = "epoch"  # local training before an answer


@dataclass(frozen=True, slots=True)
class Distances:
    """What a selection is made from; row and column i are device i, sorted by id."""

    multi: Floats  # (N, N) D_M
    uni: Floats  # (N, N) D_w; zeros for devices without w
    owns: NDArray[np.bool_]  # (N,) has w
    ratio: Floats  # (N,) ρ^k_w; −∞ where it is not known


def choose(
    table: Distances, k: int, size: int, rng: np.random.Generator, *, chi: float, mode: str = "paper"
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns S_M and S_w, disjoint, K in all, in order of choice. Eq. 13."""
    multi, uni = list[int](), list[int]()
    near = {MULTI: selection.reach(len(table.owns)), UNI: np.where(table.owns, np.inf, 0.0)}

    def add(device: int, part: list[int], *falls: str) -> None:
        part.append(device)
        if MULTI in falls:
            near[MULTI] = np.minimum(near[MULTI], table.multi[:, device])
        if UNI in falls and table.owns[device]:
            near[UNI] = np.minimum(near[UNI], table.uni[:, device])

    while len(multi) + len(uni) < min(k, len(table.owns)):
        rest = [i for i in range(len(table.owns)) if i not in multi and i not in uni]
        among = selection.subset(rest, size, rng)
        k1, owners = selection.best(table.multi, near[MULTI], among), among[table.owns[among]]
        k2 = selection.best(table.uni, near[UNI], owners) if len(owners) else k1
        lags = len(owners) > 0 and bool(table.ratio[k2] > chi)
        if mode == "official":
            add(*((k2, uni, UNI) if lags else (k1, multi, MULTI)))
        else:
            add(k1, multi, MULTI, UNI)
            if k2 != k1 and len(multi) + len(uni) < k:
                add(k2, *((uni, UNI) if lags else (multi, MULTI, UNI)))
    return tuple(multi), tuple(uni)


def imbalance(state: State, modalities: tuple[str, ...]) -> dict[str, float]:
    """Returns ρ_m = Σ_k n_k ρ^k_m / Σ_k n_k of the modalities that somebody has reported. Eq. 18."""
    told = {m: np.array([v for k, v in sorted(state.items()) if k.startswith(f"ratio/{m}/")]) for m in modalities}
    return {m: float(np.average(pairs[:, 0], weights=pairs[:, 1])) for m, pairs in told.items() if len(pairs)}


class Client(fedavg_me.Client[Config]):
    """Modal enhancement on everything, or the weak modality alone."""

    def inquire(self, view: RoundView) -> tuple[Phase, ...]:
        return tuple(replace(p, steps=int(self.config.query == "step")) for p in super().inquire(view))

    def shares(self, ctx: ClientContext, ratio_logits: dict[str, prototype_tables.Rows]) -> dict[str, float]:
        if ctx.job.plan.phase != UNI:
            return super().shares(ctx, ratio_logits)
        known = {m: float(ctx.memory.get(f"{RATIO}{m}", np.array(2.0))) for m in ctx.phase.modalities}
        constant = self.config.coefficient == "constant"
        return {m: 1.0 if constant else min(max(rho - 1.0, 0.0), 1.0) for m, rho in known.items()}

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        found = prototype_tables.features(ctx)
        said = prototype_tables.measured(found, ctx.num_classes)
        local = prototype_tables.received(said, ctx.phase.modalities)
        known = prototype_tables.received(ctx.job.extras, ctx.phase.modalities)
        tables = local if self.config.ratio_prototypes == "local" else {**local, **known}
        rho = local_ratios(found, tables, accuracy=self.config.client_ratio == "accuracy")
        ctx.memory.update({f"{RATIO}{m}": np.array(x) for m, x in rho.items()})
        return said | {f"ratio.{m}": np.asarray(x, np.float32) for m, x in rho.items()}

    def answer(self, ctx: ClientContext) -> dict[str, Array]:
        trained = params.read({name: ctx.model.module(name) for name in ctx.phase.train})
        change = deltas.encoders(trained, ctx.job.start, ctx.phase.modalities)
        return self.payload(ctx) | {f"delta.{m}": v.astype(np.float32) for m, v in change.items()}


def local_ratios(
    found: Mapping[str, prototype_tables.Rows], tables: Mapping[str, prototype_tables.Table], *, accuracy: bool = False
) -> dict[str, float]:
    """Returns ρ_m of a device's whole data, for the modalities of which rows with a prototype are there; {} for one."""
    values = {}
    for m, (h, y) in found.items():
        rows = tables[m].known[y]
        if rows.any():
            z, classes = prototype_tables.class_logits(tables[m], h[rows], y[rows])
            hits = (z.argmax(1) == classes).double()
            values[m] = float(hits.mean()) if accuracy else scores.true_class_score(z, classes)
    rho = 1.0 / scores.ratios(np.array(list(values.values())))
    return dict(zip(values, rho.tolist(), strict=True)) if len(values) > 1 else {}


class Server(fedavg_me.Server[Config]):
    """Chooses who trains what from the distances between changes and the ratios of all devices.

    State: "multi/<device>" change of all encoders, "uni/<m>/<device>" of one, each (deltas.SIZE,), as last heard;
    "ratio/<m>/<device>" (2,) ρ^k_m and n_k; "rounds" (1,) done; prototypes and counts as in `fedavg_me`.
    """

    def init(self) -> State:
        self.config.lr_scale(0, self.spec.training)  # a decay that makes no sense is said before the first round
        return super().init()

    def query(
        self, state: State, fleet: tuple[Candidate, ...], size: int, rng: np.random.Generator
    ) -> tuple[Query, ...]:
        due = int(state.get(ROUNDS, np.zeros(1))[0]) % self.config.ask_every == 0
        unknown = [c for c in fleet if due and any(f"uni/{m}/{c.device}" not in state for m in c.modalities)]
        return tuple(Query(c.device, MULTI, epochs=1) for c in unknown)

    def answered(self, state: State, answers: tuple[Answer, ...]) -> State:
        patch = dict(prototype_tables.merged(state, (a.payload for a in answers), self.spec.modality_names))
        for a in answers:
            change = {m: a.payload[f"delta.{m}"].astype(np.float64) for m in a.modalities if f"delta.{m}" in a.payload}
            patch |= {f"uni/{m}/{a.device}": v for m, v in change.items()}
            patch |= _heard(a, change)
        return patch

    def select(self, state: State, pool: Pool, rng: np.random.Generator) -> tuple[Assignment, ...]:
        own = {c.device: c.modalities for c in pool.fleet}
        known = [device for device in own if _whole(device, own[device]) in state]
        scale = self.config.lr_scale(pool.round, self.spec.training)
        if not known:
            return tuple(replace(task, lr_scale=scale) for task in super().select(state, pool, rng))
        rho = imbalance(state, self.spec.modality_names)
        weak = max(rho, key=lambda m: rho[m]) if rho else self.spec.modality_names[0]
        table, size = self._table(state, known, own, weak), selection.subset_size(pool.size, len(known))
        multi, uni = choose(table, pool.size, size, rng, chi=self.config.chi, mode=self.config.mode)
        alone = {known[i] for i in uni}
        chosen = selection.filled([known[i] for i in (*multi, *uni)], tuple(own), pool.size, rng)
        plans = {d: ((weak,), UNI) if d in alone else (own[d], MULTI) for d in chosen}
        return tuple(Assignment(d, *plan, lr_scale=scale) for d, plan in plans.items())

    def _table(self, state: State, known: list[str], own: Mapping[str, tuple[str, ...]], weak: str) -> Distances:
        owns = np.array([f"uni/{weak}/{d}" in state and weak in own[d] for d in known])
        uni = np.zeros((len(known), len(known)))
        if owns.any():
            vectors = [state[f"uni/{weak}/{d}"] for d, has in zip(known, owns, strict=True) if has]
            uni[np.ix_(owns, owns)] = selection.distances(np.stack(vectors))
        ratio = np.array([state.get(f"ratio/{weak}/{d}", np.array([-np.inf]))[0] for d in known])
        multi = selection.distances(np.stack([state[_whole(d, own[d])] for d in known]))
        return Distances(multi, uni, owns, ratio)

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        weights, patch = super().weights(state, cohort)
        for m in cohort.members:
            patch = {**patch, **_heard(m, deltas.encoders(m.tensors, cohort.start, m.modalities))}
        return weights, {**patch, ROUNDS: np.array([cohort.round + 1.0])}

    def figures(self, state: State) -> dict[str, float]:
        return {f"imbalance.{m}": rho for m, rho in imbalance(state, self.spec.modality_names).items()}


def _whole(device: str, modalities: tuple[str, ...]) -> str:
    """Returns where the change of all that a device has lies in the state."""
    return f"multi/{device}" if len(modalities) > 1 else f"uni/{modalities[0]}/{device}"


def _heard(said: Answer | Member, change: Mapping[str, Floats]) -> State:
    """Returns the entries of a device that change: D_M where it trained several modalities, D_m of a single one."""
    entries = {
        f"ratio/{m}/{said.device}": np.array([float(said.payload[f"ratio.{m}"]), float(said.num_samples)])
        for m in said.modalities
        if f"ratio.{m}" in said.payload
    }
    if change:
        entries[_whole(said.device, tuple(change))] = np.sum(list(change.values()), axis=0)
    return entries


UPLOADS = PayloadSchema((*pmr.UPLOADS.fields, PayloadField("ratio.{modality}", low=0.0)))
ANSWERS = PayloadSchema((*UPLOADS.fields, PayloadField("delta.{modality}", (deltas.SIZE,))))
METHOD = Method(
    "bmsfed", Config, Client, Server, "arXiv:2401.00403", UPLOADS, answers=ANSWERS, sends=("prototypes",)
)  # fmt: skip

__all__ = [
    "METHOD",
    "Client",
    "Config",
    "Distances",
    "Server",
    "choose",
    "imbalance",
    "local_ratios",
]

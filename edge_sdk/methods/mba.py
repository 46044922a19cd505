"""MBA: modality balancing via asynchrony.

Source: Ma, Liu, Zhou, Wang, Tong; no code published. Options A1 … A14 settle what the paper leaves open.

    client   while the last modality is under way, train (φ̂_m, d_m) on each early one alone; anchors ĥ_m = φ̂_m(x_m)
             then, from θ_g:  L = CE + β · mean_{m early} d_m,   d_m = mean_i [1 − cos(h_{i,m}, ĥ_{i,m})]
             report d_m over the local set, after training
    server   w_{k,m} ∝ exp(−λ τ_{k,m})  over clients k that ever reported m,   d̃_m = Σ_k w_{k,m} d_{k,m}    (eq. 7)
             ρ_m = (μ − d̃_m) / (d̃_m + ε),   μ = mean of the d̃_m                                             (eq. 8, 9)
             s = α0 (τ + 1)^−a,   α_m = clip(s(1 − γ ρ_m), 0, 1)                                            (eq. 10)
             φ_m ← (1 − α_m) φ_m + α_m φ_{n,m},   ψ ← (1 − s) ψ + s ψ_n                                     (eq. 11, 12)

A small distance makes ρ > 0 and the rate smaller (well aligned, dominant); a large one ρ < 0 and the rate larger.
"Late" is the modality that arrives last of those that come (A1, ties by the order of the spec); it has no anchor and is
not reported, its cells keep their old values and age (A6). Cells that were never reported have weight 0 (A7); with
fewer than two modalities known ρ = 0 (A8). No data-size weights (A12); norms are clamped at 1e-8 in the cosine (A13).
Anchors are kept by window number, constants of the round (A4). With momentum, policies that stop between epochs start
every epoch of an anchor with a fresh momentum buffer.

Two readings besides, off by default: `anchor_late` trains an anchor of the late modality as well, once it is there;
`centred` takes cosines around the mean anchor, since features that are all positive have large ones whatever they say.

Eq. 7 is kept incrementally (`learn.decayed_mean`), O(1) per report whatever the number of clients.

Ablations: β = 0 is "without regularization" (anchors are still trained, for d), γ = 0 "without balance-aware
aggregation"; both together are FedAsync to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from edge_sdk.core.records import Array
from edge_sdk.core.spec import Model
from edge_sdk.learn import anchors, decayed_mean, staleness
from edge_sdk.learn.local_training import encoded
from edge_sdk.learn.records import Batch, ClientContext, Out, Phase, Rates, RoundView, State, UpdateView
from edge_sdk.methods.base import AsyncServerRule, ClientRule, Method, PayloadField, PayloadSchema, fused_phase

ANCHOR = "anchor"


class Config(Model):
    """Options of MBA."""

    alpha0: float = Field(default=0.9, gt=0, le=1)
    a: float = Field(default=0.5, ge=0)  # exponent of the staleness decay
    beta: float = Field(default=0.1, ge=0)  # weight of the anchor distances in the loss
    gamma: float = Field(default=0.1, ge=0)  # sensitivity of the rates to ρ
    lam: float = Field(default=0.1, ge=0)  # decay of reports per server update
    eps: float = Field(default=1e-8, ge=0)
    anchor_policy: Literal["wait", "drop", "truncate"] = "wait"  # A2: unfinished when the last modality arrives
    warm_start: bool = False  # A3: fused training starts from the uni-modally trained encoders
    anchor_dtype: Literal["float32", "float16"] = "float32"  # A4
    d_report: Literal["post", "last_epoch"] = "post"  # A5
    rho_clip: float = Field(default=0.0, ge=0)  # A10: |ρ| at most this; 0: no limit
    reset_heads: bool = False  # A11: new private heads every round
    anchor_late: bool = False  # A1: the late modality gets an anchor, too, trained once it is there
    centred: bool = False  # cosines of what deviates from the mean anchor of the local set
    epochs_uni: int = Field(default=0, ge=0)  # A14: epochs of an anchor; 0: as many as the plan says


def anchor_distance(h: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    """Returns 1 − cos per row, in [0, 2]: features (B, D), anchors (B, D) -> (B,)."""
    return (1.0 - F.cosine_similarity(h, anchor, dim=1, eps=1e-8)).clamp(0.0, 2.0)


def imbalance(d: NDArray[np.float64], eps: float = 1e-8, clip: float = 0.0) -> NDArray[np.float64]:
    """Returns ρ_m for the weighted distances of the modalities that have one; zeros for fewer than two. Eq. 8, 9."""
    if len(d) < 2:
        return np.zeros_like(d)
    rho: NDArray[np.float64] = (d.mean() - d) / np.maximum(d + eps, np.finfo(np.float64).tiny)
    return np.clip(rho, -clip, clip) if clip else rho


def mixing_rates(s: float, gamma: float, rho: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns α_m = clip(s(1 − γ ρ_m), 0, 1). Eq. 10."""
    rates: NDArray[np.float64] = np.clip(s * (1.0 - gamma * rho), 0.0, 1.0)
    return rates


def imbalance_rates(
    state: State, modalities: tuple[str, ...], *, eps: float = 1e-8, clip: float = 0.0
) -> dict[str, float]:
    """Returns ρ of every modality as the server's state has it now; 0 for those never reported."""
    totals = {m: state[f"sum/{m}"] for m in modalities if f"sum/{m}" in state}
    d = np.array([decayed_mean.mean(total) for total in totals.values()])
    known = dict(zip(totals, imbalance(d, eps, clip).tolist(), strict=True))
    return {m: known.get(m, 0.0) for m in modalities}


class Client(ClientRule[Config]):
    """Anchors while waiting, then fused training that stays near them."""

    def schedule(self, view: RoundView) -> tuple[Phase, ...]:
        early = view.in_order if view.waiting else self._anchored(view)  # ties by the order of the plan (A1)
        phases: list[Phase] = []
        if self.config.anchor_policy == "wait" or view.waiting:
            phases = [phase for m in early for phase in self._anchor_phases(view, m)]
        if view.waiting:
            return tuple(phases)
        keep = tuple(f"encoder.{m}" for m in early) if self.config.warm_start else ()
        return (*phases, fused_phase(view, keep=keep)) if view.here else ()

    def _anchored(self, view: RoundView) -> tuple[str, ...]:
        return view.in_order if self.config.anchor_late else view.in_order[:-1]

    def _anchor_phases(self, view: RoundView, m: str) -> list[Phase]:
        """Returns what is left of the anchor of m; one phase per epoch where the policy may stop it between two."""
        epochs = self.config.epochs_uni or view.plan.epochs
        module = f"encoder.{m}"
        if self.config.anchor_policy == "wait":
            phases = [Phase(ANCHOR, (m,), (module,), epochs)]
        else:
            phases = [Phase(ANCHOR, (m,), (module,), 1, keep=(module,))] * epochs
        return phases[view.finished.count(phases[0]) :]

    def stacks(self, phase: Phase) -> bool:
        return phase.name == ANCHOR or (not self.config.beta and self.config.d_report == "post")

    def begin(self, ctx: ClientContext) -> None:
        if ctx.phase.name == ANCHOR:
            ctx.own[_head(ctx.phase.modalities[0])] = self._load_head(ctx, ctx.phase.modalities[0])
        else:
            data, known = ctx.job.data, [m for m in self._anchored(ctx.job.view) if f"anchor/{m}" in ctx.carry]
            found = {m: anchors.match(ctx.carry, f"anchor/{m}", data, data.has[m]) for m in known}
            centres = {m: anchor[rows].mean(0) if self.config.centred else 0.0 for m, (anchor, rows) in found.items()}
            around = {m: (anchor - centres[m], rows) for m, (anchor, rows) in found.items()}
            ctx.scratch.update(centres=centres, anchors=around, sums={})  # cosines are taken around centres, (D,) or 0

    def forward(self, ctx: ClientContext, batch: Batch) -> Out:
        if ctx.phase.name != ANCHOR:
            return super().forward(ctx, batch)
        (m,) = ctx.phase.modalities
        features = ctx.model.encode(batch.x, (m,))
        return Out(features, ctx.own[_head(m)](features[m]))

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        yield from super().loss_terms(ctx, batch, out)
        if self.stacks(ctx.phase) or not ctx.scratch["anchors"]:  # without the distances
            return
        distances = self._batch_distances(ctx, batch, out)
        if self.config.beta and distances:
            yield self.config.beta, torch.stack(list(distances.values())).mean()

    def _batch_distances(self, ctx: ClientContext, batch: Batch, out: Out) -> dict[str, torch.Tensor]:
        """Returns d_m of the batch for the anchors that exist, and adds them to the sums of this epoch."""
        distances = {}
        for m, (anchor, known) in ctx.scratch["anchors"].items():
            rows = known[batch.rows]
            if rows.any():
                h = out.features[m][rows] - ctx.scratch["centres"][m]
                distances[m] = anchor_distance(h, anchor[batch.rows][rows]).mean()
                ctx.scratch["sums"].setdefault((ctx.epoch, m), []).append(float(distances[m].detach()))
        return distances

    def end(self, ctx: ClientContext) -> None:
        if ctx.phase.name != ANCHOR:
            return
        (m,) = ctx.phase.modalities
        head = ctx.own[_head(m)].state_dict()
        ctx.memory.update({f"head/{m}/{k}": v.numpy().copy() for k, v in head.items()})
        if self.config.anchor_policy != "drop" or self._complete(ctx):
            h = encoded(ctx, m)
            index = ctx.job.data.indices[ctx.samples.rows.numpy()]
            ctx.carry.update(anchors.pack(f"anchor/{m}", h, index, self.config.anchor_dtype))

    def _complete(self, ctx: ClientContext) -> bool:
        return ctx.job.view.finished.count(ctx.phase) + 1 >= (self.config.epochs_uni or ctx.job.plan.epochs)

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        found = self._last_epoch(ctx) if self.config.d_report == "last_epoch" else self._post(ctx)
        return {f"distance.{m}": np.asarray(d, np.float32) for m, d in found.items()}

    def _last_epoch(self, ctx: ClientContext) -> dict[str, float]:
        sums = ctx.scratch["sums"]
        return {m: float(np.mean(sums[ctx.epoch, m])) for m in ctx.scratch["anchors"] if (ctx.epoch, m) in sums}

    def _post(self, ctx: ClientContext) -> dict[str, float]:
        """Returns d_m over the local set, after training, in evaluation mode (A5)."""
        found = {}
        for m, (anchor, known) in ctx.scratch["anchors"].items():
            mine = known[ctx.samples.rows]
            if mine.any():
                h = encoded(ctx, m)[mine] - ctx.scratch["centres"][m]
                found[m] = float(anchor_distance(h, anchor[ctx.samples.rows[mine]]).double().mean())
        return found

    def _load_head(self, ctx: ClientContext, m: str) -> nn.Linear:
        """Returns the private head of m: the one of earlier rounds (or epochs), or a new one (A11)."""
        head = nn.Linear(ctx.spec.model.feature_dim, ctx.num_classes)
        reset = self.config.reset_heads and ctx.phase not in ctx.job.view.finished
        if f"head/{m}/weight" in ctx.memory and not reset:
            head.load_state_dict({k: torch.tensor(ctx.memory[f"head/{m}/{k}"]) for k in ("weight", "bias")})
        return head


def _head(m: str) -> str:
    return f"head_{m}"  # a ModuleDict refuses names like "keys"


class Server(AsyncServerRule[Config]):
    """One mixing rate per modality, from the distances of all clients.

    State: "sum/<m>" (3,) S, N and version of modality m; "cell/<m>/<device>" (2,) last distance and its version
    (`learn.decayed_mean`).
    """

    def rates(self, state: State, update: UpdateView) -> tuple[Rates, State]:
        c = self.config
        patch = self._fold(state, update)
        keys = (f"sum/{m}" for m in self.spec.modality_names if f"sum/{m}" in state or f"sum/{m}" in patch)
        sums = {k: patch[k] if k in patch else state[k] for k in keys}
        rho = imbalance_rates(sums, self.spec.modality_names, eps=c.eps, clip=c.rho_clip)
        s = c.alpha0 * staleness.polynomial(update.staleness, c.a)
        alpha = mixing_rates(s, c.gamma, np.array(list(rho.values())))
        by_encoder = {f"encoder.{m}": float(r) for m, r in zip(rho, alpha, strict=True)}
        return Rates({module: by_encoder.get(module, s) for module in update.modules}), patch

    def figures(self, state: State) -> dict[str, float]:
        rho = imbalance_rates(state, self.spec.modality_names, eps=self.config.eps, clip=self.config.rho_clip)
        return {f"imbalance.{m}": value for m, value in rho.items()}

    def _fold(self, state: State, update: UpdateView) -> dict[str, NDArray[np.float64]]:
        """Returns the entries that the update's reports change; the arriving client's cells get age 0 (A9)."""
        patch: dict[str, NDArray[np.float64]] = {}
        for m in self.spec.modality_names:
            if f"distance.{m}" in update.payload:
                d, cell = float(update.payload[f"distance.{m}"]), f"cell/{m}/{update.device}"
                total = state.get(f"sum/{m}", np.zeros(3))
                patch[f"sum/{m}"] = decayed_mean.fold(
                    total, state.get(cell), value=d, t=update.version, lam=self.config.lam
                )
                patch[cell] = np.array([d, float(update.version)])
        return patch


UPLOADS = PayloadSchema((PayloadField("distance.{modality}", low=0.0, high=2.0),))
SOURCE = "Ma, Liu, Zhou, Wang, Tong: modality balancing via asynchrony"
METHOD = Method("mba", Config, Client, Server, SOURCE, UPLOADS)

__all__ = ["METHOD", "Client", "Config", "Server", "anchor_distance", "imbalance", "imbalance_rates", "mixing_rates"]

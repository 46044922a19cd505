"""HGB (FedHGB): hierarchical gradient blending, over the modalities of a client and over the clients of a round.

Source: Chen, Li, "Towards Optimal Multi-Modal Federated Learning on Non-IID Data with Hierarchical Gradient Blending",
INFOCOM 2022, equations 7 and 13 to 15.

    client   losses l_i of one head per modality and of the fused one, on a share of its training rows (T) and of its
             held-out rows (V), the same rows before and after training on L = Σ_i z_i l_i:
             ΔG_i = l^V_i(before) − l^V_i(after),   ΔO_i = growth of l^V_i − l^T_i
             z^k_i = 2 (ΔG_i / ΔO_i²) / Σ_j (ΔG_j / ΔO_j²)                                   eq. 13, Σ z^k = 2
             ΔG^k, ΔO^k the same of the one loss Σ_i z^k_i l_i;   reports z^k, ΔG^k, ΔO^k
    server   p_k = (ΔG^k / ΔO^k²) / Σ(…)                                                      eq. 14
             θ ← Σ_k p_k θ_k,   z_i = Σ_k z^k_i / Σ_j Σ_k z^k_j                               eq. 15, sent to all

Without `blend_clients` (p_k = 1/K) it is the ablation M-GB, without `blend_modalities` (z uniform) C-GB.

Differs from the source: the fused head is one more modality of z, else nothing would train it (`blend_fused = false`
gives its loss the fixed weight 1). Negative ΔG count as 0, ΔO² has a floor, and where nothing is left weights are
equal (clients: by samples, if `fallback` says so); a client that could not measure votes for nothing. A client votes
for what it has, a module is averaged with p over those who trained it, and the weights of heads that are not there are
left to the others. Local training is counted in epochs unless `local_steps` is set; windows are held out by number, a
fifth of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.records import Array
from edge_sdk.core.spec import Model
from edge_sdk.learn import aggregation, probes
from edge_sdk.learn.records import (
    Assignment,
    Batch,
    ClientContext,
    Cohort,
    Needs,
    Out,
    Phase,
    Query,
    RoundView,
    State,
    Weights,
)
from edge_sdk.methods.base import ClientRule, Method, PayloadField, PayloadSchema, SyncServerRule

Floats = NDArray[np.float64]


class Config(Model):
    """Options of HGB."""

    share: float = Field(default=0.4, gt=0, le=1)  # S: of the rows that losses are measured on
    validation: float = Field(default=0.2, gt=0, lt=1)  # share of windows held out
    validation_seed: int = Field(default=0, ge=0)
    floor: float = Field(default=1e-6, gt=0)  # smallest ΔO²
    min_weight: float = Field(default=0.0, ge=0, lt=1)  # of every head, before normalising; 0.01 steadies small sets
    blend_fused: bool = True
    blend_modalities: bool = True  # False: C-GB
    blend_clients: bool = True  # False: M-GB
    local_steps: int = Field(default=0, ge=0)  # E: steps of local training, 300 in the source; 0: the plan's epochs
    fallback: str = Field(default="uniform", pattern="^(uniform|samples)$")  # p where no client improved


class ModalityBlendingConfig(Config):
    """Options of M-GB."""

    blend_clients: bool = False


class ClientBlendingConfig(Config):
    """Options of C-GB."""

    blend_modalities: bool = False


def head_weights(gain: Floats, overfit: Floats, *, floor: float = 1e-6, least: float = 0.0) -> Floats:
    """Returns z^k, summing to 2, from ΔG and ΔO (H,)."""  # Eq. 13
    return 2.0 * probes.shares(probes.quotients(gain, overfit, floor), least)


def blended_growth(
    before: tuple[Floats, Floats], after: tuple[Floats, Floats], z: Floats
) -> tuple[float, float]:  # fmt: skip
    """Returns (ΔG^k, ΔO^k) of the one loss Σ z_i l_i; what could not be measured (NaN) is left out."""
    one = [tuple(np.array([np.nansum(z * losses)]) for losses in pair) for pair in (before, after)]
    gain, overfit = probes.growth((one[0][0], one[0][1]), (one[1][0], one[1][1]))
    return float(gain[0]), float(overfit[0])


def client_values(gain: Floats, overfit: Floats, floor: float = 1e-6) -> Floats:
    """Returns ΔG^k / ΔO^k², p_k before it is normalised, (K,), (K,) -> (K,)."""  # Eq. 14
    return probes.quotients(gain, overfit, floor)


class Client(ClientRule[Config]):
    """Training of all heads at once, weighted as the server says; what it made of them is reported."""

    @property
    def held_out(self) -> float:
        return self.config.validation

    def schedule(self, view: RoundView) -> tuple[Phase, ...]:
        phases, steps = super().schedule(view), self.config.local_steps
        return tuple(replace(p, train=(*p.train, *(f"head.{m}" for m in p.modalities)), steps=steps) for p in phases)

    def begin(self, ctx: ClientContext) -> None:
        c, scratch, names = self.config, ctx.scratch, ctx.spec.modality_names
        scratch["all"] = ctx.samples
        rows = probes.split(
            ctx.samples.rows, ctx.job.data.indices, fraction=c.validation, seed=c.validation_seed
        )  # fmt: skip
        ctx.samples = replace(ctx.samples, rows=rows[0])
        scratch["parts"] = tuple(_some(part, c.share, ctx.rng) for part in rows)
        scratch["heads"] = (*(names.index(m) for m in ctx.phase.modalities), len(names))  # columns of z
        z = np.asarray(ctx.job.extras.get("z", np.ones(len(names) + 1)), np.float64)[list(scratch["heads"])]
        scratch["weights"] = probes.shares(z) if c.blend_fused else np.append(probes.shares(z[:-1]), 1.0)
        scratch["before"] = self._measure(ctx)

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        yield from probes.weighted(probes.model_losses(ctx, batch, out), ctx.scratch["weights"].tolist())

    def end(self, ctx: ClientContext) -> None:
        ctx.scratch["after"] = self._measure(ctx)
        ctx.samples = ctx.scratch["all"]

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        c, z = self.config, np.zeros(len(ctx.spec.modalities) + 1)
        gain = overfit = 0.0
        before, after = ctx.scratch["before"], ctx.scratch["after"]
        if before is not None and after is not None:
            growth = [g if c.blend_fused else g[:-1] for g in probes.growth(before, after)]
            mine = head_weights(growth[0], growth[1], floor=c.floor, least=c.min_weight)
            mine = mine if c.blend_modalities else np.full(len(mine), 2.0 / len(mine))
            mine = mine if c.blend_fused else np.append(mine, 0.0)
            z[list(ctx.scratch["heads"])] = mine
            gain, overfit = blended_growth(before, after, mine)
        one = {"gain": np.array([gain], np.float32), "overfit": np.array([overfit], np.float32)}
        return {"z": z.astype(np.float32), **one}

    def _measure(self, ctx: ClientContext) -> tuple[Floats, Floats] | None:
        """Returns mean (training, held-out) losses per head, None without held-out rows."""
        train, held = ctx.scratch["parts"]
        losses = partial(_losses, self, ctx)
        return (probes.mean_losses(ctx, train, losses), probes.mean_losses(ctx, held, losses)) if len(held) else None


def _losses(rule: Client, ctx: ClientContext, batch: Batch) -> torch.Tensor:
    return probes.model_losses(ctx, batch, rule.forward(ctx, batch))


def _some(rows: torch.Tensor, share: float, rng: torch.Generator) -> torch.Tensor:
    """Returns a random share of rows, at least one of them."""
    chosen = torch.randperm(len(rows), generator=rng)[: max(1, round(share * len(rows)))]
    return rows[chosen.sort().values]


class Server(SyncServerRule[Config]):
    """Clients weighted by how well they generalised.

    State: "z" (M + 1,), the fused head last; "effective_clients" (1,) 1 / Σ p² of the last round.
    """

    def extras(self, state: State, task: Assignment | Query) -> dict[str, Array]:
        return {"z": self._z(state).astype(np.float32)}

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        reports = [[np.asarray(m.payload[name], np.float64)[0] for m in cohort.members] for name in ("gain", "overfit")]
        values = client_values(np.array(reports[0]), np.array(reports[1]), self.config.floor)
        value = dict(zip((m.device for m in cohort.members), values.tolist(), strict=True))
        if not self.config.blend_clients:
            value = dict.fromkeys(value, 1.0)
        elif self.config.fallback == "samples" and not any(value.values()):
            value = {m.device: aggregation.by_samples(m) for m in cohort.members}
        p = np.array(list(aggregation.normalised(value).values()))
        votes = np.sum([np.asarray(m.payload["z"], np.float64) for m in cohort.members], axis=0)
        blends = self.config.blend_modalities and votes.sum() > 0
        z = probes.shares(votes) if blends else self._z(state)  # Eq. 15
        weights = aggregation.modality_wise(cohort, lambda m: value[m.device])
        return weights, {"z": z, "effective_clients": np.array([1.0 / float(p @ p)])}

    def figures(self, state: State) -> dict[str, float]:
        names = (*self.spec.modality_names, "fused")
        found = {f"z.{name}": z for name, z in zip(names, self._z(state).tolist(), strict=True)}
        return found | {"effective_clients": float(state.get("effective_clients", np.zeros(1))[0])}

    def _z(self, state: State) -> Floats:
        initial = np.append(np.ones(len(self.spec.modalities)), float(self.config.blend_fused))
        return state["z"] if "z" in state else probes.shares(initial)


UPLOADS = PayloadSchema(
    (
        PayloadField("z", ("M+1",), low=0, high=2.001, required=True),
        PayloadField("gain", (1,), required=True),
        PayloadField("overfit", (1,), required=True),
    )
)
METHOD = Method(
    "hgb", Config, Client, Server, "Chen and Li, HGB, INFOCOM 2022", UPLOADS,
    needs=Needs(heads=True, mlp=True), sends=("z",),
)  # fmt: skip

__all__ = [
    "METHOD",
    "Client",
    "ClientBlendingConfig",
    "Config",
    "ModalityBlendingConfig",
    "Server",
    "blended_growth",
    "client_values",
    "head_weights",
]

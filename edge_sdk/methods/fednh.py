"""FedNH: class vectors on the unit sphere, moved by what clients' samples look like and never by gradients.

Source: Dai, Chen, Li, Heinecke, Sun, Xu, "Tackling Data Heterogeneity in Federated Learning with Class Prototypes",
AAAI 2023, arXiv:2212.02758, Algorithm 1; a baseline of BMSFed.

    model    logits = s · cos(h, w_j),   h = the features of all modalities side by side; w_j orthonormal at first
    client   CE on encoders (and s); w_j stays; gradients clipped to norm `clip`
             afterwards  μ_j = unit(mean over class j of unit(h)), evaluation mode;  reports n_j μ_j and n_j
    server   encoders and s: plain mean over those who trained them
             w_j ← unit(rho w_j + (1 − rho) unit(Σ_k n_kj μ_kj / Σ_k n_kj))

Differs from the source: several modalities (features of one that is not there are zeros, as in fused training; an
encoder is averaged over those who trained it); a class that nobody has keeps its vector (the code divides by nearly
0). The scale is learnt from 20 on, or fixed at 30 (`learn_scale = false`); `scale` says another beginning, such as the
source's 1. The class vectors are part of the fusion module, so the published model carries them and evaluation needs no
other.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.records import Array, ModelTensors
from edge_sdk.core.spec import Model
from edge_sdk.learn import aggregation, prototypes
from edge_sdk.learn.local_training import full_pass
from edge_sdk.learn.records import Batch, ClientContext, Cohort, Needs, Out, State, Weights
from edge_sdk.methods.base import ClientRule, Method, PayloadField, PayloadSchema, SyncServerRule

Floats = NDArray[np.float64]


class Config(Model):
    """Options of FedNH."""

    rho: float = Field(default=0.9, ge=0, le=1)  # what a class vector keeps of itself
    clip: float = Field(default=10.0, gt=0)  # largest norm of a step's gradient
    learn_scale: bool = True
    scale: float = Field(default=0.0, ge=0)  # s at first, 1 or 20; 0: 20, or 30 where it is fixed

    @property
    def first_scale(self) -> float:
        """The scale of version 0."""
        return self.scale or (20.0 if self.learn_scale else 30.0)


def unit(rows: Floats) -> Floats:
    """Returns rows of length 1, (C, D) -> (C, D); a row of zeros stays."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def moved(w: Floats, sums: Floats, counts: Floats, rho: float) -> Floats:
    """Returns the new class vectors (C, D).

    Args:
        w: (C, D) the present ones.
        sums: (C, D) Σ_k n_kj μ_kj.
        counts: (C,) Σ_k n_kj; a class with 0 keeps its vector.
        rho: what a vector keeps of itself.
    """
    seen = unit(sums / np.maximum(counts, 1.0)[:, None])
    new = unit(rho * unit(w) + (1.0 - rho) * seen)
    lost = (counts <= 0) | ~new.any(axis=1)  # nobody has the class, or what they have points nowhere
    return np.where(lost[:, None], w, new)


class Client(ClientRule[Config]):
    """Training of the encoders against class vectors that stay where they are."""

    def after_backward(self, ctx: ClientContext, batch: Batch, out: Out) -> None:
        for name, p in ctx.model.module("fusion").named_parameters():
            if name == "weight" or not self.config.learn_scale:
                p.grad = None
        trained = [p for name in ctx.phase.train for p in ctx.model.module(name).parameters()]
        torch.nn.utils.clip_grad_norm_(trained, self.config.clip)

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        def normalised(batch: Batch) -> torch.Tensor:
            h = ctx.model.concatenated(ctx.model.encode(batch.x, ctx.phase.modalities), batch.mask)
            return F.normalize(h, dim=1)

        means, counts = prototypes.local(full_pass(ctx, normalised), ctx.samples.y[ctx.samples.rows], ctx.num_classes)
        return {"sums": (counts[:, None] * unit(means)).astype(np.float32), "counts": counts}


class Server(SyncServerRule[Config]):
    """Plain means, and class vectors that follow the clients' classes."""

    def initial(self, tensors: ModelTensors) -> ModelTensors:
        fusion = tensors["fusion"]
        scaled = np.append(np.float32(self.config.first_scale), fusion.params[1:])  # "scale" (1,) lies before "weight"
        return {**tensors, "fusion": replace(fusion, params=scaled)}

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        return aggregation.modality_wise(cohort, lambda member: 1.0), {}

    def replaced(self, state: State, cohort: Cohort) -> ModelTensors:
        """The class vectors are made of what clients report, not of their tensors."""
        scales = [m.tensors["fusion"].params[:1] for m in cohort.members]  # of "scale"
        w = cohort.start["fusion"].params[1:].astype(np.float64).reshape(len(self.spec.classes), -1)
        sums = np.sum([np.asarray(m.payload["sums"], np.float64) for m in cohort.members], axis=0)
        counts = np.sum([np.asarray(m.payload["counts"], np.float64) for m in cohort.members], axis=0)
        vectors = moved(w, sums, counts, self.config.rho)
        return {"fusion": aggregation.made(cohort, "fusion", np.append(np.mean(scales), vectors.ravel()))}


UPLOADS = PayloadSchema(
    (
        PayloadField("sums", ("C", "M*D"), required=True),
        PayloadField("counts", ("C",), "int64", low=0, required=True),
    )
)
METHOD = Method(
    "fednh", Config, Client, Server, "arXiv:2212.02758", UPLOADS,
    needs=Needs(cosine_head=True), sends=("class vectors",),
)  # fmt: skip

__all__ = ["METHOD", "Client", "Config", "Server", "moved", "unit"]

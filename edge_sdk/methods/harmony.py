"""Harmony in its asynchronous form: modality-wise federated learning first, federated fusion after it.

Source: Ouyang, Xie, Fu, Cheng, Pan, Ling, Xing, Zhou, Huang, "Harmony: Heterogeneous Multi-Modal Federated Learning
through Disentangled Model Training", MobiSys 2023; Harmony-Async is a baseline of MBA, two stages of 1000 updates.

    stage 1  client  each modality that arrives is trained alone: (φ_m, d_m) by CE on d_m(φ_m(x_m))
             server  φ_m, d_m ← (1 − r_m)(φ_m, d_m) + r_m (φ_{n,m}, d_{n,m}),   r_m = alpha (τ_m + 1)^−a
                     one FedAsync per modality: τ_m = updates of modality m since the client's base version
    stage 2  client  waits for all; trains ψ (still at its initial values) with lr, encoders with encoder_lr · lr
             server  θ ← (1 − r) θ + r θ_n,   r = alpha (τ + 1)^−a

Differs from the source: no clusters of clients by modality bias and no allocation of compute; encoders of stage 2 are
uploaded and mixed too, so that one global model can be tested. With `harmony_strict` only ψ is, as in the source: every
device goes on from round to round with encoders of its own, which began as those of stage 1, and these stay in the
global model. A task is
one update: the modalities of a device travel together once the last is trained, and count as one of `stage1_updates`.
Encoder gradients are scaled instead of their learning rate, the same for SGD without weight decay. Updates of stage 1
that arrive in stage 2 are mixed by the rule of stage 1. During stage 1 the fused model is untrained by design.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.records import Array
from edge_sdk.core.spec import Model
from edge_sdk.learn import own_modules, staleness
from edge_sdk.learn.records import Batch, ClientContext, Needs, Out, Phase, Rates, RoundView, State, UpdateView
from edge_sdk.methods.base import AsyncServerRule, ClientRule, Method, PayloadField, PayloadSchema

UNIMODAL, FUSION = "unimodal", "fusion"  # the stages, as tasks name them
OWN = "harmony/own/"  # the device's own encoders of stage 2 in its memory, where they are not shared


class Config(Model):
    """Options of Harmony."""

    alpha: float = Field(default=0.9, gt=0, le=1)
    a: float = Field(default=0.5, ge=0)  # exponent of the staleness decay
    stage1_updates: int = Field(default=1000, ge=0)  # updates before the fusion is trained
    encoder_lr: float = Field(default=0.1, ge=0)  # of the encoders in stage 2, times lr
    harmony_strict: bool = False  # in stage 2 only ψ is uploaded, encoders stay on their devices


def modality_staleness(now: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns τ_m = updates of modality m since the client's base, (M,), (M,) -> (M,); never negative."""
    behind: NDArray[np.float64] = np.maximum(now - base, 0.0)
    return behind


class Client(ClientRule[Config]):
    """Every modality alone as it arrives; in the second stage all of them together."""

    def schedule(self, view: RoundView) -> tuple[Phase, ...]:
        if view.plan.phase == FUSION:
            send = ("fusion",) if self.config.harmony_strict else None
            return tuple(replace(phase, send=send) for phase in super().schedule(view))
        order = view.in_order
        early = order if view.waiting else order[:-1]
        alone = tuple(Phase(UNIMODAL, (m,), _modules(m), view.plan.epochs) for m in early)
        todo = tuple(phase for phase in alone if phase not in view.finished)
        if view.waiting or not order:
            return todo
        keep = tuple(module for m in early for module in _modules(m))
        last = Phase(UNIMODAL, order[-1:], (*keep, *_modules(order[-1])), view.plan.epochs, final=True, keep=keep)
        return (*todo, last)

    def begin(self, ctx: ClientContext) -> None:
        if self._keeps(ctx):
            own_modules.load(ctx, ctx.phase.train[:-1], OWN)  # all but "fusion"

    def end(self, ctx: ClientContext) -> None:
        if self._keeps(ctx):
            own_modules.save(ctx, ctx.phase.train[:-1], OWN)

    def _keeps(self, ctx: ClientContext) -> bool:
        return self.config.harmony_strict and ctx.phase.name != UNIMODAL

    def forward(self, ctx: ClientContext, batch: Batch) -> Out:
        if ctx.phase.name != UNIMODAL:
            return super().forward(ctx, batch)
        (m,) = ctx.phase.modalities
        features = ctx.model.encode(batch.x, (m,))
        return Out(features, ctx.model.module(f"head.{m}")(features[m]))

    def after_backward(self, ctx: ClientContext, batch: Batch, out: Out) -> None:
        if ctx.phase.name == UNIMODAL:
            return
        for m in ctx.phase.modalities:
            for p in ctx.model.module(f"encoder.{m}").parameters():
                if p.grad is not None:
                    p.grad.mul_(self.config.encoder_lr)

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        nothing = np.zeros(len(ctx.spec.modalities), np.int64)
        return {"versions": np.asarray(ctx.job.extras.get("versions", nothing), np.int64)}


def _modules(m: str) -> tuple[str, ...]:
    return f"encoder.{m}", f"head.{m}"


class Server(AsyncServerRule[Config]):
    """FedAsync per modality, then of the whole model.

    State: "updates" (1,) applied so far; "versions" (M,) of them with modality m.
    """

    def extras(self, state: State, device: str) -> dict[str, Array]:
        return {"versions": self._versions(state).astype(np.int64)}

    def stage(self, state: State, device: str) -> str:
        done = float(state["updates"][0]) if "updates" in state else 0.0
        return UNIMODAL if done < self.config.stage1_updates else FUSION

    def rates(self, state: State, update: UpdateView) -> tuple[Rates, State]:
        c, names = self.config, self.spec.modality_names
        whole = c.alpha * staleness.polynomial(update.staleness, c.a)
        rates = dict.fromkeys(update.modules, whole)
        versions = self._versions(state)
        if any(module.startswith("head.") for module in update.modules):
            base = np.asarray(update.payload.get("versions", versions), np.float64)
            for m, tau in zip(names, modality_staleness(versions, base).tolist(), strict=True):
                rates |= {k: c.alpha * staleness.polynomial(tau, c.a) for k in _modules(m) if k in rates}
        carried = np.array([f"encoder.{m}" in update.modules for m in names], np.float64)
        return Rates(rates), {"updates": state.get("updates", np.zeros(1)) + 1.0, "versions": versions + carried}

    def figures(self, state: State) -> dict[str, float]:
        return {"stage": 1.0 if self.stage(state, "") == UNIMODAL else 2.0}

    def _versions(self, state: State) -> NDArray[np.float64]:
        return state.get("versions", np.zeros(len(self.spec.modalities)))


UPLOADS = PayloadSchema((PayloadField("versions", ("M",), "int64", low=0, required=True),))
METHOD = Method(
    "harmony", Config, Client, Server, "Ouyang et al., Harmony, MobiSys 2023", UPLOADS,
    needs=Needs(heads=True), sends=("stage",),
)  # fmt: skip

__all__ = ["METHOD", "Client", "Config", "Server", "modality_staleness"]

"""Greedy: modalities that learn mostly from the others are made to learn from themselves. Alone, in rounds as FedAvg.

Source: Wu, Jastrzebski, Cho, Geras, "Characterizing and Overcoming the Greedy Nature of Learning in Multi-modal Deep
Neural Networks", ICML 2022, arXiv:2202.05306, Algorithm 1; a baseline of BMSFed.

    model    encoders with gates between their blocks (module "gates") and a head each; prediction: the mean of heads
    loss     Σ_m CE(head_m, y)
    speed_m  log10( Σ_steps ‖∇bypass_m‖²/‖bypass_m‖² ÷ Σ_steps ‖∇main_m‖²/‖main_m‖² )
             main_m: encoder and head of m;  bypass_m: the weights of its gates, shared ones included
    d_m      speed_m − mean of the other speeds
    after this device's first `warmup` epochs, after every backward pass outside a window: if the largest d_m is above
    epsilon, a window of `window` steps opens for that m: its gates are replaced by their running means, so that it has
    to learn from its own input; nothing is measured inside
    random   instead: in every step no window or that of one modality, all equally likely

Encoders that cannot be cut into blocks are fused as ever, with the loss CE: bypass_m are the fusion's weights that read
m, main_m is its encoder, and in a window for m the features of the others are replaced by their running means.

Differs from the source: any number of modalities (M = 2: d_m = ± the difference of speeds). Sums and windows go on from
round to round on their device. Running means, each of its own modality's gates (the authors' code mixes two up), are
part of the model as statistics. A row counts for the heads of the modalities that it has; gates see an absent modality
as zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.spec import Model
from edge_sdk.learn import scores
from edge_sdk.learn.records import Batch, ClientContext, Needs, Out, Phase, RoundView
from edge_sdk.methods import fedavg
from edge_sdk.methods.base import ClientRule, Method

BYPASS, MAIN = "greedy/bypass", "greedy/main"  # (M,) sums over the steps of a device, in its memory
EPOCHS, WINDOW = "greedy/epochs", "greedy/window"  # (1,) epochs done; (2,) number of the modality, steps left
SMALLEST = 1e-12  # squared norm of weights

Floats = NDArray[np.float64]


class Config(Model):
    """Options of Greedy's clients."""

    epsilon: float = Field(default=0.01, ge=0)
    window: int = Field(default=5, ge=1)  # steps; Q
    warmup: int = Field(default=1, ge=0)  # epochs of a device without windows
    random: bool = False


class _Gates(Protocol):
    """The model's module "gates"."""

    held: str

    def weights(self, modality: str) -> list[torch.Tensor]:
        """Returns the weights of a modality's gates, none where encoders cannot be cut."""


class _Fusion(Protocol):
    """The model's fusion; `own_logits` where there are gates."""

    def reading(self, modality: str) -> list[tuple[torch.Tensor, slice]]:
        """Returns the weights that read a modality, and which of their last entries do."""

    def own_logits(self, modality: str, h: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, C) of a modality's own head."""


def rate(parts: list[tuple[torch.Tensor, slice]]) -> float:
    """Returns ‖∇w‖²/‖w‖² over parts of weights that have a gradient."""
    found = [(p.detach()[..., part], p.grad[..., part]) for p, part in parts if p.grad is not None]
    if not found:
        return 0.0
    size, gradient = (sum(float(t.double().square().sum()) for t in tensors) for tensors in zip(*found, strict=True))
    return gradient / max(size, SMALLEST)


def speeds(bypass: Floats, main: Floats) -> Floats:
    """Returns log10(bypass / main), NaN where one of them is not positive, (M,), (M,) -> (M,)."""
    known = (bypass > 0) & (main > 0)
    return np.where(known, np.log10(np.where(known, bypass, 1.0)) - np.log10(np.where(known, main, 1.0)), np.nan)


def fastest(speed: Floats, epsilon: float) -> int | None:
    """Returns the modality that is more than epsilon faster than the mean of the others, the one that is most so."""
    known = np.flatnonzero(np.isfinite(speed))
    if len(known) < 2:
        return None
    s = speed[known]
    d = s - (s.sum() - s) / (len(s) - 1)
    return int(known[d.argmax()]) if d.max() > epsilon else None


class Client(ClientRule[Config]):
    """Training with windows in which a modality learns from its own input."""

    def schedule(self, view: RoundView) -> tuple[Phase, ...]:
        return tuple(replace(p, train=(*p.train, "gates")) for p in super().schedule(view))

    def begin(self, ctx: ClientContext) -> None:
        m = len(ctx.spec.modalities)
        for key, initial in ((BYPASS, np.zeros(m)), (MAIN, np.zeros(m)), (EPOCHS, np.zeros(1)), (WINDOW, np.zeros(2))):
            ctx.scratch[key] = np.array(ctx.memory.get(key, initial), np.float64)
        fusion = cast(_Fusion, ctx.model.module("fusion"))
        ctx.scratch["bypass"], ctx.scratch["main"] = {}, {}
        for name in ctx.phase.modalities:
            gates = [(w, slice(None)) for w in cast(_Gates, ctx.model.module("gates")).weights(name)]
            encoder = [(w, slice(None)) for w in ctx.model.module(f"encoder.{name}").parameters()]
            ctx.scratch["gated"] = bool(gates)
            ctx.scratch["bypass"][name] = gates or fusion.reading(name)
            ctx.scratch["main"][name] = [*encoder, *(fusion.reading(name) if gates else ())]

    def forward(self, ctx: ClientContext, batch: Batch) -> Out:
        gates = cast(_Gates, ctx.model.module("gates"))
        gates.held = self._held(ctx)
        out = super().forward(ctx, batch)
        gates.held = ""
        return out

    def _held(self, ctx: ClientContext) -> str:
        """Returns the modality that a window is open for, "" if there is none or nobody else."""
        here, names = ctx.phase.modalities, ctx.spec.modality_names
        if len(here) < 2:
            return ""
        if self.config.random:
            return ("", *here)[int(torch.randint(len(here) + 1, (1,), generator=ctx.rng))]
        number, left = ctx.scratch[WINDOW]
        return names[int(number)] if left > 0 and names[int(number)] in here else ""

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        if not ctx.scratch["gated"]:
            yield from super().loss_terms(ctx, batch, out)
            return
        fusion, here = cast(_Fusion, ctx.model.module("fusion")), scores.present(batch, ctx.spec.modality_names)
        for m in ctx.phase.modalities:
            if here[m].any():
                yield 1.0, F.cross_entropy(fusion.own_logits(m, out.features[m][here[m]]), batch.y[here[m]])

    def after_backward(self, ctx: ClientContext, batch: Batch, out: Out) -> None:
        if self.config.random:
            return
        window = ctx.scratch[WINDOW]
        if window[1] > 0:
            window[1] -= 1
            return
        for m in ctx.phase.modalities:
            column = ctx.spec.modality_names.index(m)
            ctx.scratch[BYPASS][column] += rate(ctx.scratch["bypass"][m])
            ctx.scratch[MAIN][column] += rate(ctx.scratch["main"][m])
        number = fastest(speeds(ctx.scratch[BYPASS], ctx.scratch[MAIN]), self.config.epsilon)
        if number is not None and ctx.scratch[EPOCHS][0] >= self.config.warmup:
            window[:] = number, self.config.window

    def end_epoch(self, ctx: ClientContext) -> None:
        ctx.scratch[EPOCHS] += 1

    def end(self, ctx: ClientContext) -> None:
        ctx.memory.update({key: ctx.scratch[key] for key in (BYPASS, MAIN, EPOCHS, WINDOW)})


METHOD = Method("greedy", Config, Client, fedavg.Server, "arXiv:2202.05306", needs=Needs(gates=True))

__all__ = ["METHOD", "Client", "Config", "fastest", "rate", "speeds"]

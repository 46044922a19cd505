"""Power of choice: of some candidates, those train whose loss is largest (pow-d, cpow-d, rpow-d).

Source: Cho, Wang, Joshi, "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice Selection
Strategies", arXiv:2010.01243, with its cheaper variants.
Differs from the source: a device whose n_k is not known yet counts as an average one; who does not answer in time is
not preferred, and only fills up places for which nobody else is left.

    server   candidates: d devices without replacement, with probability ∝ n_k (or uniformly)
             pow-d    each is asked for F_k(θ) = mean CE of θ over its local data, before the round
             cpow-d   the same over one mini-batch
             rpow-d   nobody is asked: F_k is the mean training loss of k's last round, ∞ for those who had none
             the K with the largest F_k train (ties: lower id); aggregation as FedAvg

Losses of devices that have different modalities are not comparable: BMSFed's paper leaves pow-d out there. It runs all
the same, each with the loss of what it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from pydantic import Field

from edge_sdk.core.records import Array
from edge_sdk.core.spec import Model
from edge_sdk.learn import probes, selection
from edge_sdk.learn.aggregation import normalised
from edge_sdk.learn.records import (
    Answer,
    Assignment,
    Batch,
    Candidate,
    ClientContext,
    Cohort,
    Out,
    Pool,
    Query,
    State,
    Weights,
)
from edge_sdk.methods.base import ClientRule, Method, PayloadField, PayloadSchema, SyncServerRule

LARGEST = float(np.finfo(np.float32).max)


class Config(Model):
    """Options of power of choice."""

    d: int = Field(default=0, ge=0)  # candidates; 0: half of the devices. Never fewer than K
    draw: Literal["samples", "uniform"] = "samples"  # candidates with probability ∝ n_k, or all alike
    loss: Literal["data", "batch"] = "data"  # asked over all local data, or over one mini-batch (cpow-d)


class MiniBatch(Config):
    """The same, asking for the loss of one mini-batch by default."""

    loss: Literal["data", "batch"] = "batch"


def candidates(
    samples: Mapping[str, float], d: int, rng: np.random.Generator, *, uniform: bool = False
) -> tuple[str, ...]:  # fmt: skip
    """Returns d devices drawn without replacement, with probability ∝ samples; sorted."""
    names = sorted(samples)
    shares = normalised({name: 1.0 if uniform else samples[name] for name in names})
    drawn = rng.choice(len(names), min(d, len(names)), replace=False, p=np.array([shares[name] for name in names]))
    return tuple(names[i] for i in sorted(drawn.tolist()))


def largest(losses: Mapping[str, float], k: int) -> tuple[str, ...]:
    """Returns the k devices with the largest losses, largest first; of equal ones the lower id."""
    return tuple(sorted(losses, key=lambda device: (-losses[device], device))[:k])


class Client(ClientRule[Config]):
    """Plain fused training, and the loss of the received model on request."""

    def answer(self, ctx: ClientContext) -> dict[str, Array]:
        rows = ctx.samples.rows
        if self.config.loss == "batch":
            rows = rows[torch.randperm(len(rows), generator=ctx.rng)[: ctx.job.plan.batch_size]]
        mean = probes.mean_losses(ctx, rows, lambda batch: _losses(self.forward(ctx, batch), batch))
        return {"loss": np.asarray(min(float(mean[0]), LARGEST), np.float32)}


def _losses(out: Out, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(out.logits, batch.y, reduction="none")[:, None]  # (B,) -> (B, 1)


class Reporter(Client):
    """Reports the mean training loss of its round with the update: rpow-d."""

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        for weight, term in super().loss_terms(ctx, batch, out):
            ctx.scratch.setdefault("losses", []).append((len(batch.y), weight * float(term.detach())))
            yield weight, term

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        rows, losses = np.array(ctx.scratch["losses"], np.float64).T
        return {"loss": np.asarray(min(float(np.average(losses, weights=rows)), LARGEST), np.float32)}


class Server(SyncServerRule[Config]):
    """The K candidates with the largest losses.

    State: "samples/<device>" (1,) n_k as last heard.
    """

    def query(
        self, state: State, fleet: tuple[Candidate, ...], size: int, rng: np.random.Generator
    ) -> tuple[Query, ...]:
        return tuple(Query(device, "loss") for device in self._candidates(state, fleet, size, rng))

    def answered(self, state: State, answers: tuple[Answer, ...]) -> State:
        return {f"samples/{a.device}": np.array([float(a.num_samples)]) for a in answers}

    def select(self, state: State, pool: Pool, rng: np.random.Generator) -> tuple[Assignment, ...]:
        return self._largest({a.device: float(a.payload["loss"]) for a in pool.answers}, pool, rng)

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        weights, patch = super().weights(state, cohort)
        return weights, {**patch, **{f"samples/{m.device}": np.array([float(m.num_samples)]) for m in cohort.members}}

    def _candidates(
        self, state: State, fleet: tuple[Candidate, ...], size: int, rng: np.random.Generator
    ) -> tuple[str, ...]:
        known = {c.device: float(state[f"samples/{c.device}"][0]) for c in fleet if f"samples/{c.device}" in state}
        average = float(np.mean(list(known.values()))) if known else 1.0
        samples = {c.device: known.get(c.device, average) for c in fleet}
        d = max(size, self.config.d or len(fleet) // 2)
        return candidates(samples, d, rng, uniform=self.config.draw == "uniform")

    def _largest(self, losses: Mapping[str, float], pool: Pool, rng: np.random.Generator) -> tuple[Assignment, ...]:
        """Returns the K with the largest losses, filled up with others where too few are known."""
        own = {c.device: c.modalities for c in pool.fleet}
        chosen = largest({device: loss for device, loss in losses.items() if device in own}, pool.size)
        return tuple(Assignment(device, own[device]) for device in selection.filled(chosen, tuple(own), pool.size, rng))


class RememberingServer(Server):
    """The K candidates whose last training loss is largest; nobody is asked.

    State: besides, "loss/<device>" (1,) the mean training loss of its last round.
    """

    def query(
        self, state: State, fleet: tuple[Candidate, ...], size: int, rng: np.random.Generator
    ) -> tuple[Query, ...]:
        return ()

    def select(self, state: State, pool: Pool, rng: np.random.Generator) -> tuple[Assignment, ...]:
        drawn = self._candidates(state, pool.fleet, pool.size, rng)
        return self._largest({device: _last(state, device) for device in drawn}, pool, rng)

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        weights, patch = super().weights(state, cohort)
        told = {f"loss/{m.device}": np.array([float(m.payload["loss"])]) for m in cohort.members}
        return weights, {**patch, **told}


def _last(state: State, device: str) -> float:
    key = f"loss/{device}"
    return float(state[key][0]) if key in state else math.inf


LOSS = PayloadSchema((PayloadField("loss", low=0.0, required=True),))
SOURCE = "arXiv:2010.01243"
METHOD = Method("pow_d", Config, Client, Server, SOURCE, answers=LOSS)
CPOW_D = Method("cpow_d", MiniBatch, Client, Server, SOURCE, answers=LOSS)
RPOW_D = Method("rpow_d", Config, Reporter, RememberingServer, SOURCE, LOSS)

__all__ = [
    "CPOW_D",
    "METHOD",
    "RPOW_D",
    "Client",
    "Config",
    "MiniBatch",
    "RememberingServer",
    "Reporter",
    "Server",
    "candidates",
    "largest",
]

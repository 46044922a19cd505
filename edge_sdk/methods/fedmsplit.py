"""FedMSplit: every client has blocks of its own, drawn to those of clients that resemble it in all that they share.

Source: Chen, Zhang, "FedMSplit: Correlation-Adaptive Federated Multi-Task Learning across Multimodal Split Networks",
KDD 2022; a baseline of BMSFed. There is no public code, and the paper leaves details open: this is an operational
definition. A block is a module: an encoder, or the fusion. The server keeps the last blocks of every client.

    client k  starts from its blocks b_k', trains the fused model;  L = CE + lam Σ ‖b − b_k'‖²
    server    A_b = softmax over rows of Θ_b Θ_bᵀ / √dim_b     Θ_b: blocks of all clients that have b, rows of length 1
              e_kl = mean over the blocks that k and l share of A_b[k, l];  later  e ← gamma e_old + (1 − gamma) e
              b_k' = Σ_l A_b[k, l] e_kl b_l / Σ_l A_b[k, l] e_kl          sent to k with its next task

The global model is the plain mean of all clients' last blocks: it is what is published and evaluated, and what a client
that has not taken part yet begins with.

Differs from the source, as far as it says: see above; and running statistics are shared, not personal. With rows of
length 1 the products lie in [−1, 1] and attention is nearly uniform for large blocks; without (`normalise = false`) it
is nearly one-hot on the client itself. gamma is 0.9 in BMSFed's runs, which do not say what it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.records import Array, ModelTensors, Segments
from edge_sdk.core.spec import Model
from edge_sdk.learn import aggregation, params
from edge_sdk.learn.records import Assignment, Batch, ClientContext, Cohort, Out, Query, State, Weights
from edge_sdk.methods.base import ClientRule, Method, SyncServerRule

BLOCK, ORDER, EDGES = "block/{}/{}", "order/{}", "edges"  # of a module and a device; of a device; of all
PERSONAL = "personal.{}"  # of a module, with a task
Floats = NDArray[np.float64]


class Config(Model):
    """Options of FedMSplit."""

    gamma: float = Field(default=0.9, ge=0, lt=1)  # what edges keep of earlier rounds
    normalise: bool = True  # rows of Θ to length 1
    lam: float = Field(default=0.0, ge=0)  # proximal strength on clients; re-implementations use 0.01 to 0.1


def attention(theta: Floats, *, normalise: bool = True) -> Floats:
    """Returns A (N, N), rows summing to 1, of blocks (N, P)."""
    if normalise:
        length = np.linalg.norm(theta, axis=1, keepdims=True)
        theta = theta / np.where(length > 0, length, 1.0)
    products = theta @ theta.T / np.sqrt(max(1, theta.shape[1]))
    exp = np.exp(products - products.max(axis=1, keepdims=True))
    a: Floats = exp / exp.sum(axis=1, keepdims=True)
    return a


def edges(attentions: list[Floats], owners: list[NDArray[np.intp]], clients: int) -> Floats:
    """Returns e (N, N): the mean of A_b over the blocks that two clients share, 0 where they share none.

    Args:
        attentions: A_b (n_b, n_b) per block.
        owners: numbers (n_b,) of the clients that have the block.
        clients: N.
    """
    total, count = np.zeros((clients, clients)), np.zeros((clients, clients))
    for a, own in zip(attentions, owners, strict=True):
        total[np.ix_(own, own)] += a
        count[np.ix_(own, own)] += 1.0
    return total / np.maximum(count, 1.0)


def smoothed(old: Floats, new: Floats, gamma: float) -> Floats:
    """Returns gamma e_old + (1 − gamma) e; pairs without a past (0, or beyond the old table) take e as it is."""
    before = np.zeros_like(new)
    before[: len(old), : len(old)] = old
    return np.where((before > 0) & (new > 0), gamma * before + (1.0 - gamma) * new, np.maximum(before, new))


def personal(a: Floats, e: Floats, blocks: Floats) -> Floats:
    """Returns Σ_l a_l e_l b_l / Σ_l a_l e_l: (n,), (n,), (n, P) -> (P,)."""
    weights = a * e
    mixed: Floats = weights @ blocks / weights.sum()
    return mixed


class Client(ClientRule[Config]):
    """Training of the fused model from blocks of its own."""

    def begin(self, ctx: ClientContext) -> None:
        for name in ctx.phase.train:
            if PERSONAL.format(name) in ctx.job.extras:
                own = np.asarray(ctx.job.extras[PERSONAL.format(name)], np.float32)
                shared = ctx.job.start[name]
                values = {name: Segments(own, shared.stats, shared.counters)}
                params.load({name: ctx.model.module(name)}, values)
        ctx.scratch["start"] = [p.detach().clone() for p in self._live(ctx)]

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        yield from super().loss_terms(ctx, batch, out)
        if self.config.lam:
            yield self.config.lam, params.sq_dist(self._live(ctx), ctx.scratch["start"])

    def _live(self, ctx: ClientContext) -> list[torch.Tensor]:
        return [p for name in ctx.phase.train for p in ctx.model.module(name).parameters()]


class Server(SyncServerRule[Config]):
    """Blocks of all clients, and how much they resemble one another.

    State: "block/<module>/<device>" (P,) as it came; "order/<device>" (1,) its number; "edges" (N, N) by number.
    """

    def extras(self, state: State, task: Assignment | Query) -> dict[str, Array]:
        if ORDER.format(task.device) not in state:
            return {}
        k, found = int(state[ORDER.format(task.device)][0]), {}
        for module, devices in _owners(state).items():
            if task.device in devices:
                theta, own = _stacked(state, module, devices)
                row = attention(theta, normalise=self.config.normalise)[devices.index(task.device)]
                found[PERSONAL.format(module)] = personal(row, state[EDGES][k, own], theta).astype(np.float32)
        return found

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        patch = _received(state, cohort)
        now = {**state, **patch}
        clients = sum(name.startswith(ORDER.format("")) for name in now)
        found = [_stacked(now, module, devices) for module, devices in _owners(now).items()]
        attentions = [attention(theta, normalise=self.config.normalise) for theta, _ in found]
        e = edges(attentions, [own for _, own in found], clients)
        return Weights({}), {**patch, EDGES: smoothed(state.get(EDGES, np.zeros((0, 0))), e, self.config.gamma)}

    def replaced(self, state: State, cohort: Cohort) -> ModelTensors:
        """The mean runs over the last blocks of all clients, most of whom are not in this cohort."""
        now = {**state, **_received(state, cohort)}
        trained, owners = aggregation.owners(cohort), _owners(now)
        means = {module: _stacked(now, module, owners[module])[0].mean(axis=0) for module in trained}
        return {module: aggregation.made(cohort, module, mean) for module, mean in means.items()}

    def figures(self, state: State) -> dict[str, float]:
        return {"clients": float(len(state[EDGES])) if EDGES in state else 0.0}


def _received(state: State, cohort: Cohort) -> dict[str, Floats]:
    """Returns the entries that a cohort's blocks change, numbers for devices that are new among them."""
    known = sum(name.startswith(ORDER.format("")) for name in state)
    new = [m.device for m in cohort.members if ORDER.format(m.device) not in state]
    patch = {ORDER.format(device): np.array([float(known + i)]) for i, device in enumerate(new)}
    for m in cohort.members:
        patch |= {BLOCK.format(name, m.device): s.params.astype(np.float64) for name, s in m.tensors.items()}
    return patch


def _owners(state: State) -> dict[str, list[str]]:
    """Returns module → the devices whose block of it is there, both sorted."""
    pairs = sorted(name.split("/")[1:] for name in state if name.startswith("block/"))
    owners: dict[str, list[str]] = {}
    for module, device in pairs:
        owners.setdefault(module, []).append(device)
    return owners


def _stacked(state: State, module: str, devices: list[str]) -> tuple[Floats, NDArray[np.intp]]:
    """Returns blocks (n, P) and the numbers (n,) of their devices."""
    numbers = np.array([int(state[ORDER.format(device)][0]) for device in devices])
    return np.stack([state[BLOCK.format(module, device)] for device in devices]), numbers


METHOD = Method("fedmsplit", Config, Client, Server, "Chen and Zhang, FedMSplit, KDD 2022", sends=("personal blocks",))

__all__ = ["METHOD", "Client", "Config", "Server", "attention", "edges", "personal", "smoothed"]

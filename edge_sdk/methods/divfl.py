"""DivFL: a round's clients are those whose gradients stand for everybody's.

Source: Balakrishnan, Li, Zhou, Himayat, Smith, Bilmes, "Diverse Client Selection for Federated Learning via Submodular
Maximization", ICLR 2022, its "no-overheads" form with stochastic greedy.
Differs from the source: gradients are parameter changes of local training (as in BMSFed's code), or, with `vector =
"gradient"`, those per local step: the mean gradient up to the learning rate. They are projected to 4096 numbers
(`learn.deltas`). Updates are weighted by samples, as in the authors' code, not by cluster sizes as in the theory.

    round 1  every device trains one epoch from θ and answers with g_k
    server   D_jk = ‖g_j − g_k‖;  minimise G(S) = Σ_j min_{i∈S} D_ji, |S| = K, greedily (`learn.selection`), each step
             over a random subset of max(K, ⌊0.1 N⌋) devices
    after    g_k of those who trained is taken anew from their updates

A device that comes later is asked in the next round that `ask_every` divides: one that never answers would otherwise
keep every round waiting. Devices without a vector are chosen only where fewer than K have one.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.records import Array, ModelTensors
from edge_sdk.core.spec import Model
from edge_sdk.learn import deltas, params, selection
from edge_sdk.learn.records import Answer, Assignment, Candidate, ClientContext, Cohort, Pool, Query, State, Weights
from edge_sdk.methods.base import ClientRule, Method, PayloadField, PayloadSchema, SyncServerRule

ROUNDS = "rounds"


class Config(Model):
    """Options of DivFL."""

    vector: Literal["delta", "gradient"] = "delta"  # change of a local round, or per local step
    refresh: int = Field(default=0, ge=0)  # every so many rounds everybody answers again; 0: never
    ask_every: int = Field(default=5, ge=1)  # rounds between questions to those who have not answered
    greedy: bool = False  # each step over everybody left, instead of over a random subset


C = TypeVar("C", bound=Config)


def change(trained: ModelTensors, start: ModelTensors, *, num_steps: int, per_step: bool) -> NDArray[np.float64]:
    """Returns g = (start − trained) over all modules, divided by the number of steps if asked; (deltas.SIZE,)."""
    whole = deltas.sketch(trained, start, sorted(start))
    return whole / max(1, num_steps) if per_step else whole


class Client(ClientRule[C]):
    """Plain fused training, and the change of one epoch of it on request."""

    def answer(self, ctx: ClientContext) -> dict[str, Array]:
        trained = params.read({name: ctx.model.module(name) for name in ctx.phase.train})
        per_step = self.config.vector == "gradient"
        found = change(trained, ctx.job.start, num_steps=ctx.num_steps, per_step=per_step)
        return {"delta": found.astype(np.float32)}


class Server(SyncServerRule[C]):
    """Facility location on the changes of all devices.

    State: "delta/<device>" (deltas.SIZE,) as last heard; "rounds" (1,) rounds done.
    """

    def query(
        self, state: State, fleet: tuple[Candidate, ...], size: int, rng: np.random.Generator
    ) -> tuple[Query, ...]:
        done, c = int(state.get(ROUNDS, np.zeros(1))[0]), self.config
        everybody, unknown = bool(c.refresh and done and done % c.refresh == 0), done % c.ask_every == 0
        asked = [d.device for d in fleet if everybody or (unknown and f"delta/{d.device}" not in state)]
        return tuple(Query(device, "delta", epochs=1) for device in asked)

    def answered(self, state: State, answers: tuple[Answer, ...]) -> State:
        return {f"delta/{a.device}": a.payload["delta"].astype(np.float64) for a in answers}

    def select(self, state: State, pool: Pool, rng: np.random.Generator) -> tuple[Assignment, ...]:
        own = {c.device: c.modalities for c in pool.fleet}
        known = [device for device in own if f"delta/{device}" in state]
        chosen: list[str] = []
        if known:
            matrix = selection.distances(np.stack([state[f"delta/{device}"] for device in known]))
            size = len(known) if self.config.greedy else selection.subset_size(pool.size, len(known))
            chosen = [known[i] for i in selection.greedy(matrix, pool.size, size, rng)]
        return tuple(Assignment(device, own[device]) for device in selection.filled(chosen, tuple(own), pool.size, rng))

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        weights, patch = super().weights(state, cohort)
        per_step = self.config.vector == "gradient"
        heard = {
            f"delta/{m.device}": change(m.tensors, cohort.start, num_steps=m.num_steps, per_step=per_step)
            for m in cohort.members
        }
        return weights, {**patch, **heard, ROUNDS: np.array([cohort.round + 1.0])}


ANSWERS = PayloadSchema((PayloadField("delta", (deltas.SIZE,), required=True),))
METHOD = Method("divfl", Config, Client, Server, "ICLR 2022", answers=ANSWERS)

__all__ = ["ANSWERS", "METHOD", "Client", "Config", "Server", "change"]

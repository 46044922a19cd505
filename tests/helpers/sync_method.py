"""A synchronous method that asks: devices report a number, and the one with the largest trains, told what it said."""

from __future__ import annotations

import numpy as np

from edge_sdk.core.records import Array, ModelTensors, Segments
from edge_sdk.learn.records import Answer, Assignment, Candidate, ClientContext, Cohort, Pool, Query, State
from edge_sdk.methods.base import ClientRule, Method, NoConfig, PayloadField, PayloadSchema, SyncServerRule

NUMBER = PayloadSchema((PayloadField("number", low=0.0, high=1e6, required=True),))


class Client(ClientRule[NoConfig]):
    """Reports how many samples it has, before and after training."""

    def answer(self, ctx: ClientContext) -> dict[str, Array]:
        return {"number": np.asarray(len(ctx.samples.rows), np.float32)}

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        return self.answer(ctx)


class Server(SyncServerRule[NoConfig]):
    """Asks everybody, selects the largest answers, remembers them, and counts rounds in a module of its own making."""

    def query(
        self, state: State, fleet: tuple[Candidate, ...], size: int, rng: np.random.Generator
    ) -> tuple[Query, ...]:
        return tuple(Query(c.device, "number") for c in fleet)

    def answered(self, state: State, answers: tuple[Answer, ...]) -> State:
        return {f"number/{a.device}": np.asarray(a.payload["number"], np.float64) for a in answers}

    def select(self, state: State, pool: Pool, rng: np.random.Generator) -> tuple[Assignment, ...]:
        order = sorted(pool.fleet, key=lambda c: (-float(state.get(f"number/{c.device}", -1.0)), c.device))
        return tuple(Assignment(c.device, c.modalities, "largest", epochs=3, lr_scale=0.5) for c in order[: pool.size])

    def extras(self, state: State, task: Assignment | Query) -> dict[str, Array]:
        known = state.get(f"number/{task.device}")
        return {} if known is None else {"number": known}

    def replaced(self, state: State, cohort: Cohort) -> ModelTensors:
        return {"fusion": Segments(np.full_like(cohort.start["fusion"].params, cohort.round + 1))}


METHOD = Method("asking", NoConfig, Client, Server, source="a test", uploads=NUMBER, answers=NUMBER)

__all__ = ["METHOD", "Client", "Server"]

"""FedBuff: buffered asynchronous aggregation, each update added at once instead of K together.

Source: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous
Aggregation", AISTATS 2022, arXiv:2106.06639, Algorithm 1.

    source   collect s(τ_i) Δ_i of K updates;   θ ← θ + server_lr · (1/K) Σ_i s(τ_i) Δ_i;   s(τ) = (τ + 1)^−a
    here     θ ← θ + server_lr · s(τ_i) / K · Δ_i as each arrives

Differs from the source: after every K updates θ has had the same sum of weighted changes as in the source, but clients
may start in between from a version that holds part of a buffer. In exchange an update is never held back, and a server
that is killed loses none. τ counts server steps, as in the source: with t versions, step t // K, so an update of the
same buffer is not stale. Clients train the fused model plainly.
"""

from __future__ import annotations

from pydantic import Field

from edge_sdk.core.spec import Model
from edge_sdk.learn import staleness
from edge_sdk.learn.records import Phase, Rates, State, UpdateView
from edge_sdk.methods.base import AsyncServerRule, ClientRule, Method


class Config(Model):
    """Options of FedBuff."""

    k: int = Field(default=10, ge=1)  # size of the buffer, K
    server_lr: float = Field(default=1.0, gt=0, le=1)
    a: float = Field(default=0.5, ge=0)  # exponent of the staleness decay


def steps_behind(version: int, staleness: int, k: int) -> int:
    """Returns how many server steps of k updates lie between an update's base version and now."""
    return version // k - (version - staleness) // k


class Client(ClientRule[Config]):
    """Plain training of the fused model."""

    def stacks(self, phase: Phase) -> bool:
        return True


class Server(AsyncServerRule[Config]):
    """Adds every change at once, with its share of a buffer."""

    def rates(self, state: State, update: UpdateView) -> tuple[Rates, State]:
        c = self.config
        s = staleness.polynomial(steps_behind(update.version, update.staleness, c.k), c.a)
        return Rates.same(update.modules, c.server_lr * s / c.k, "add"), {}


METHOD = Method("fedbuff", Config, Client, Server, "arXiv:2106.06639")

__all__ = ["METHOD", "Client", "Config", "Server", "steps_behind"]

"""FedNova: normalised averaging, for clients that do different numbers of local steps.

Source: Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020, arXiv:2007.07481, equations 6 and 7; the momentum of the server is that of the authors'
code.

    client   plain local training; its update says how many steps τ_k it took
    server   ‖a_k‖ = τ_k for plain SGD;  with momentum β and a proximal term μ, at learning rate η, over τ_k steps:
             c ← β c + 1,   a ← (1 − ημ)(a + c) + 1        (μ = 0: a ← a + c;   β = 0: a ← (1 − ημ) a + 1)
             τ_eff = Σ_k p_k ‖a_k‖,   p_k = n_k / Σ n
             θ ← θ + Σ_k c_k (θ_k − θ),   c_k = p_k τ_eff / ‖a_k‖
             server_momentum g > 0:   v ← g v + Σ_k c_k (θ_k − θ),   θ ← θ + v

Differs from the source: everything is done per module over the clients that trained it in this round, with p_k
normalised over them. Clients report nothing: steps stand in every update, and β, μ and η are those of the federation
(η = lr · lr_decay^round; `mu` has to be that of proximal clients), so that any client rule works with this server.
Statistics (running means) are averaged with p_k. Momentum buffers of clients begin anew in every round.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.records import ModelTensors
from edge_sdk.core.spec import Model
from edge_sdk.learn import aggregation
from edge_sdk.learn.records import Cohort, Member, Phase, State, Weights
from edge_sdk.methods.base import ClientRule, Method, SyncServerRule

VELOCITY = "velocity/{}"  # of a module, in the server's state


class Config(Model):
    """Options of FedNova."""

    mu: float = Field(default=0.0, ge=0)  # proximal strength of the clients
    effective: str = Field(default="norm", pattern="^(norm|steps)$")  # τ_eff = Σ p ‖a‖, or Σ p τ (the code, if μ > 0)
    server_momentum: float = Field(default=0.0, ge=0, lt=1)


def a_norm(steps: int, momentum: float = 0.0, eta_mu: float = 0.0) -> float:
    """Returns ‖a_k‖ of local steps with momentum β and learning rate times proximal strength ημ; at least 1."""
    if not momentum and not eta_mu:
        return float(max(1, steps))
    c = a = 0.0
    for _ in range(steps):
        if momentum:
            c = momentum * c + 1.0
            a += c
        if eta_mu:
            a = (1.0 - eta_mu) * a + 1.0
    return max(1.0, a)


def coefficients(
    p: NDArray[np.float64], norms: NDArray[np.float64], steps: NDArray[np.float64]
) -> NDArray[np.float64]:  # fmt: skip
    """Returns c_k = p_k τ_eff / ‖a_k‖ with τ_eff = Σ p steps, (K,) each; `steps` are the norms in the paper."""
    c: NDArray[np.float64] = p * float(p @ steps) / norms
    return c


class Client(ClientRule[Config]):
    """Plain training of the fused model."""

    def stacks(self, phase: Phase) -> bool:
        return True


class Server(SyncServerRule[Config]):
    """Updates weighted by what a step of theirs was worth.

    State: "velocity/<module>" (P,), with server momentum alone.
    """

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        by_block, keep = dict(aggregation.averaged_statistics(cohort).by_block), {}
        patch: dict[str, NDArray[np.float64]] = {}
        for module, members in aggregation.owners(cohort).items():
            shares = self._shares(members, cohort.round)
            whole = not cohort.start[module].stats.size
            for block in (module,) if whole else aggregation.blocks(cohort, module, "params"):
                by_block[block], keep[block] = shares, 1.0 - sum(shares.values())
            if self.config.server_momentum:
                patch[VELOCITY.format(module)] = self._velocity(state, cohort, module, shares)
        return Weights(by_block, keep), patch

    def replaced(self, state: State, cohort: Cohort) -> ModelTensors:
        """With momentum a module moves by its velocity, which holds more than this cohort."""
        if not self.config.server_momentum:
            return {}
        velocities = {
            module: self._velocity(state, cohort, module, self._shares(members, cohort.round))
            for module, members in aggregation.owners(cohort).items()
        }
        return {m: aggregation.made(cohort, m, cohort.start[m].params + v) for m, v in velocities.items()}

    def _shares(self, members: tuple[Member, ...], number: int) -> dict[str, float]:
        """Returns device → c_k."""
        training, devices = self.spec.training, [m.device for m in members]
        eta_mu = training.lr * training.lr_decay**number * self.config.mu
        p = aggregation.normalised({m.device: aggregation.by_samples(m) for m in members})
        norms = np.array([a_norm(m.num_steps, training.momentum, eta_mu) for m in members])
        steps = norms if self.config.effective == "norm" else np.array([max(1, m.num_steps) for m in members])
        c = coefficients(np.array([p[d] for d in devices]), norms, steps)
        return dict(zip(devices, c.tolist(), strict=True))

    def _velocity(self, state: State, cohort: Cohort, module: str, shares: Mapping[str, float]) -> NDArray[np.float64]:
        start = cohort.start[module].params.astype(np.float64)
        velocity = self.config.server_momentum * state.get(VELOCITY.format(module), np.zeros_like(start))
        for member in cohort.members:
            if member.device in shares:
                velocity += shares[member.device] * (member.tensors[module].params - start)
        return velocity


METHOD = Method("fednova", Config, Client, Server, "arXiv:2007.07481")

__all__ = ["METHOD", "Client", "Config", "Server", "a_norm", "coefficients"]

"""FedAttn (FedAtt): attentive aggregation, tensor by tensor.

Source: Ji, Pan, Long, Li, Jiang, Huang, "Learning Private Neural Language Modeling with Attentive Aggregation",
IJCNN 2019, arXiv:1812.07108, Algorithm 1, in the form of the authors' code; a baseline of HGB.

    client   plain local training
    server   for every tensor w of the model, over the clients that trained its module:
             d_k = ‖w − w_k‖,   a = softmax_k(d),   w ← w − epsilon Σ_k a_k (w − w_k)   [+ noise · N(0, 1)]

A larger distance has a larger weight, as published; with epsilon > 1 a step goes further than the clients did.

Differs from the source: the Frobenius norm for every tensor (`norm = "spectral"`: of matrices the spectral one, as in
the code). Running
statistics are averaged with n_k, for a variance must not be extrapolated. `noise` is there to repeat the published
runs (0.001); it is drawn from the number of the round, so it protects nobody's data, and is 0 by default.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.records import Array, ModelTensors
from edge_sdk.core.spec import Model
from edge_sdk.learn import aggregation, params, seeds
from edge_sdk.learn.records import Cohort, Phase, State, Weights
from edge_sdk.methods.base import ClientRule, Method, SyncServerRule


class Config(Model):
    """Options of FedAttn."""

    epsilon: float = Field(default=1.2, gt=0)  # step size
    norm: Literal["frobenius", "spectral"] = "frobenius"  # of a matrix; of any other tensor it is Frobenius
    noise: float = Field(default=0.0, ge=0)  # standard deviation of what is added to every value


def attention(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns softmax(d), (K,) -> (K,)."""
    exp = np.exp(distances - distances.max())
    a: NDArray[np.float64] = exp / exp.sum()
    return a


def distance(w: Array, w_k: Array, *, spectral: bool = False) -> float:
    """Returns ‖w − w_k‖ over all elements, or the largest singular value of a matrix; in float64."""
    apart = w.astype(np.float64) - w_k
    return float(np.linalg.norm(apart, 2) if spectral and apart.ndim == 2 else np.linalg.norm(apart.ravel()))


class Client(ClientRule[Config]):
    """Plain training of the fused model."""

    def stacks(self, phase: Phase) -> bool:
        return True


class Server(SyncServerRule[Config]):
    """Weights by distance from the global model, for each tensor its own."""

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        by_block, keep = dict(aggregation.averaged_statistics(cohort).by_block), {}
        for module, members in aggregation.owners(cohort).items():
            names = [block.partition(":")[2] for block in aggregation.blocks(cohort, module, "params")]
            before, *after = (
                params.named_arrays(cohort.layout[module], values)
                for values in (cohort.start[module], *(m.tensors[module] for m in members))
            )
            for name in names:
                far = [distance(before[name], w[name], spectral=self.config.norm == "spectral") for w in after]
                a = attention(np.array(far))
                shares = zip((m.device for m in members), a.tolist(), strict=True)
                by_block[f"{module}:{name}"] = {device: self.config.epsilon * a_k for device, a_k in shares}
                keep[f"{module}:{name}"] = 1.0 - self.config.epsilon
        return Weights(by_block, keep), {}

    def replaced(self, state: State, cohort: Cohort) -> ModelTensors:
        """With noise every value gets a draw of its own, which no weights can say."""
        if not self.config.noise:
            return {}
        theta = params.copy({module: cohort.start[module] for module in aggregation.owners(cohort)})
        members = {m.device: m.tensors for m in cohort.members}
        aggregation.combine(theta, cohort.layout, members, self.weights(state, cohort)[0])
        rng = np.random.default_rng(seeds.derive("fedattn", cohort.round))
        for values in theta.values():
            values.params[:] += self.config.noise * rng.standard_normal(values.params.size, np.float32)
        return theta


METHOD = Method("fedattn", Config, Client, Server, "arXiv:1812.07108")

__all__ = ["METHOD", "Client", "Config", "Server", "attention", "distance"]

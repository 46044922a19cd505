from __future__ import annotations

import numpy as np
import torch

from edge_sdk.core.records import ModelTensors
from edge_sdk.core.spec import FederationSpec
from edge_sdk.methods import fedavg, fedprox
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import learning


def test_the_pull_by_hand() -> None:
    found = fedprox.pull(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5]), torch.tensor([1.0, 1.0]), 0.5)
    assert found.tolist() == [2.0, -2.25]


def test_steps_are_those_of_the_proximal_objective() -> None:
    """One batch per epoch, two epochs: w2 = w1 − lr (g1 + μ (w1 − w0)), where FedAvg's w2 is w1 − lr g1."""
    data = learning.round_data(16)
    spec = learning.spec(method="fedprox", config={"mu": 0.5}, epochs=2)
    start = build.initial_tensors(spec)

    def trained(spec: FederationSpec) -> ModelTensors:
        return learning.train_round(spec, ("acc", "gyro"), start=start, data=data)[0].tensors

    first, ours = trained(learning.spec(method="fedavg", epochs=1)), trained(spec)
    theirs = trained(learning.spec(method="fedavg", epochs=2))
    for name, w2 in ours.items():
        w0, w1 = start[name].params, first[name].params
        assert np.abs(w2.params - theirs[name].params).max() > 1e-5
        np.testing.assert_allclose(w2.params, theirs[name].params - 0.1 * 0.5 * (w1 - w0), atol=2e-6)


def test_without_mu_it_is_fedavg_to_the_last_bit() -> None:
    """Invariant 7."""
    ours, theirs = learning.federation("fedprox", config={"mu": 0.0}), learning.federation("fedavg")
    for fed in (ours, theirs):
        learning.sync_round(fed, size=3)
        learning.sync_round(fed, size=3)
    assert learning.equal(ours.theta, theirs.theta)


def test_a_large_mu_keeps_the_model_near_its_start() -> None:
    near, far = (learning.train_round(learning.spec(method="fedprox", config={"mu": mu}), ("acc", "gyro"))[0].tensors
                 for mu in (8.0, 0.01))  # fmt: skip
    start = build.initial_tensors(learning.spec())
    moved = [sum(float(np.abs(t[n].params - start[n].params).sum()) for n in t) for t in (near, far)]
    assert moved[0] < moved[1] / 2


def test_its_clients_work_with_other_servers() -> None:
    composed = find("fedprox+fedavg")
    assert (composed.client, composed.server, composed.mode) == (fedprox.Client, fedavg.Server, "sync")
    assert find("fedprox+fedasync").mode == "async"

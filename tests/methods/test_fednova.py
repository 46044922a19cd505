from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.core.records import ModuleLayout, Segments, TensorSpec
from edge_sdk.learn import aggregation, params
from edge_sdk.learn.records import Cohort, Member, Weights
from edge_sdk.methods import fednova
from edge_sdk.methods.base import find
from tests.helpers import learning


def test_norms_by_hand() -> None:
    assert fednova.a_norm(7) == 7.0
    # β = 0.5: c = 1, 1.5, 1.75 -> a = 1 + 1.5 + 1.75
    assert fednova.a_norm(3, momentum=0.5) == pytest.approx(4.25)
    # ημ = 0.1: a = 1, 1.9, 2.71
    assert fednova.a_norm(3, eta_mu=0.1) == pytest.approx(2.71)
    # both: a = 0.9·1 + 1 = 1.9, c = 1.5: 0.9·3.4 + 1 = 4.06
    assert fednova.a_norm(2, momentum=0.5, eta_mu=0.1) == pytest.approx(4.06)
    assert fednova.a_norm(0) == 1.0


@pytest.mark.parametrize("steps", [1, 2, 17])
def test_norm_of_momentum_is_what_momentum_does_to_equal_gradients(steps: int) -> None:
    w = velocity = 0.0
    for _ in range(steps):
        velocity = 0.9 * velocity + 1.0
        w -= velocity
    assert fednova.a_norm(steps, momentum=0.9) == pytest.approx(-w)


def test_coefficients_by_hand() -> None:
    p, tau = np.array([0.25, 0.75]), np.array([2.0, 6.0])
    # τ_eff = 0.5 + 4.5 = 5
    assert fednova.coefficients(p, tau, tau).tolist() == pytest.approx([0.25 * 5 / 2, 0.75 * 5 / 6])


LAYOUT = {
    name: ModuleLayout((TensorSpec("w", (2,), "params", 0), TensorSpec("var", (1,), "stats", 0)), 2, 1, 0)
    if name == "encoder.acc"
    else ModuleLayout((TensorSpec("w", (2,), "params", 0),), 2, 0, 0)
    for name in ("encoder.acc", "fusion")
}
START = {
    "encoder.acc": Segments(np.array([1.0, 2.0], np.float32), np.array([8.0], np.float32)),
    "fusion": Segments(np.array([0.0, 4.0], np.float32)),
}


def member(device: str, n: int, steps: int, w: tuple[float, float], *, encoder: bool = True) -> Member:
    tensors = {"fusion": Segments(np.array(w, np.float32))}
    if encoder:
        tensors["encoder.acc"] = Segments(np.array(w, np.float32), np.array([w[0]], np.float32))
    return Member(device, ("acc",), n, steps, {}, tensors)


def applied(weights: Weights, cohort: Cohort) -> dict[str, Segments]:
    theta = params.copy(START)
    aggregation.combine(theta, LAYOUT, {m.device: m.tensors for m in cohort.members}, aggregation.checked(weights))
    return theta


def server(**config: object) -> fednova.Server:
    rule = find("fednova").server_rule(config, learning.spec(method="fednova"))
    assert isinstance(rule, fednova.Server)
    return rule


def test_a_round_by_hand_each_module_over_those_who_trained_it() -> None:
    cohort = Cohort(0, START, (member("p", 1, 2, (3.0, 0.0)), member("q", 3, 6, (5.0, 8.0), encoder=False)), LAYOUT)
    theta = applied(server().weights({}, cohort)[0], cohort)
    assert theta["encoder.acc"].params.tolist() == pytest.approx([3.0, 0.0])  # alone: FedAvg
    expected = np.array([0.0, 4.0]) + 0.625 * np.array([3.0, -4.0]) + 0.625 * np.array([5.0, 4.0])
    assert theta["fusion"].params.tolist() == pytest.approx(expected.tolist())


def test_a_variance_is_averaged_and_not_extrapolated() -> None:
    cohort = Cohort(0, START, (member("p", 1, 1, (1.0, 0.0)), member("q", 1, 99, (2.0, 0.0))), LAYOUT)
    weights = server().weights({}, cohort)[0]
    assert weights.keep["encoder.acc:w"] < -10.0  # far outside
    assert applied(weights, cohort)["encoder.acc"].stats.tolist() == [1.5]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equal_steps_are_fedavg(momentum: float) -> None:
    """Invariant 7."""
    spec = learning.spec(method="fednova", momentum=momentum)
    data = {d: learning.round_data(30, seed=i) for i, d in enumerate("pqr")}
    nova, avg = (
        learning.Federation(spec, data),
        learning.Federation(learning.spec(momentum=momentum, method="fedavg"), data),
    )
    for _ in range(2):
        learning.sync_round(nova)
        learning.sync_round(avg)
    for name in avg.theta:
        np.testing.assert_allclose(nova.theta[name].params, avg.theta[name].params, atol=2e-6)


def test_one_with_many_steps_does_not_pull_the_model_towards_itself() -> None:
    """On quadratics (w − e_k)²/2 FedAvg rests nearer to whoever steps more often, FedNova in the middle."""

    def rest(name: str) -> float:
        rule, w = find(name).server_rule({}, learning.spec(method=name)), 0.0
        for number in range(400):
            start = {"fusion": Segments(np.array([w, 0.0], np.float32))}
            ends = [target + (w - target) * 0.95**steps for target, steps in ((1.0, 1), (-1.0, 20))]
            members = tuple(
                member(d, 1, s, (end, 0.0), encoder=False) for d, s, end in zip("pq", (1, 20), ends, strict=True)
            )
            theta = params.copy(start)
            weights = rule.weights({}, Cohort(number, start, members, LAYOUT))[0]
            aggregation.combine(theta, LAYOUT, {m.device: m.tensors for m in members}, weights)
            w = float(theta["fusion"].params[0])
        return w

    assert rest("fedavg") < -0.8
    assert abs(rest("fednova")) < 0.3


def test_the_proximal_term_counts_with_the_learning_rate_of_the_round() -> None:
    cohort = Cohort(2, START, (member("p", 1, 2, (3.0, 0.0)), member("q", 1, 6, (5.0, 8.0))), LAYOUT)
    shares = server(mu=2.0).weights({}, cohort)[0].by_block["fusion"]
    a = [fednova.a_norm(s, eta_mu=0.1 * 0.99**2 * 2.0) for s in (2, 6)]
    assert list(shares.values()) == pytest.approx([0.5 * (a[0] + a[1]) / 2 / x for x in a])
    steps = server(mu=2.0, effective="steps").weights({}, cohort)[0].by_block["fusion"]
    assert list(steps.values()) == pytest.approx([0.5 * 4.0 / x for x in a])


def test_server_momentum_by_hand() -> None:
    rule = server(server_momentum=0.5)
    cohort = Cohort(0, START, (member("p", 1, 3, (3.0, 6.0)),), LAYOUT)
    patch = rule.weights({}, cohort)[1]
    assert patch["velocity/fusion"].tolist() == [3.0, 2.0]
    assert rule.replaced({}, cohort)["fusion"].params.tolist() == [3.0, 6.0]
    moved = rule.replaced(patch, cohort)  # the same step once more, on top of half of the first
    assert moved["fusion"].params.tolist() == [0.0 + 1.5 + 3.0, 4.0 + 1.0 + 2.0]
    assert moved["encoder.acc"].stats.tolist() == [3.0]
    assert rule.weights(patch, cohort)[1]["velocity/fusion"].tolist() == [4.5, 3.0]


def test_any_client_rule_works_with_it() -> None:
    data = {d: learning.round_data(30, seed=i) for i, d in enumerate("pq")}
    fed = learning.Federation(learning.spec(method="ogm_ge+fednova"), data)
    for _ in range(2):
        learning.sync_round(fed)
    assert params.finite(fed.theta)


def test_an_update_without_a_step_harms_nothing() -> None:
    fed = learning.Federation(learning.spec(method="fednova"), {"p": learning.round_data(8)})
    one = learning.sync_round(fed).members[0]
    learning.weigh(fed, (replace(one, num_steps=0), replace(one, device="q", num_samples=0)))
    assert params.finite(fed.theta)

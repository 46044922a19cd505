from __future__ import annotations

import pytest
import torch

from edge_sdk.core.errors import Reason, UpdateRejected
from edge_sdk.methods import fedasync
from edge_sdk.models import build
from tests.helpers import learning


def rate(tau: int, **options: object) -> float:
    rule = fedasync.METHOD.server_rule(options, learning.spec())
    rates, patch = rule.rates({}, learning.update_view("d", 10, staleness=tau))
    assert patch == {}
    assert set(rates.by_module) == {"encoder.acc", "encoder.gyro", "fusion"}
    assert rates.op == "mix"
    (value,) = set(rates.by_module.values())
    return value


@pytest.mark.parametrize(
    ("options", "tau", "expected"),
    [
        ({}, 0, 0.9),
        ({}, 3, 0.45),
        ({"alpha": 0.6, "a": 1.0}, 2, 0.2),
        ({"staleness": "constant"}, 99, 0.9),
        ({"staleness": "hinge"}, 4, 0.9),
        ({"staleness": "hinge"}, 6, 0.9 / 21),
        ({"staleness": "hinge", "hinge_a": 1, "hinge_b": 0}, 2, 0.3),
    ],
)
def test_rates_by_hand(options: dict, tau: int, expected: float) -> None:
    assert rate(tau, **options) == pytest.approx(expected, rel=1e-12)


def test_updates_above_max_staleness_are_dropped() -> None:
    assert rate(5, max_staleness=5) > 0
    with pytest.raises(UpdateRejected, match="staleness 6 is above max_staleness = 5") as caught:
        rate(6, max_staleness=5)
    assert caught.value.reason is Reason.STALE


def test_the_available_variant_trains_at_once() -> None:
    rule = fedasync.METHOD.client_rule({"modalities": "available"})
    (phase,) = rule.schedule(learning.view(("gyro",)))
    assert phase.train == ("encoder.gyro", "fusion")
    assert fedasync.METHOD.client_rule({}).schedule(learning.view(("gyro",))) == ()


def test_the_proximal_term_holds_the_model_back() -> None:
    def moved(rho: float) -> float:
        spec = learning.spec(method="fedasync", config={"rho_prox": rho}, epochs=5)
        work = learning.train_round(spec, ("acc", "gyro"))[0]
        start = build.initial_tensors(spec)
        return sum(float(torch.from_numpy(s.params - start[n].params).square().sum()) for n, s in work.tensors.items())

    free, near = moved(0.0), moved(5.0)
    assert near < 0.5 * free


def test_the_first_step_is_the_plain_one() -> None:
    """There θ = θ_g, and the proximal term has no gradient."""
    results = []
    for rho in (0.0, 5.0):
        spec = learning.spec(method="fedasync", config={"rho_prox": rho}, epochs=1, batch_size=64)
        now = learning.view(("acc", "gyro"), epochs=1)
        phase = fedasync.METHOD.client_rule({}).schedule(now)[0]
        results.append(learning.train_phase(learning.job(spec, phase, now, data=learning.round_data(16))).tensors)
    assert learning.equal(*results)

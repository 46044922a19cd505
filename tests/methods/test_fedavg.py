from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.core.records import Segments
from edge_sdk.learn.records import Assignment, Candidate, Cohort, Member, Pool
from edge_sdk.methods.base import SyncServerRule, find
from tests.helpers import learning


def server() -> SyncServerRule:
    rule = find("fedavg").server_rule({}, learning.spec(method="fedavg"))
    assert isinstance(rule, SyncServerRule)
    return rule


def pool(devices: int, size: int) -> Pool:
    return Pool(0, tuple(Candidate(f"d{i}", ("acc",) if i % 2 else ("acc", "gyro")) for i in range(devices)), (), size)


def test_k_different_devices_are_drawn_each_with_what_it_has() -> None:
    rule, counts = server(), np.zeros(6)
    for seed in range(200):
        chosen = rule.select({}, pool(6, 2), np.random.default_rng(seed))
        assert len({a.device for a in chosen}) == 2
        assert all(a == Assignment(a.device, pool(6, 2).fleet[int(a.device[1:])].modalities) for a in chosen)
        counts[[int(a.device[1:]) for a in chosen]] += 1
    assert counts.min() > 40  # 400 draws over six devices: 67 each


def test_weights_are_shares_of_samples() -> None:
    members = tuple(
        Member(d, ("acc",), n, 1, {}, {"fusion": Segments(np.zeros(1, np.float32))}) for d, n in (("p", 1), ("q", 3))
    )
    weights, patch = server().weights({}, Cohort(0, {}, members))
    assert weights.by_block == {"fusion": {"p": 0.25, "q": 0.75}}
    assert not weights.keep
    assert patch == {}


def test_asks_nothing_and_says_nothing() -> None:
    rule = server()
    assert rule.query({}, pool(3, 1).fleet, 1, np.random.default_rng(0)) == ()
    assert rule.extras({}, Assignment("p", ("acc",))) == {}
    assert rule.answered({}, ()) == {}
    assert rule.figures({}) == {}


def test_a_round_is_the_mean_of_those_who_came_each_module_over_those_who_trained_it() -> None:
    whole, part = learning.round_data(30, 2), learning.round_data(10, 2, seed=3)
    data = {"p": whole, "q": replace(part, x={"acc": part.x["acc"]}, has={"acc": part.has["acc"]})}
    fed = learning.Federation(learning.spec(method="fedavg"), data)
    cohort = learning.sync_round(fed)
    p, q = cohort.members
    assert set(q.tensors) == {"encoder.acc", "fusion"}
    for name in ("encoder.acc", "fusion"):
        expected = 0.75 * p.tensors[name].params + 0.25 * q.tensors[name].params
        assert fed.theta[name].params == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(fed.theta["encoder.gyro"].params, p.tensors["encoder.gyro"].params)
    before = fed.theta["encoder.gyro"].params.copy()
    learning.sync_round(fed, late=("p",))
    assert fed.round == 2
    assert np.array_equal(fed.theta["encoder.gyro"].params, before)  # nobody who came had trained it

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from edge_sdk.learn.records import Candidate, Pool
from edge_sdk.methods import fedavg, fedavg_p
from edge_sdk.methods.base import SyncServerRule, find
from tests.helpers import learning

ALL = learning.NAMES


def draws(p: float, *, modalities: tuple[str, ...] = ALL, n: int = 3000, **options: bool) -> Counter:
    rng = np.random.default_rng(0)
    return Counter(fedavg_p.kept(modalities, p, rng, **options) for _ in range(n))


def test_with_probability_p_exactly_one_uniformly_chosen_modality_goes() -> None:
    found = draws(0.6)
    assert set(found) == {ALL, ("gyro", "mic"), ("acc", "mic"), ("acc", "gyro")}
    assert found[ALL] == pytest.approx(1200, abs=110)  # four standard deviations
    assert all(found[rest] == pytest.approx(600, abs=90) for rest in found if rest != ALL)
    assert set(draws(0.0)) == {ALL}
    assert ALL not in draws(1.0)


def test_the_only_modality_stays() -> None:
    assert set(draws(1.0, modalities=("gyro",))) == {("gyro",)}
    assert set(draws(1.0, modalities=("gyro",), independent=True)) == {("gyro",)}


def test_independently_each_may_go_and_one_stays() -> None:
    found = draws(0.5, modalities=("acc", "mic"), independent=True)
    assert found["acc", "mic"] == pytest.approx(750, abs=100)  # (1 − p)²
    assert found[("acc",)] + found[("mic",)] == pytest.approx(2250, abs=100)  # everything gone: one stays all the same
    assert min(found[("acc",)], found[("mic",)]) > 1000
    assert set(draws(1.0, modalities=("acc", "mic"), independent=True)) == {("acc",), ("mic",)}


def plans(name: str, draw: int, **config: object) -> dict[str, tuple[str, ...]]:
    rule = find(name).server_rule({"p": 0.5, **config}, learning.spec(3, method=name))
    assert isinstance(rule, SyncServerRule)
    fleet = tuple(Candidate(f"d{i}", ALL if i % 4 else ("mic",)) for i in range(40))
    return {t.device: t.modalities for t in rule.select({}, Pool(0, fleet, (), 40), np.random.default_rng(draw))}


def test_fixed_drops_are_the_same_in_every_round_and_others_are_not() -> None:
    assert plans("fedavg_p_fix", 1) == plans("fedavg_p_fix", 2)
    assert plans("fedavg_p_fix", 1) != plans("fedavg_p_fix", 1, seed=1)
    assert plans("fedavg_p", 1) != plans("fedavg_p", 2)
    assert plans("fedavg_p", 1, fix=True) == plans("fedavg_p_fix", 2)
    assert all(plans(name, 1)["d4"] == ("mic",) for name in ("fedavg_p", "fedavg_p_fix"))
    dropped = [len(m) < 3 for d, m in plans("fedavg_p_fix", 1).items() if int(d[1:]) % 4]
    assert 5 < sum(dropped) < 25  # 30 devices with p = 0.5


def test_who_is_drawn_is_up_to_fedavg_and_what_is_dropped_is_not_sent() -> None:
    theirs = find("fedavg").server_rule({}, learning.spec(3, method="fedavg"))
    assert isinstance(theirs, fedavg.Server)
    fed = learning.federation("fedavg_p", config={"p": 1.0})
    cohort = learning.sync_round(fed, size=3)
    for member, have in ((m, fed.data[m.device].x) for m in cohort.members):
        assert len(member.modalities) == max(1, len(have) - 1)
        assert set(member.tensors) == {f"encoder.{m}" for m in member.modalities} | {"fusion"}


def test_without_dropping_it_is_fedavg_to_the_last_bit() -> None:
    ours, theirs = learning.federation("fedavg_p", config={"p": 0.0, "fix": True}), learning.federation("fedavg")
    for fed in (ours, theirs):
        learning.sync_round(fed, size=3)
    assert learning.equal(ours.theta, theirs.theta)


def test_it_composes_with_clients() -> None:
    assert find("ogm_ge+fedavg_p").server is fedavg_p.Server

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edge_sdk.core.errors import ConfigError
from edge_sdk.learn import params
from edge_sdk.learn.records import Answer, Candidate, Pool
from edge_sdk.methods import ogm_ge, pow_d
from edge_sdk.methods.base import SyncServerRule, find
from edge_sdk.models import build
from tests.helpers import guards, learning

CONGRUENT = {f"d{n}": learning.NAMES for n in range(6)}


def server(name: str = "pow_d", **config: Any) -> SyncServerRule:
    rule = find(name).server_rule(config, learning.spec(3, method=name))
    assert isinstance(rule, SyncServerRule)
    return rule


def fleet(n: int = 6) -> tuple[Candidate, ...]:
    return tuple(Candidate(f"d{i}", learning.NAMES) for i in range(n))


def answers(**losses: float) -> tuple[Answer, ...]:
    return tuple(
        Answer(d, learning.NAMES, 10, {"loss": np.asarray(x, np.float32)}) for d, x in sorted(losses.items())
    )  # fmt: skip


def test_the_largest_win_and_ties_go_to_the_lower_id() -> None:
    losses = {"b": 1.0, "a": 0.5, "d": 2.0, "c": 1.0}
    assert pow_d.largest(losses, 1) == ("d",)
    assert pow_d.largest(losses, 2) == ("d", "b")
    assert pow_d.largest(losses, 9) == ("d", "b", "c", "a")


def test_candidates_are_drawn_by_samples_or_uniformly() -> None:
    rng, samples = np.random.default_rng(0), {"a": 1.0, "b": 3.0, "c": 6.0}
    one = Counter(pow_d.candidates(samples, 1, rng)[0] for _ in range(4000))
    assert [one[d] / 4000 for d in "abc"] == pytest.approx([0.1, 0.3, 0.6], abs=0.03)
    alike = Counter(pow_d.candidates(samples, 1, rng, uniform=True)[0] for _ in range(4000))
    assert [alike[d] / 4000 for d in "abc"] == pytest.approx([1 / 3] * 3, abs=0.03)
    assert pow_d.candidates(samples, 5, rng) == ("a", "b", "c")


def test_half_of_the_devices_are_asked_and_never_fewer_than_k() -> None:
    rng = np.random.default_rng(0)
    for size, d, asked in ((2, 0, 3), (5, 0, 5), (2, 4, 4), (3, 1, 3), (2, 99, 6)):
        queries = server(d=d).query({}, fleet(), size, rng)
        assert len({q.device for q in queries}) == len(queries) == asked
        assert {(q.epochs, q.modalities) for q in queries} == {(0, ())}


def test_known_numbers_of_samples_weigh_and_unknown_ones_count_as_average() -> None:
    state = {"samples/d0": np.array([1.0]), "samples/d1": np.array([999.0]), "samples/gone": np.array([7.0])}
    rng = np.random.default_rng(0)
    drawn = Counter(server(d=1).query(state, fleet(3), 1, rng)[0].device for _ in range(3000))
    assert drawn["d0"] < 20
    assert drawn["d1"] / 3000 == pytest.approx(999 / 1500, abs=0.04)
    assert drawn["d2"] / 3000 == pytest.approx(500 / 1500, abs=0.04)


def test_those_with_the_largest_losses_train() -> None:
    pool = Pool(0, fleet(), answers(d1=0.3, d2=0.9, d5=0.4), 2)
    chosen = server().select({}, pool, np.random.default_rng(0))
    assert [a.device for a in chosen] == ["d2", "d5"]
    short = server().select({}, replace(pool, size=5), np.random.default_rng(0))
    assert len(short) == 5
    assert {"d1", "d2", "d5"} < {a.device for a in short}


def loss_of(tensors: dict, data: Any, here: tuple[str, ...] = learning.NAMES) -> np.ndarray:
    """Returns the cross-entropy of every row, worked out in numpy from the model's features."""
    model = build.build(learning.spec(3))
    params.load(model.named(), tensors)
    with torch.no_grad():
        h = model.eval().encode({m: torch.from_numpy(data.x[m]) for m in here})
        weight, bias = (p.numpy() for p in model.module("fusion").parameters())
    blocks = [h[m].numpy() if m in here else np.zeros((len(data.y), 6)) for m in learning.NAMES]
    z = np.concatenate(blocks, 1) @ weight.T + bias
    e = np.exp(z - z.max(1, keepdims=True))
    return -np.log((e / e.sum(1, keepdims=True))[np.arange(len(data.y)), data.y])


@pytest.mark.parametrize("here", [learning.NAMES, ("acc", "mic")])
def test_the_answer_is_the_mean_loss_of_the_received_model(here: tuple[str, ...]) -> None:
    data = learning.round_data(300, 3)
    found = guards.play("pow_d", data, here=here, asks=True, epochs=0).payload["loss"]
    expected = loss_of(build.initial_tensors(learning.spec(3)), data, here).mean()
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_cpow_d_asks_for_the_loss_of_one_mini_batch() -> None:
    data = learning.round_data(40, 3)
    losses = loss_of(build.initial_tensors(learning.spec(3)), data)
    found = float(guards.play("cpow_d", data, asks=True, epochs=0).payload["loss"])
    assert losses.min() < found < losses.max()
    assert found != pytest.approx(losses.mean(), rel=1e-4)  # 16 of 40 rows
    few = learning.round_data(16, 3)
    whole = loss_of(build.initial_tensors(learning.spec(3)), few).mean()
    assert float(guards.play("cpow_d", few, asks=True, epochs=0).payload["loss"]) == pytest.approx(whole, rel=1e-5)


def test_a_round_trains_the_candidates_with_the_largest_losses() -> None:
    fed = learning.federation("pow_d", fleet=CONGRUENT, config={"d": 4})
    for number in range(2):
        means = {d: loss_of(fed.theta, fed.data[d]).mean() for d in fed.data}
        learning.sync_round(fed, size=2)
        asked = [q.device for q in fed.asked[4 * number :]]
        assert len(asked) == 4
        assert {a.device for a in fed.chosen} == set(sorted(asked, key=lambda d: -means[d])[:2])
    assert {f"samples/{d}" for d in {q.device for q in fed.asked}} == fed.state.keys()
    assert all(fed.state[f"samples/{d}"][0] == len(fed.data[d].y) for d in (q.device for q in fed.asked))


def test_rpow_d_asks_nobody_and_takes_the_last_training_losses() -> None:
    fed = learning.federation("rpow_d", fleet=CONGRUENT, config={"d": 6})
    seen: set[str] = set()
    for _ in range(3):  # two at a time: those who have not reported yet come first
        cohort = learning.sync_round(fed, size=2)
        seen |= {m.device for m in cohort.members}
    assert seen == set(CONGRUENT)
    last = {d: fed.state[f"loss/{d}"][0] for d in CONGRUENT}
    learning.sync_round(fed, size=2)
    assert {a.device for a in fed.chosen} == set(sorted(last, key=lambda d: -last[d])[:2])
    assert not fed.asked


def test_the_reported_loss_is_the_mean_over_the_steps_of_training() -> None:
    """At a learning rate near 0 every step sees the received model."""
    data = learning.round_data(40, 3)
    fed = learning.Federation(learning.spec(3, method="rpow_d", lr=1e-9), {"d0": data})
    (member,) = learning.sync_round(fed).members
    expected = loss_of(build.initial_tensors(learning.spec(3)), data).mean()
    assert float(member.payload["loss"]) == pytest.approx(expected, rel=1e-4)


def test_compositions() -> None:
    composed = find("ogm_ge+cpow_d")
    assert (composed.client, composed.server, composed.asked) == (ogm_ge.Client, pow_d.Server, pow_d.Client)
    asked = composed.query_rule({"client": {"alpha": 0.3}, "server": {"d": 2}})
    assert isinstance(asked, pow_d.Client)
    assert asked.config == pow_d.MiniBatch(d=2)
    fed = learning.federation("ogm_ge+pow_d", config={"server": {"d": 4}})
    learning.sync_round(fed, size=2)
    assert len(fed.asked) == 4
    with pytest.raises(ConfigError, match=r"ogm_ge\+rpow_d: the server of rpow_d lives on loss"):
        find("ogm_ge+rpow_d")

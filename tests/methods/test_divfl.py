from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edge_sdk.core.records import Segments
from edge_sdk.learn import deltas, params
from edge_sdk.learn.records import Answer, Candidate, Cohort, Member, Pool
from edge_sdk.methods import divfl, ogm_ge
from edge_sdk.methods.base import SyncServerRule, find
from tests.helpers import learning

FLEET = tuple(Candidate(f"d{i}", ("acc",)) for i in range(5))


def server(**config: Any) -> SyncServerRule:
    rule = find("divfl").server_rule(config, learning.spec(method="divfl"))
    assert isinstance(rule, SyncServerRule)
    return rule


def vector(x: float) -> np.ndarray:
    found = np.zeros(deltas.SIZE, np.float32)
    found[7] = x
    return found


def state_of(places: Mapping[str, float]) -> dict[str, np.ndarray]:
    answers = tuple(Answer(d, ("acc",), 5, {"delta": vector(x)}) for d, x in places.items())
    return dict(server().answered({}, answers))


def select(places: Mapping[str, float], k: int, **config: Any) -> list[str]:
    pool = Pool(0, FLEET, (), k)
    return [a.device for a in server(**config).select(state_of(places), pool, np.random.default_rng(0))]


def test_those_are_chosen_who_stand_for_all() -> None:
    """The points 0, 1, 2, 10, 11 of a line: see the tests of facility location."""
    places = dict(zip((c.device for c in FLEET), (0.0, 1.0, 2.0, 10.0, 11.0), strict=True))
    assert select(places, 1, greedy=True) == ["d2"]
    assert select(places, 2, greedy=True) == ["d2", "d3"]
    assert len(set(select(places, 3))) == 3


def test_devices_without_a_vector_fill_up() -> None:
    assert select({"d3": 1.0}, 1) == ["d3"]
    assert "d3" in select({"d3": 1.0}, 2)
    assert len(set(select({}, 4))) == 4


def test_those_who_have_not_answered_are_asked_for_one_epoch() -> None:
    rng = np.random.default_rng(0)
    queries = server().query({}, FLEET, 2, rng)
    assert [(q.device, q.epochs) for q in queries] == [(c.device, 1) for c in FLEET]
    state = state_of({"d0": 1.0, "d2": 0.5})
    assert [q.device for q in server().query(state, FLEET, 2, rng)] == ["d1", "d3", "d4"]
    every_third = server(refresh=3)
    for done, asked in ((0, 3), (1, 0), (3, 5), (4, 0), (5, 3), (6, 5), (7, 0)):
        assert len(every_third.query({**state, "rounds": np.array([float(done)])}, FLEET, 2, rng)) == asked


@pytest.mark.parametrize(("kind", "scale"), [("delta", 1.0), ("gradient", 0.25)])
def test_vectors_of_those_who_trained_are_taken_anew(kind: str, scale: float) -> None:
    start = {"encoder.acc": Segments(np.ones(2, np.float32)), "fusion": Segments(np.ones(1, np.float32))}
    trained = {"fusion": Segments(np.array([3.0], np.float32))}
    cohort = Cohort(4, start, (Member("d1", (), 5, 4, {}, trained),))
    weights, patch = server(vector=kind).weights({}, cohort)
    assert weights.by_block == {"fusion": {"d1": 1.0}}
    assert patch.keys() == {"delta/d1", "rounds"}
    assert patch["rounds"].tolist() == [5.0]
    assert patch["delta/d1"][:3].tolist() == [0.0, 0.0, -2.0 * scale]


def test_a_device_answers_with_the_change_of_one_epoch() -> None:
    """All rows in one batch: a later epoch from the same model is the same step."""
    fed = learning.federation("divfl", fleet={f"d{n}": learning.NAMES for n in range(4)}, epochs=1, batch_size=64)
    start = params.copy(fed.theta)
    learning.sync_round(fed, size=2, late=tuple(fed.data))
    answered = {d: fed.state[f"delta/{d}"] for d in fed.data}
    cohort = learning.sync_round(fed, size=4)
    assert len(fed.asked) == 4
    for member in cohort.members:
        own = np.concatenate([start[n].params - member.tensors[n].params.astype(np.float64) for n in sorted(start)])
        assert np.abs(own).max() > 1e-3
        assert fed.state[f"delta/{member.device}"][: len(own)] == pytest.approx(own)
        assert answered[member.device][: len(own)] * 0.99 == pytest.approx(own, abs=1e-5)  # the rate decays by 0.99


def test_it_composes_with_clients() -> None:
    composed = find("ogm_ge+divfl")
    assert (composed.client, composed.server, composed.asked) == (ogm_ge.Client, divfl.Server, divfl.Client)
    fed = learning.federation("ogm_ge+divfl")
    learning.sync_round(fed, size=2)
    assert {f"delta/{d}" for d in fed.data} < fed.state.keys()

from __future__ import annotations

import numpy as np
import pytest
import torch

from coordinator.service.ledger import Ledger
from coordinator.store import MemoryStore
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.records import Segments
from edge_sdk.learn import params
from edge_sdk.learn.records import Cohort, Member
from edge_sdk.methods import fednh
from edge_sdk.methods.base import find
from edge_sdk.models import build
from edge_sdk.runtime import jobs
from tests.helpers import guards, learning

ROOT = 2**-0.5


def test_unit_rows() -> None:
    assert fednh.unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0.0, 0.0]]


def test_class_vectors_by_hand() -> None:
    w = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    # class 0: two clients, 3·(0, 1) + 1·(0, 1) over 4; class 1: n = 2 at 45 degrees; class 2: nobody
    sums, counts = np.array([[0.0, 4.0], [2 * ROOT, 2 * ROOT], [0.0, 0.0]]), np.array([4.0, 2.0, 0.0])
    new = fednh.moved(w, sums, counts, rho=0.9)
    assert new[0].tolist() == pytest.approx([0.9 / 0.82**0.5, 0.1 / 0.82**0.5])
    raw = np.array([0.1 * ROOT, 0.9 + 0.1 * ROOT])
    assert new[1].tolist() == pytest.approx((raw / np.linalg.norm(raw)).tolist())
    assert new[2].tolist() == [0.0, 1.0]
    assert np.linalg.norm(new, axis=1) == pytest.approx(np.ones(3))


def test_class_vectors_that_would_vanish_stay() -> None:
    w = np.array([[1.0, 0.0]])
    assert fednh.moved(w, np.array([[-1.0, 0.0]]), np.array([1.0]), rho=0.5).tolist() == w.tolist()
    assert fednh.moved(w, np.array([[0.0, 0.0]]), np.array([3.0]), rho=0.0).tolist() == w.tolist()


def fusion(scale: float, w: list[list[float]]) -> Segments:
    return Segments(np.array([scale, *np.ravel(w)], np.float32))


def test_a_round_by_hand() -> None:
    spec = learning.spec(1, method="fednh")
    rule = find("fednh").server_rule({"rho": 0.5}, spec)
    w = np.zeros((3, 6), np.float32)
    w[:, 0] = 1.0
    sums = np.zeros((2, 3, 6), np.float32)
    sums[0, 0, 1], sums[1, 0, 1] = 3.0, 1.0
    counts = np.array([[3, 0, 0], [1, 0, 0]])
    members = tuple(
        Member(d, ("acc",), n, 1, {"sums": sums[i], "counts": counts[i]}, {"fusion": fusion(s, w.tolist())})
        for i, (d, n, s) in enumerate((("p", 1, 10.0), ("q", 9, 20.0)))
    )
    cohort = Cohort(0, {"fusion": fusion(20.0, w.tolist())}, members)
    weights, patch = rule.weights({}, cohort)
    assert weights.by_block["fusion"] == {"p": 0.5, "q": 0.5}  # not by samples
    assert patch == {}
    made = rule.replaced({}, cohort)["fusion"].params
    assert made[0] == 15.0
    assert made[1:].reshape(3, 6)[:, :2].tolist() == [pytest.approx([ROOT, ROOT]), [1.0, 0.0], [1.0, 0.0]]


def test_the_scale_lies_before_the_class_vectors() -> None:
    spec = learning.spec(2, method="fednh")
    layout = build.layout(spec, find("fednh").needs)["fusion"]
    assert [(t.name, t.shape, t.offset) for t in layout.tensors] == [("scale", (1,), 0), ("weight", (3, 12), 1)]


def test_class_vectors_are_orthonormal_at_first_and_sgd_leaves_them_alone() -> None:
    spec = learning.spec(2, method="fednh", momentum=0.9, weight_decay=0.01)
    start = build.initial_tensors(spec, find("fednh").needs)
    w = start["fusion"].params[1:].reshape(3, 12)
    np.testing.assert_allclose(w @ w.T, np.eye(3), atol=1e-5)
    learnt = learning.train_round(spec, ("acc", "gyro"), start=start)[0].tensors
    assert np.array_equal(learnt["fusion"].params[1:], start["fusion"].params[1:])
    assert learnt["fusion"].params[0] != 20.0
    assert not np.array_equal(learnt["encoder.acc"].params, start["encoder.acc"].params)


@pytest.mark.parametrize(
    ("config", "first", "learns"),
    [({}, 20.0, True), ({"scale": 1.0}, 1.0, True), ({"learn_scale": False}, 30.0, False),
     ({"learn_scale": False, "scale": 7.5}, 7.5, False)],
)  # fmt: skip
def test_the_scale_begins_as_the_options_say(config: dict, first: float, learns: bool) -> None:
    fed = learning.federation("fednh", config=config)
    built = build.initial_tensors(fed.spec, fed.method.needs)
    assert fed.theta["fusion"].params[0] == first
    assert np.array_equal(fed.theta["fusion"].params[1:], built["fusion"].params[1:])
    assert np.array_equal(fed.theta["encoder.acc"].params, built["encoder.acc"].params)
    alone = jobs.initial(fed.spec, 0)  # a device that trains by itself begins with the same
    assert learning.equal(alone, fed.theta)
    learning.sync_round(fed)
    assert (fed.theta["fusion"].params[0] != first) == learns


def test_a_new_store_begins_with_the_scale_and_a_given_model_keeps_its_own() -> None:
    spec = learning.spec(2, method="fednh", config={"scale": 1.0})
    given = build.initial_tensors(spec, find("fednh").needs)
    for init, first in ((None, 1.0), (given, 20.0)):
        ledger = Ledger(spec, MemoryStore())
        ledger.open(init, 0)
        assert ledger.tensors["fusion"].params[0] == first


def test_what_a_client_reports_by_independent_numpy() -> None:
    spec, data = learning.spec(2, method="fednh"), learning.round_data(30)
    data.y[data.y == 2] = 0  # nothing of class 2
    result = learning.train_round(spec, ("acc", "gyro"), data=data)[0]
    model = build.build(spec, find("fednh").needs)
    params.load(model.named(), result.tensors)
    model.eval()
    with torch.no_grad():
        h = model.encode({m: torch.from_numpy(a) for m, a in data.x.items()})
    side = np.concatenate([h["acc"].numpy(), h["gyro"].numpy()], axis=1).astype(np.float64)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    for j in (0, 1):
        mean = side[data.y == j].mean(0)
        expected = (data.y == j).sum() * mean / np.linalg.norm(mean)
        np.testing.assert_allclose(result.payload["sums"][j], expected, rtol=1e-4, atol=1e-5)
    assert result.payload["counts"].tolist() == [int((data.y == 0).sum()), int((data.y == 1).sum()), 0]
    assert not result.payload["sums"][2].any()


def test_gradients_are_clipped() -> None:
    """With a tiny limit, no step moves the trained values further than lr times the limit."""
    spec = learning.spec(2, method="fednh", config={"clip": 1e-3}, epochs=1)
    start = build.initial_tensors(spec, find("fednh").needs)
    result = learning.train_round(spec, ("acc", "gyro"), start=start)[0]
    moved = params.norm(params.delta(result.tensors, start))
    assert 0 < moved <= result.num_steps * 0.1 * 1e-3 * 1.01


def test_rounds_learn_where_modalities_and_classes_are_missing() -> None:
    fed = learning.federation("fednh")
    fed.data["d0"].y[:] = 1
    for _ in range(6):
        learning.sync_round(fed)
    w = fed.theta["fusion"].params[1:].reshape(3, -1)
    assert np.linalg.norm(w, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    model, data = build.build(fed.spec, fed.method.needs), learning.round_data(300, 3, seed=77)
    params.load(model.named(), fed.theta)
    with torch.no_grad():
        logits = model.eval()({m: torch.from_numpy(a) for m, a in data.x.items()}, torch.ones(300, 3))
    assert (logits.argmax(1).numpy() == data.y).mean() > 0.7


def test_zero_features_harm_nobody() -> None:
    assert guards.finite(guards.play("fednh", guards.zeros()))


def test_combinations_without_the_other_half_are_refused() -> None:
    with pytest.raises(ConfigError, match="need the server's class vectors"):
        find("fednh+fedavg")
    with pytest.raises(ConfigError, match="lives on counts, sums"):
        find("ogm_ge+fednh")

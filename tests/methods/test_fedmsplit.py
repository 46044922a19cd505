from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.records import ModuleLayout, Segments, TensorSpec
from edge_sdk.learn import params
from edge_sdk.learn.records import Assignment, Cohort, Member
from edge_sdk.methods import fedmsplit
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import guards, learning

LAYOUT = {
    name: ModuleLayout((TensorSpec("w", (2,), "params", 0),), 2, 0, 0)
    for name in ("encoder.acc", "encoder.gyro", "fusion")
}
START = {name: Segments(np.zeros(2, np.float32)) for name in LAYOUT}


def test_attention_by_hand() -> None:
    theta = np.array([[3.0, 0.0], [0.0, 5.0], [-2.0, 0.0]])
    a = fedmsplit.attention(theta)
    s = 1 / np.sqrt(2.0)
    row = np.exp([s, 0.0, -s])
    assert a[0].tolist() == pytest.approx((row / row.sum()).tolist())
    assert a.sum(1) == pytest.approx(np.ones(3))
    sharp = fedmsplit.attention(10.0 * theta, normalise=False)
    assert sharp[0].tolist() == pytest.approx([1.0, 0.0, 0.0])
    assert np.isfinite(fedmsplit.attention(np.zeros((2, 3)))).all()
    assert fedmsplit.attention(np.zeros((2, 0))).tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_edges_are_means_over_what_two_clients_share() -> None:
    a, b = np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.4, 0.4, 0.2]])
    e = fedmsplit.edges([a, b], [np.array([0, 2]), np.array([0, 1, 2])], 4)
    assert e[0].tolist() == pytest.approx([0.7, 0.2, 0.2, 0.0])
    assert e[2].tolist() == pytest.approx([0.35, 0.4, 0.45, 0.0])
    assert e[3].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_edges_are_smoothed_from_their_second_round_on() -> None:
    old, new = np.array([[0.5, 0.0], [0.2, 0.4]]), np.full((3, 3), 0.3)
    e = fedmsplit.smoothed(old, new, 0.9)
    assert e[0].tolist() == pytest.approx([0.48, 0.3, 0.3])
    assert e[1].tolist() == pytest.approx([0.21, 0.39, 0.3])
    assert e[2].tolist() == pytest.approx([0.3, 0.3, 0.3])


def test_personal_block_by_hand() -> None:
    mixed = fedmsplit.personal(np.array([0.5, 0.25]), np.array([0.2, 0.4]), np.array([[1.0, 0.0], [5.0, 8.0]]))
    assert mixed.tolist() == pytest.approx([3.0, 4.0])


def server(**config: object) -> fedmsplit.Server:
    rule = find("fedmsplit").server_rule(config, learning.spec(method="fedmsplit"))
    assert isinstance(rule, fedmsplit.Server)
    return rule


def member(device: str, **blocks: tuple[float, float]) -> Member:
    names = {"acc": "encoder.acc", "gyro": "encoder.gyro", "fusion": "fusion"}
    return Member(device, (), 1, 1, {}, {names[k]: Segments(np.array(v, np.float32)) for k, v in blocks.items()})


def cohort(*members: Member) -> Cohort:
    return Cohort(0, START, members, LAYOUT)


FIRST = cohort(member("p", acc=(2.0, 0.0), fusion=(1.0, 1.0)), member("q", acc=(4.0, 0.0), fusion=(-1.0, 1.0)))


def test_a_round_by_hand() -> None:
    rule = server()
    weights, patch = rule.weights({}, FIRST)
    assert not weights.by_block
    made = rule.replaced({}, FIRST)
    assert made["encoder.acc"].params.tolist() == [3.0, 0.0]
    assert made["fusion"].params.tolist() == [0.0, 1.0]
    assert "encoder.gyro" not in made
    s = np.exp(1 / np.sqrt(2.0))
    a = s / (s + 1)  # fusion: products 1 and 0; acc: parallel, ½ and ½
    assert patch["edges"][0].tolist() == pytest.approx([(0.5 + a) / 2, (0.5 + 1 - a) / 2])
    said = rule.extras(patch, Assignment("p", ("acc",)))
    near, far = a * (0.5 + a) / 2, (1 - a) * (1.5 - a) / 2
    assert said["personal.fusion"].tolist() == pytest.approx([(near - far) / (near + far), 1.0])
    near, far = (0.5 + a) / 2, (1.5 - a) / 2
    assert said["personal.encoder.acc"].tolist() == pytest.approx([(2 * near + 4 * far) / (near + far), 0.0])
    assert rule.extras(patch, Assignment("new", ("acc",))) == {}
    assert rule.figures(patch) == {"clients": 2.0}


def test_blocks_of_clients_outside_the_cohort_count() -> None:
    rule = server()
    state = rule.weights({}, FIRST)[1]
    later = cohort(member("a", acc=(9.0, 3.0), gyro=(1.0, 2.0), fusion=(3.0, 3.0)))
    made = rule.replaced(state, later)
    assert made["encoder.acc"].params.tolist() == [5.0, 1.0]  # of p, q and a
    assert made["encoder.gyro"].params.tolist() == [1.0, 2.0]
    patch = rule.weights(state, later)[1]
    assert patch["order/a"].tolist() == [2.0]
    assert patch["edges"].shape == (3, 3)
    assert patch["edges"][:2, :2] == pytest.approx(0.9 * state["edges"] + 0.1 * edges_between_p_and_q())


def edges_between_p_and_q() -> np.ndarray:
    """Returns the edges between p and q of the second round, computed here."""
    blocks = {"encoder.acc": [(2.0, 0.0), (4.0, 0.0), (9.0, 3.0)], "fusion": [(1.0, 1.0), (-1.0, 1.0), (3.0, 3.0)]}
    total = np.zeros((3, 3))
    for rows in blocks.values():
        theta = np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
        exp = np.exp(theta @ theta.T / np.sqrt(2.0))
        total += exp / exp.sum(1, keepdims=True) / 2
    return total[:2, :2]


def test_equal_clients_have_equal_blocks() -> None:
    rule = server()
    same = cohort(*(member(d, acc=(2.0, 1.0), fusion=(1.0, 1.0)) for d in "pqr"))
    state = rule.weights({}, same)[1]
    assert state["edges"] == pytest.approx(np.full((3, 3), 1 / 3))
    assert rule.extras(state, Assignment("q", ("acc",)))["personal.encoder.acc"].tolist() == pytest.approx([2.0, 1.0])


def test_a_client_begins_with_its_own_blocks() -> None:
    spec = learning.spec(3, method="fedmsplit")
    start = build.initial_tensors(spec)
    own = {f"personal.{name}": np.full_like(start[name].params, 0.25) for name in ("encoder.acc", "fusion")}
    none = guards.play("fedmsplit", learning.round_data(24, 3))
    plain = guards.play("fedavg", learning.round_data(24, 3))
    assert learning.equal(none.tensors, plain.tensors)  # a first task is FedAvg's
    result = guards.play("fedmsplit", learning.round_data(24, 3), extras=own)
    change = np.abs(result.tensors["fusion"].params - 0.25).max()
    assert 0 < change < 0.25
    held = guards.play("fedmsplit", learning.round_data(24, 3), extras=own, config={"lam": 2.0})
    assert np.abs(held.tensors["fusion"].params - 0.25).max() < change


def test_rounds_personalise_and_the_mean_is_published() -> None:
    fed = learning.federation("fedmsplit")
    for _ in range(3):
        learning.sync_round(fed, size=3)
    assert params.finite(fed.theta)
    devices = [name.rpartition("/")[2] for name in fed.state if name.startswith("block/fusion/")]
    mean = np.mean([fed.state[f"block/fusion/{d}"] for d in devices], axis=0)
    np.testing.assert_allclose(fed.theta["fusion"].params, mean, atol=1e-6)
    gyro = fed.rule.extras(fed.state, Assignment("d4", ("gyro",)))
    assert "d4" not in devices or set(gyro) == {"personal.encoder.gyro", "personal.fusion"}


def test_combinations_without_the_other_half_are_refused() -> None:
    with pytest.raises(ConfigError, match="need the server's personal blocks"):
        find("fedmsplit+fedavg")
    with pytest.raises(ConfigError, match="which the clients of ogm_ge ignore"):
        find("ogm_ge+fedmsplit")

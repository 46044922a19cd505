from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from edge_sdk.learn import simplex


def test_small_eigenvalues_are_dropped() -> None:
    rotation = np.array([[0.8, -0.6], [0.6, 0.8]])
    a = rotation @ np.diag([2.0, 0.005]) @ rotation.T
    np.testing.assert_allclose(simplex.positive(a, 0.01), rotation @ np.diag([2.0, 0.0]) @ rotation.T, atol=1e-12)
    np.testing.assert_allclose(simplex.positive(a, 0.0), a, atol=1e-12)
    assert not simplex.positive(np.diag([-1.0, -2.0]), 0.0).any()


def test_minimum_by_hand() -> None:
    # diag(1, 3): shares inverse to the diagonal
    assert simplex.minimise(np.diag([1.0, 3.0]), np.array([1.0, 0.0])).tolist() == pytest.approx([0.75, 0.25])
    assert simplex.minimise(np.zeros((2, 2)), np.array([0.0, 1.0])).tolist() == [0.0, 1.0]
    assert simplex.minimise(np.array([[5.0]]), np.array([1.0])).tolist() == [1.0]


@pytest.mark.parametrize("seed", range(6))
def test_minimum_is_that_of_a_general_solver(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 9))
    b = rng.normal(size=(size, size + 2)) * 10.0 ** rng.uniform(-2, 2)
    a = b @ b.T
    ours = simplex.minimise(a, np.eye(size)[0])
    scale = np.abs(a).max()
    sums_to_one = {"type": "eq", "fun": lambda x: x.sum() - 1}
    theirs = minimize(
        lambda x: x @ a @ x / scale, np.full(size, 1 / size), jac=lambda x: 2 * a @ x / scale,
        bounds=[(0, 1)] * size, constraints=sums_to_one, method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert ours.sum() == pytest.approx(1.0)
    assert (ours >= 0).all()
    assert ours @ a @ ours <= theirs.fun * scale * (1 + 1e-6)


def test_one_far_away_does_not_blur_the_others() -> None:
    apart = np.array([[0.0], [0.0], [1e4]])
    a = np.diag([0.1, 0.3, 0.2]) + apart @ apart.T
    assert simplex.minimise(a, np.array([0.0, 0.0, 1.0])).tolist() == pytest.approx([0.75, 0.25, 0.0], abs=1e-3)


def test_many_clients_take_no_time() -> None:
    b = np.random.default_rng(0).normal(size=(100, 120))
    alpha = simplex.minimise(b @ b.T, np.eye(100)[3])
    gradient = b @ b.T @ alpha
    assert gradient.min() >= alpha @ gradient - 1e-6  # no share would do better

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.learn import selection


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def line(*places: float) -> np.ndarray:
    """Distances between points on a line."""
    x = np.array(places)
    return np.abs(x[:, None] - x[None])


def test_distances_by_hand() -> None:
    found = selection.distances(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [3.0, 0.0]]))
    expected = [[0, 5, 0, 3], [5, 0, 5, 4], [0, 5, 0, 3], [3, 4, 3, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert np.array_equal(found, found.T)


def test_the_first_choice_is_nearest_to_everybody_and_the_next_to_those_far_from_it() -> None:
    matrix = line(0, 1, 2, 10, 11)
    # Σ_j D_jk: 24, 21, 20, 28, 32 → 2; then m = (2, 1, 0, 8, 9): 0 → 18, 1 → 17, 3 → 4, 4 → 4: a tie, the lower number
    assert selection.greedy(matrix, 1, 5, rng()) == (2,)
    assert selection.greedy(matrix, 2, 5, rng()) == (2, 3)
    assert selection.greedy(matrix, 9, 5, rng())[:2] == (2, 3)
    assert sorted(selection.greedy(matrix, 9, 5, rng())) == [0, 1, 2, 3, 4]


def test_ties_go_to_the_first_whatever_rounding_says() -> None:
    matrix = line(0.1, 0.3, 0.7, 0.9)  # symmetric: the two in the middle cost the same, sums in another order
    costs = matrix.sum(0)
    assert abs(costs[1] - costs[2]) < 1e-12
    assert selection.best(matrix, selection.reach(4), np.array([1, 2])) == 1
    assert selection.best(np.zeros((3, 3)), selection.reach(3), np.array([1, 2])) == 1


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=7, unique=True), st.integers(1, 4))
def test_greedy_is_as_good_as_the_theorem_says(places: list[float], k: int) -> None:
    """The gain over choosing nothing, bounded as facility location's is: at least 1 − 1/e of the best one."""
    matrix, k = line(*places), min(k, len(places))
    far = matrix.max(0)  # a phantom that is as far as anybody

    def gain(chosen: tuple[int, ...]) -> float:
        return float((far - np.minimum(far, matrix[:, list(chosen)].min(1))).sum())

    chosen = selection.greedy(matrix, k, len(places), rng())
    assert len(set(chosen)) == k
    optimum = max(gain(c) for c in combinations(range(len(places)), k))
    assert gain(chosen) >= (1 - 1 / np.e) * optimum - 1e-9 or k == 1
    for number in range(1, k):  # each step is the argmin over everybody left
        nearest = matrix[:, list(chosen[:number])].min(1)
        costs = {i: np.minimum(nearest, matrix[:, i]).sum() for i in range(len(places)) if i not in chosen[:number]}
        assert costs[chosen[number]] == pytest.approx(min(costs.values()), abs=1e-9)


def test_stochastic_greedy_looks_at_a_random_subset_each_time() -> None:
    matrix = line(*range(12))
    seen = {selection.greedy(matrix, 3, 4, np.random.default_rng(seed)) for seed in range(30)}
    assert len(seen) > 5
    assert all(len(set(chosen)) == 3 for chosen in seen)
    assert selection.subset_size(5, 20) == 5
    assert selection.subset_size(5, 200) == 20


def test_a_subset_of_everybody_draws_nothing() -> None:
    one = rng()
    assert selection.subset([3, 1, 2], 3, one).tolist() == [1, 2, 3]
    assert one.random() == rng().random()
    assert len(selection.subset(range(10), 4, one)) == 4


def test_filling_up() -> None:
    assert selection.filled(("b", "a"), ("a", "b", "c"), 2, rng()) == ("a", "b")
    more = selection.filled(("b",), ("a", "b", "c", "d"), 3, rng())
    assert len(set(more)) == 3
    assert "b" in more
    assert selection.filled((), ("a",), 3, rng()) == ("a",)

"""Choosing devices that stand for all: facility location on distances, greedily.

    G(S) = Σ_j min_{i∈S} D_ji,   S grows by argmin_{k∈R} Σ_j min(m_j, D_jk),   m_j = min_{i∈S} D_ji, at first ∞

R is everybody left (greedy), or a random subset of them (stochastic greedy). Of equal ones the first is taken; costs
that differ by rounding alone are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

_ROUNDING = 1e-12  # relative difference of two sums of the same numbers in another order


def distances(vectors: Floats) -> Floats:
    """Returns Euclidean distances between rows, symmetric with a diagonal of zeros: (N, P) -> (N, N)."""
    squares = np.einsum("ij,ij->i", vectors, vectors)
    squared = squares[:, None] + squares[None] - 2.0 * vectors @ vectors.T
    matrix: Floats = np.sqrt(np.maximum((squared + squared.T) / 2.0, 0.0))
    np.fill_diagonal(matrix, 0.0)
    return matrix


def reach(n: int) -> Floats:
    """Returns m before anybody is chosen: ∞ for all, so that the first choice is the one nearest to everybody."""
    return np.full(n, np.inf)


def best(matrix: Floats, nearest: Floats, among: Numbers) -> int:
    """Returns argmin_{k∈among} Σ_j min(m_j, D_jk); of equal ones the first.

    Args:
        matrix: (N, N) distances.
        nearest: (N,) m, the distance of every device to those already chosen.
        among: candidates, sorted; at least one.
    """
    costs = np.minimum(nearest[:, None], matrix[:, among]).sum(0)
    return int(among[np.flatnonzero(costs <= costs.min() * (1.0 + _ROUNDING))[0]])


def subset(rest: Sequence[int] | Numbers, size: int, rng: np.random.Generator) -> Numbers:
    """Returns a random subset of the numbers, sorted; all of them, and no draw, where there are no more than `size`."""
    numbers = np.sort(np.asarray(rest, np.int64))
    if len(numbers) <= size:
        return numbers
    return np.sort(rng.choice(numbers, size, replace=False))


def subset_size(k: int, n: int) -> int:
    """Returns s = max(K, ⌊0.1 N⌋) of stochastic greedy."""
    return max(k, n // 10)


def greedy(matrix: Floats, k: int, size: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Returns k of N chosen one after the other, each the best of a random subset of `size` of those left."""
    nearest, chosen = reach(len(matrix)), list[int]()
    while len(chosen) < min(k, len(matrix)):
        rest = [i for i in range(len(matrix)) if i not in chosen]
        one = best(matrix, nearest, subset(rest, size, rng))
        nearest = np.minimum(nearest, matrix[:, one])
        chosen.append(one)
    return tuple(chosen)


def filled(chosen: Sequence[str], everybody: Sequence[str], k: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Returns the chosen ones and, where they are fewer than k, others drawn uniformly; sorted."""
    rest = sorted(set(everybody) - set(chosen))
    lacking = min(k - len(chosen), len(rest))
    more = rng.choice(len(rest), lacking, replace=False).tolist() if lacking > 0 else []
    return tuple(sorted({*chosen, *(rest[i] for i in more)}))


__all__ = ["best", "distances", "filled", "greedy", "reach", "subset", "subset_size"]

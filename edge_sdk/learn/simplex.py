"""Quadratic programs over shares: min αᵀ A α with α ≥ 0 and Σ α = 1, for A positive semidefinite."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS = 100_000
TOLERANCE = 1e-10  # of the optimality gap, relative to the largest entry of A


def positive(a: Floats, least: float) -> Floats:
    """Returns a symmetric matrix without its eigenvalues below `least`, (K, K) -> (K, K)."""
    values, vectors = np.linalg.eigh((a + a.T) / 2.0)
    kept: Floats = (vectors * np.where(values >= least, values, 0.0)) @ vectors.T
    return kept


def minimise(a: Floats, start: Floats) -> Floats:
    """Returns argmin αᵀ A α over shares, (K, K), (K,) -> (K,).

    Every step moves weight from the share whose gradient is largest to the one whose gradient is smallest, as far as
    pays: shares that lie far apart in scale, one client a thousand times further away than the others, cost nothing.
    Where A leaves a direction open, the answer depends on `start`; where A is 0 it is `start`.
    """
    alpha, limit = start.astype(np.float64), TOLERANCE * float(np.abs(a).max())
    gradient = a @ alpha  # half of it
    for _ in range(STEPS):
        to, off = int(np.argmin(gradient)), int(np.argmax(np.where(alpha > 0.0, gradient, -np.inf)))
        gap = gradient[off] - gradient[to]
        if not gap > limit:
            break
        curvature = a[to, to] + a[off, off] - 2.0 * a[to, off]
        step = min(alpha[off], gap / curvature) if curvature > 0.0 else alpha[off]
        alpha[to] += step
        alpha[off] = alpha[off] - step if step < alpha[off] else 0.0
        gradient += step * (a[:, to] - a[:, off])
    return alpha


__all__ = ["minimise", "positive"]

"""A mean over clients whose weights fall with the age of their last report, kept at O(1) per report.

    w_k ∝ exp(−λ (t − v_k)),   mean = Σ_k w_k x_k        v_k: the server's version when client k last reported x_k

Kept are S = Σ_k e^{−λ(v − v_k)} and N = Σ_k e^{−λ(v − v_k)} x_k, with v the version of the last report of all. When
client n reports at version t:  S ← S e^{−λ(t − v)} − e^{−λ(t − v_n)} + 1,  N likewise. Between reports all weights
decay alike, so the mean N/S needs no decay, and nothing underflows: S ≥ 1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def fold(
    total: NDArray[np.float64], cell: NDArray[np.float64] | None, *, value: float, t: int, lam: float
) -> NDArray[np.float64]:
    """Returns (S, N, v) after a client's report at version t.

    Args:
        total: (3,) S, N and v; zeros before the first report.
        cell: (2,) the client's previous value and its version, None before its first.
        value: the client's value now.
        t: the server's version.
        lam: λ, per version.
    """
    keep = math.exp(-lam * (t - total[2]))
    s, n = total[0] * keep, total[1] * keep
    if cell is not None:
        old = math.exp(-lam * (t - cell[1]))
        s, n = max(0.0, s - old), max(0.0, n - old * cell[0])  # rounding may leave −1e-17
    return np.array([s + 1.0, n + value, float(t)])


def mean(total: NDArray[np.float64]) -> float:
    """Returns the mean N/S of a total that has at least one report."""
    return float(total[1] / total[0])


__all__ = ["fold", "mean"]

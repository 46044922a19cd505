"""Prototypes: the mean feature of every class, c_j = mean of h over the samples of class j.

A class without samples has no prototype: its count is 0, its row of the table is zero, and whoever reads the table
masks it out.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

SMALLEST = 1e-12  # squared distance under which the gradient of the distance is 0 instead of infinite

Floats = NDArray[np.float64]


def local(h: torch.Tensor, y: torch.Tensor, num_classes: int) -> tuple[Floats, NDArray[np.int64]]:
    """Returns prototypes (C, D) and counts (C,) of features (n, D) with classes (n,)."""
    features, classes = h.detach().double().numpy(), y.numpy()
    counts = np.bincount(classes, minlength=num_classes).astype(np.int64)
    sums = np.zeros((num_classes, features.shape[1]))
    np.add.at(sums, classes, features)
    return sums / np.maximum(counts, 1)[:, None], counts


def merge(prototypes: Floats, counts: Floats, previous: Floats | None = None) -> Floats:
    """Returns the count-weighted mean over clients: (N, C, D), (N, C) -> (C, D).

    A class that nobody has keeps its row of `previous`, zeros without one.
    """
    total = counts.sum(0)[:, None]  # (N, C) -> (C, 1)
    mean = (counts[:, :, None] * prototypes).sum(0) / np.maximum(total, 1)
    kept = np.zeros_like(mean) if previous is None else previous
    return np.where(total > 0, mean, kept)


def follow(table: Floats, seen: Floats, new: Floats, *, counts: Floats, kappa: float) -> tuple[Floats, Floats]:
    """Returns the global table and its counts after one client's report.

    c ← c_n for a class nobody had reported, (1 − κ) c + κ c_n for the others; classes that the client lacks stay.

    Args:
        table: (C, D) global prototypes.
        seen: (C,) samples behind them so far.
        new: (C, D) the client's.
        counts: (C,) the client's samples.
        kappa: κ in [0, 1].
    """
    rate = np.where(seen > 0, kappa, 1.0) * (counts > 0)
    return table + rate[:, None] * (new - table), seen + counts


def persistent(
    table: Floats, reports: Floats, temporal: Floats, *, seen: NDArray[np.bool_]
) -> tuple[Floats, Floats]:  # fmt: skip
    """Returns the running mean p̄ (C, D) over rounds and its counts u (C,) after one round: p̄ ← ((u − 1) p̄ + p) / u.

    Args:
        table: p̄ before.
        reports: u before.
        temporal: (C, D) this round's prototypes.
        seen: (C,) classes reported in this round; the others stay.
    """
    u = reports + seen
    mean = ((u - 1)[:, None] * table + temporal) / np.maximum(u, 1)[:, None]
    return np.where(seen[:, None], mean, table), u


def distances(h: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Returns Euclidean distances with a gradient that is finite at 0: (B, D), (C, D) -> (B, C)."""
    squared = (h[:, None, :] - prototypes[None]).square().sum(2)  # (B, C, D) -> (B, C)
    return squared.clamp_min(SMALLEST).sqrt()


def logits(h: torch.Tensor, prototypes: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Returns −distance per class, −inf for the classes that are not known: (B, D), (C, D), bool (C,) -> (B, C)."""
    return (-distances(h, prototypes)).masked_fill(~known, -torch.inf)


__all__ = ["SMALLEST", "distances", "follow", "local", "logits", "merge", "persistent"]

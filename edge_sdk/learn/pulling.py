"""Prototypes as targets: terms that pull features towards the prototype of their class, and stand-ins for classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)

from edge_sdk.learn.prototype_tables import Table

TEMPERATURE = 0.5  # of the contrastive term

Pull = Callable[[torch.Tensor, torch.Tensor, Table], torch.Tensor]


def mse(h: torch.Tensor, y: torch.Tensor, table: Table) -> torch.Tensor:
    """Returns the mean of ‖h_i − p_{y_i}‖² / D over rows whose class has a prototype, 0 without any such row.

    Args:
        h: features (B, D).
        y: classes (B,).
        table: of their modality.
    """
    rows = table.known[y]
    if not bool(rows.any()):
        return h.sum() * 0.0
    return (h[rows] - table.rows[y[rows]]).square().mean()


def contrastive(h: torch.Tensor, y: torch.Tensor, table: Table) -> torch.Tensor:
    """Returns the mean of −log softmax_c(cos(h_i, p_c) / 0.5)_{y_i}, over known classes; arguments as for `mse`."""
    rows = table.known[y]
    if not bool(rows.any()):
        return h.sum() * 0.0
    cosines = F.cosine_similarity(h[rows][:, None, :], table.rows[None], dim=2) / TEMPERATURE  # -> (B, C)
    return F.cross_entropy(cosines.masked_fill(~table.known, -torch.inf), y[rows])


PULLS: Mapping[str, Pull] = {"mse": mse, "contrastive": contrastive}


def likeness(h: torch.Tensor, y: torch.Tensor, table: Table) -> float:
    """Returns the mean cosine of features and the prototypes of their classes; 1 where no class has one."""
    rows = table.known[y]
    return float(F.cosine_similarity(h[rows], table.rows[y[rows]], dim=1).mean()) if bool(rows.any()) else 1.0


def with_fallback(tables: Mapping[str, Table], delta: float) -> dict[str, Table]:
    """Returns tables in which a class that one modality lacks comes from another that looks alike (cosine ≥ delta)."""
    filled = {}
    for m, own in tables.items():
        rows, known = own.rows.clone(), own.known.clone()
        for other in (table for name, table in tables.items() if name != m):
            both, new = known & other.known, other.known & ~known
            alike = float(F.cosine_similarity(rows[both], other.rows[both], dim=1).mean()) if bool(both.any()) else -1.0
            if alike >= delta:
                rows[new] = other.rows[new]
                known |= new
        filled[m] = Table(rows, known)
    return filled


__all__ = ["PULLS", "TEMPERATURE", "Pull", "contrastive", "likeness", "mse", "with_fallback"]

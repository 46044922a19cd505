"""Tables of prototypes, one per modality, as clients measure them, servers keep them, and losses read them.

Up and down they travel as "prototypes.<modality>" (C, D) float32 and "counts.<modality>" (C,) int64, in a server's
state as "prototypes/<modality>" and "counts/<modality>". A class with a count of 0 has no prototype.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from numpy.typing import NDArray

from edge_sdk.core.records import Array
from edge_sdk.learn import prototypes, scores
from edge_sdk.learn.local_training import encoded
from edge_sdk.learn.records import Batch, ClientContext, State

Floats = NDArray[np.float64]
Rows = tuple[torch.Tensor, torch.Tensor]  # features or logits (n, …) and classes (n,) of the rows that count


@dataclass(frozen=True, slots=True)
class Table:
    """Prototypes of one modality."""

    rows: torch.Tensor  # float32 (C, D); zeros for a class without one
    known: torch.Tensor  # bool (C,)


def received(extras: Mapping[str, Array], modalities: Iterable[str]) -> dict[str, Table]:
    """Returns the tables that came with a task; modalities without one have no key."""
    return {
        m: Table(torch.tensor(extras[f"prototypes.{m}"]), torch.tensor(extras[f"counts.{m}"]) > 0)
        for m in modalities
        if f"prototypes.{m}" in extras
    }


def features(ctx: ClientContext) -> dict[str, Rows]:
    """Returns features and classes of the rows that have a modality, in evaluation mode, for those of the phase."""
    found, rows = {}, ctx.samples.rows
    here = scores.present(ctx.samples.batch(rows), ctx.spec.modality_names)
    for m in ctx.phase.modalities:
        h = encoded(ctx, m)
        found[m] = h[here[m]], ctx.samples.y[rows][here[m]]
    return found


def measured(found: Mapping[str, Rows], num_classes: int) -> dict[str, Array]:
    """Returns the local prototypes and counts of these features, as they travel."""
    said: dict[str, Array] = {}
    for m, (h, y) in found.items():
        rows, counts = prototypes.local(h, y, num_classes)
        said |= {f"prototypes.{m}": rows.astype(np.float32), f"counts.{m}": counts}
    return said


def own(ctx: ClientContext) -> dict[str, Table]:
    """Returns the tables of the client itself: of its rows, by the model as it is now."""
    return received(measured(features(ctx), ctx.num_classes), ctx.phase.modalities)


def batch_logits(
    tables: Mapping[str, Table], found: Mapping[str, torch.Tensor], batch: Batch, modalities: tuple[str, ...]
) -> dict[str, Rows]:
    """Returns −distance to every known class, and the class, of a batch's rows that count for a modality.

    A row counts if it has the modality and its class has a prototype; a modality without such rows has no key.

    Args:
        tables: by modality.
        found: features (B, D) by modality.
        batch: the batch.
        modalities: all of the spec, in its order.
    """
    here = scores.present(batch, modalities)
    rows = {m: here[m] & table.known[batch.y] for m, table in tables.items() if m in found}
    return {m: class_logits(tables[m], found[m][r], batch.y[r]) for m, r in rows.items() if r.any()}


def class_logits(table: Table, h: torch.Tensor, y: torch.Tensor) -> Rows:
    """Returns −distance to every known class, and the classes, of rows whose classes are known: (n, D) -> (n, C)."""
    return prototypes.logits(h, table.rows, table.known), y


def stimulation(logits: Mapping[str, Rows], *, constant: bool) -> dict[str, float]:
    """Returns coef_m of a batch (`scores.stimulation`); {} where there is only one modality to compare."""
    if len(logits) < 2:
        return {}
    values = np.array([scores.true_class_score(z, y) for z, y in logits.values()])
    return dict(zip(logits, scores.stimulation(values, constant=constant).tolist(), strict=True))


def terms(
    logits: Mapping[str, Rows], coefficients: Mapping[str, float], *, strength: float = 1.0
) -> Iterator[tuple[float, torch.Tensor]]:
    """Yields (strength · coefficient, cross-entropy over −distances) of the modalities where that is not 0."""
    for m, (z, y) in logits.items():
        weight = strength * coefficients.get(m, 0.0)
        if weight:
            yield weight, F.cross_entropy(z, y)


def entropy_terms(logits: Mapping[str, Rows], weight: float) -> Iterator[tuple[float, torch.Tensor]]:
    """Yields (−weight, mean entropy of softmax(−distance)) of the modality with the largest score: PMR's PER.

    Minimised, it spreads the dominant modality's distribution over the classes, which slows it. Nothing is yielded for
    a weight of 0, for fewer than two modalities, or where no modality is ahead of the others.
    """
    values = np.array([scores.true_class_score(z, y) for z, y in logits.values()]) if weight else np.zeros(0)
    ratio = scores.ratios(values)
    if len(values) > 1 and ratio.max() > 1.0 + 1e-12:  # equal scores may differ from 1 by rounding
        z = list(logits.values())[int(ratio.argmax())][0]
        known = z[:, torch.isfinite(z[0])]  # (n, C) -> (n, classes with a prototype): 0 · log 0 has no gradient
        log_p = F.log_softmax(known, dim=1)
        yield -weight, -(log_p.exp() * log_p).sum(1).mean()


def sent(state: State, modalities: Iterable[str]) -> dict[str, Array]:
    """Returns the extras that carry a server's tables, for modalities that have one."""
    known = [m for m in modalities if f"counts/{m}" in state]
    tables = {f"prototypes.{m}": state[f"prototypes/{m}"].astype(np.float32) for m in known}
    return tables | {f"counts.{m}": state[f"counts/{m}"].astype(np.int64) for m in known}


def merged(
    state: State, reports: Iterable[Mapping[str, Array]], modalities: Iterable[str], *, alike: bool = False
) -> State:  # fmt: skip
    """Returns a server's tables after one round's reports, as a patch of its state.

    A class's new prototype is the mean of the reported ones, weighted by counts; nobody's class keeps the old one.

    Args:
        state: before.
        reports: payloads, in a fixed order.
        modalities: of the spec.
        alike: every client that has the class counts the same.
    """
    patch: dict[str, Floats] = {}
    told = list(reports)
    for m in modalities:
        pairs = [
            (r[f"prototypes.{m}"], r[f"counts.{m}"]) for r in told if {f"prototypes.{m}", f"counts.{m}"} <= r.keys()
        ]
        if pairs:
            tables, counts = (np.stack([np.asarray(x, np.float64) for x in part]) for part in zip(*pairs, strict=True))
            shares, total = np.minimum(counts, 1.0) if alike else counts, counts.sum(0)
            patch[f"prototypes/{m}"] = prototypes.merge(tables, shares, state.get(f"prototypes/{m}"))
            patch[f"counts/{m}"] = np.where(total > 0, total, state.get(f"counts/{m}", np.zeros_like(total)))
    return patch


__all__ = [
    "Rows",
    "Table",
    "batch_logits",
    "class_logits",
    "entropy_terms",
    "features",
    "measured",
    "merged",
    "own",
    "received",
    "sent",
    "stimulation",
    "terms",
]

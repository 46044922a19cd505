"""Probes: the mean loss of every head on training rows and on held-out rows, and what training did to the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sdk.core.records import Int64
from edge_sdk.learn import scores, seeds
from edge_sdk.learn.local_training import full_pass
from edge_sdk.learn.records import Batch, ClientContext, Out

Floats = NDArray[np.float64]


def held_out(index: Int64, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Returns which rows are held out, bool (n,), by window number: the same window is, in every round.

    Args:
        index: (n,) window numbers.
        fraction: share of windows to hold out, on average.
        seed: another seed holds out others.
    """
    share = seeds.scramble(index.astype(np.uint64), seed).astype(np.float64) / 2.0**64  # in [0, 1]
    chosen: NDArray[np.bool_] = share < fraction
    return chosen


def split(rows: torch.Tensor, index: Int64, *, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows to train on and rows held out; at least one is left to train on.

    Args:
        rows: int64 (r,) row numbers.
        index: (n,) window numbers by row number.
        fraction: share to hold out, on average.
        seed: of the choice.
    """
    held = torch.from_numpy(held_out(index[rows.numpy()], fraction, seed))
    if bool(held.all()):
        held[0] = False
    return rows[~held], rows[held]


def head_losses(logits: Sequence[torch.Tensor], y: torch.Tensor, valid: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the cross-entropy of every row and head, NaN where a row does not count: H × (B, C), (B,) -> (B, H)."""
    losses = [torch.nn.functional.cross_entropy(z, y, reduction="none") for z in logits]
    return torch.stack([loss.masked_fill(~v, torch.nan) for loss, v in zip(losses, valid, strict=True)], dim=1)


def mean_losses(
    ctx: ClientContext, rows: torch.Tensor, fn: Callable[[Batch], torch.Tensor]
) -> NDArray[np.float64]:  # fmt: skip
    """Returns the mean loss per head over rows, float64 (H,); NaN for a head that none of them counts for.

    Args:
        ctx: of the phase; its rows are put back afterwards.
        rows: row numbers, at least one.
        fn: a batch -> losses (B, H), NaN where a row does not count for a head; no gradient is kept.
    """
    kept = ctx.samples
    ctx.samples = replace(kept, rows=rows)
    try:
        losses = full_pass(ctx, fn).double().numpy()  # (n, H)
    finally:
        ctx.samples = kept
    counts = np.isfinite(losses).sum(0)
    means: NDArray[np.float64] = np.where(counts > 0, np.nansum(losses, axis=0) / np.maximum(counts, 1), np.nan)
    return means


def model_losses(ctx: ClientContext, batch: Batch, out: Out) -> torch.Tensor:
    """Returns losses (B, M' + 1) of the shared heads of the phase's modalities, in order, and of the fusion."""
    here = scores.present(batch, ctx.spec.modality_names)
    logits = [ctx.model.module(f"head.{m}")(out.features[m]) for m in ctx.phase.modalities]
    valid = [here[m] for m in ctx.phase.modalities]
    return head_losses([*logits, out.logits], batch.y, [*valid, torch.ones_like(batch.y, dtype=torch.bool)])


def weighted(losses: torch.Tensor, weights: Sequence[float]) -> Iterator[tuple[float, torch.Tensor]]:
    """Yields (weight, mean loss) per head of losses (B, H); 0 for a head that no row counts for."""
    for i, weight in enumerate(weights):
        rows = ~torch.isnan(losses[:, i].detach())
        yield weight, losses[rows, i].mean() if rows.any() else torch.zeros(())


def growth(before: tuple[Floats, Floats], after: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """Returns (ΔG, ΔO) per head from (training, held-out) losses before and after.

    ΔG is how far the held-out loss fell, ΔO how far the gap between held-out and training loss grew.
    """
    (train0, held0), (train1, held1) = before, after
    return held0 - held1, (held1 - train1) - (held0 - train0)


def quotients(gain: Floats, overfit: Floats, floor: float) -> Floats:
    """Returns max(ΔG, 0) / max(ΔO², floor), (H,), (H,) -> (H,); 0 for what could not be measured (NaN)."""
    quotient = np.maximum(gain, 0.0) / np.maximum(overfit**2, floor)
    return np.where(np.isfinite(quotient), quotient, 0.0)


def shares(values: Floats, least: float = 0.0) -> Floats:
    """Returns values ≥ 0 as shares that sum to 1, equal ones if all are 0; `least` is a floor before normalising."""
    if not values.sum() > 0.0:
        return np.full(len(values), 1.0 / max(1, len(values)))
    floored = np.maximum(values / values.sum(), least)
    normal: Floats = floored / floored.sum()
    return normal


__all__ = [
    "growth",
    "head_losses",
    "held_out",
    "mean_losses",
    "model_losses",
    "quotients",
    "shares",
    "split",
    "weighted",
]

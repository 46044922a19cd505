"""How well each modality does alone: uni-modal logits, true-class scores and their ratios."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sdk.learn.records import Batch, FusedModel

FLOOR = 1e-8  # smallest score: ratios of scores stay finite


class UnimodalFusion(Protocol):
    """A fusion classifier that can be asked for one modality alone."""

    def unimodal_logits(self, modality: str, h: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, C) of the features (B, D) of one modality; those of a linear fusion sum to its own."""


def unimodal_logits(model: FusedModel, features: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns (B, C) per modality: W_m h_m + b/M of a linear fusion, ψ(0, …, h_m, …, 0) of any other."""
    fusion = cast(UnimodalFusion, model.module("fusion"))
    return {m: fusion.unimodal_logits(m, h) for m, h in features.items()}


def true_class_score(logits: torch.Tensor, y: torch.Tensor) -> float:
    """Returns the mean of softmax(logits)_y over the rows, in [FLOOR, 1]: logits (B, C), y (B,) -> scalar."""
    if not len(y):
        return FLOOR
    chosen = torch.softmax(logits.detach().double(), dim=1).gather(1, y[:, None])  # (B, C) -> (B, 1)
    return max(FLOOR, float(chosen.mean()))


def present(batch: Batch, modalities: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Returns bool (B,) per modality: the rows that have it. `modalities` are all of the spec, in order."""
    return {m: batch.mask[:, column] > 0 for column, m in enumerate(modalities)}


def ratios(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns r_m = s_m / mean of the other scores, (M,) -> (M,); for M = 2 the second is 1 over the first."""
    if len(scores) < 2:
        return np.ones_like(scores)
    floored = np.maximum(scores, FLOOR)
    others = (floored.sum() - floored) / (len(floored) - 1)
    ratio: NDArray[np.float64] = floored / np.maximum(others, FLOOR)
    return ratio


def stimulation(values: NDArray[np.float64], *, constant: bool = False) -> NDArray[np.float64]:
    """Returns coef_m = clip(mean of the other scores / s_m − 1, 0, 1), (M,) -> (M,): what the slower modalities get.

    Args:
        values: scores s_m.
        constant: 1 in the place of every coefficient that is not 0.
    """
    coefficients: NDArray[np.float64] = np.clip(1.0 / ratios(values) - 1.0, 0.0, 1.0)
    return np.sign(coefficients) if constant else coefficients


__all__ = ["FLOOR", "UnimodalFusion", "present", "ratios", "stimulation", "true_class_score", "unimodal_logits"]

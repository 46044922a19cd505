"""Held-out accuracy of a model: fused, of every modality alone, and without each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from edge_sdk.core.records import Array, Dataset, ModelTensors
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn import params, prototypes, scores
from edge_sdk.learn.records import Needs
from edge_sdk.models.build import FusedModel, build

BATCH = 512  # rows


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a model does on a data set."""

    acc: float  # fused, [0, 1]
    acc_by_modality: Mapping[str, float]  # zero-feature: ψ(0, …, h_m, …, 0), rows that have m
    n: int  # rows


def evaluate(
    spec: FederationSpec, needs: Needs, tensors: ModelTensors, dataset: Dataset, max_rows: int = 0
) -> Evaluation:  # fmt: skip
    """Returns the accuracy of a model; a job for `Compute`.

    Args:
        spec: the federation's spec.
        needs: what the method needs of the model.
        tensors: the model.
        dataset: held-out rows; modalities it lacks are masked.
        max_rows: at most so many, spread evenly over the set; 0: all.
    """
    if 0 < max_rows < len(dataset.y):
        dataset = dataset.take(np.linspace(0, len(dataset.y) - 1, max_rows).round().astype(np.int64))
    alone = dict(zip(spec.modality_names, torch.eye(len(spec.modality_names)), strict=True))
    right = _under(spec, needs, tensors, dataset, {"": torch.ones(len(alone)), **alone})
    return Evaluation(_share(right[""]), {m: _share(right[m]) for m in alone}, int(right[""][1]))


def without(spec: FederationSpec, needs: Needs, tensors: ModelTensors, dataset: Dataset) -> dict[str, float]:
    """Returns modality → accuracy, [0, 1], with its feature at zero and all others as they are; a job for `Compute`."""
    rest = 1.0 - torch.eye(len(spec.modality_names))
    right = _under(spec, needs, tensors, dataset, dict(zip(spec.modality_names, rest, strict=True)))
    return {m: _share(count) for m, count in right.items()}


def _under(
    spec: FederationSpec, needs: Needs, tensors: ModelTensors, dataset: Dataset, seen: Mapping[str, torch.Tensor]
) -> dict[str, Array]:  # fmt: skip
    """Returns name → (correct, rows) with just the modalities of a name seen, (M,) of 0 and 1."""
    model = build(spec, needs)
    params.load(model.named(), tensors)
    model.eval()
    right = {name: np.zeros(2, np.int64) for name in seen}
    with torch.inference_mode():
        for start in range(0, len(dataset.y), BATCH):
            part = dataset.take(np.arange(start, min(start + BATCH, len(dataset.y))))
            _batch(model, spec.modality_names, part, seen, right)
    return right


def unimodal(
    spec: FederationSpec, needs: Needs, tensors: ModelTensors, train: Dataset, test: Dataset
) -> dict[str, dict[str, float]]:
    """Returns Acc-[modality] in the three ways of the papers: way → modality → accuracy on `test`, [0, 1].

    zero_feature: ψ(0, …, h_m, …, 0); linear_block: W_m h_m + b/M of a linear fusion; nearest_prototype: the class whose
    mean feature over `train` is nearest (BMSFed takes the means of the test set itself: not done here).
    """
    model = build(spec, needs)
    params.load(model.named(), tensors)
    model.eval()
    found: dict[str, dict[str, float]] = {"zero_feature": {}, "linear_block": {}, "nearest_prototype": {}}
    with torch.inference_mode():
        for m in spec.modality_names:
            h, y = _features(model, m, test)
            seen, classes = _features(model, m, train)
            table, counts = prototypes.local(seen, classes, len(spec.classes))
            near = prototypes.logits(h, torch.from_numpy(table).float(), torch.from_numpy(counts) > 0)
            alone = scores.unimodal_logits(model, {m: h})[m]
            mask = torch.zeros(len(y), len(spec.modality_names))
            mask[:, spec.modality_names.index(m)] = 1.0
            for way, logits in zip(found, (model.fuse({m: h}, mask), alone, near), strict=True):
                found[way][m] = float((logits.argmax(1) == y).double().mean()) if len(y) else float("nan")
    return found


def _features(model: FusedModel, m: str, data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns features (n, D) and classes (n,) of the rows that have a modality."""
    rows = np.flatnonzero(data.has[m]) if m in data.x else np.zeros(0, np.int64)
    parts = [data.x[m][rows[i : i + BATCH]] for i in range(0, len(rows), BATCH)]
    encoded = [model.encode({m: torch.from_numpy(np.asarray(x, np.float32))}, (m,))[m] for x in parts]
    h = torch.cat(encoded) if encoded else torch.zeros(0, model.feature_dim)
    return h, torch.from_numpy(np.ascontiguousarray(data.y[rows]))


def _share(count: Array) -> float:
    return float(count[0]) / max(1, int(count[1]))


def _batch(
    model: FusedModel, modalities: tuple[str, ...], part: Dataset, seen: Mapping[str, torch.Tensor],
    right: dict[str, Array],
) -> None:  # fmt: skip
    present = tuple(m for m in modalities if m in part.x)
    y = torch.from_numpy(np.ascontiguousarray(part.y))
    has = np.stack([part.has[m] if m in present else np.zeros(len(y), bool) for m in modalities], axis=1)
    mask = torch.from_numpy(has.astype(np.float32))  # (B, M)
    x = {m: torch.from_numpy(np.asarray(part.x[m], np.float32)) for m in present}
    masks = [mask * kept for kept in seen.values()]
    for name, kept, logits in zip(seen, masks, model.under(x, masks), strict=True):
        _count(right[name], logits, y, kept.amax(dim=1) > 0)


def _count(into: Array, logits: torch.Tensor, y: torch.Tensor, rows: torch.Tensor) -> None:
    into += np.array([int(((logits.argmax(dim=1) == y) & rows).sum()), int(rows.sum())])


__all__ = ["BATCH", "Evaluation", "evaluate", "unimodal", "without"]

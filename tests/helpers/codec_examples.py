"""A small model layout, updates and versions that fit it, and a codec step of a user's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_sdk.codecs import wire
from edge_sdk.core.records import (
    Float32,
    ModelLayout,
    ModelTensors,
    ModelVersion,
    ModuleLayout,
    Segments,
    TensorSpec,
    Update,
    UpdateKey,
    VersionId,
)

Shapes = Mapping[str, tuple[int, ...]]
LINEAGE = "0f" * 16
BASE = VersionId(LINEAGE, 41, "ab" * 16)
KEY = UpdateKey("jetson-7", 2**64 - 5, 12)
SPEC = "cd" * 16


def module(params: Shapes, stats: Shapes | None = None, counters: Shapes | None = None) -> ModuleLayout:
    tensors: list[TensorSpec] = []
    sizes = []
    for segment, shapes in (("params", params), ("stats", stats or {}), ("counters", counters or {})):
        offset = 0
        for name in sorted(shapes):
            tensors.append(TensorSpec(name, shapes[name], segment, offset))
            offset += math.prod(shapes[name])
        sizes.append(offset)
    return ModuleLayout(tuple(tensors), *sizes)


LAYOUT: ModelLayout = {
    "encoder.acc": module(
        {"0.weight": (8, 6, 5), "0.bias": (8,), "scale": ()},
        {"1.mean": (8,), "1.var": (8,)},
        {"1.batches": ()},
    ),
    "encoder.gyr": module({"0.weight": (8, 3, 5), "0.bias": (8,)}),
    "fusion": module({"weight": (6, 16), "bias": (6,)}),
}


def random_tensors(layout: ModelLayout, seed: int = 0, scale: float = 1e-2) -> dict[str, Segments]:
    rng = np.random.default_rng(seed)
    return {
        name: Segments(
            (rng.standard_normal(m.params) * scale).astype(np.float32),
            rng.random(m.stats).astype(np.float32),
            rng.integers(0, 1000, m.counters),
        )
        for name, m in layout.items()
    }


def make_update(tensors: ModelTensors | None = None, **changes: Any) -> Update:
    fields: dict[str, Any] = {
        "key": KEY,
        "task": "task-9",
        "base": BASE,
        "spec_digest": SPEC,
        "kind": "delta",
        "tensors": random_tensors(LAYOUT) if tensors is None else tensors,
        "num_samples": 512,
        "num_steps": 40,
        "modalities": ("acc", "gyr"),
        "payload": {"distances": np.array([0.25, 1.5], np.float32), "counts": np.array([[1, 2], [3, 4]], np.int64)},
        "train_s": 3.5,
        "wait_s": 0.25,
    }
    return Update(**(fields | changes))


def make_version(tensors: ModelTensors, number: int = 41) -> ModelVersion:
    return ModelVersion(VersionId(LINEAGE, number, wire.tensors_digest(tensors)), tensors)


def norm(x: Float32) -> float:
    return float(np.linalg.norm(x.astype(np.float64)))


def same_tensors(a: ModelTensors, b: ModelTensors) -> bool:
    return sorted(a) == sorted(b) and all(
        np.array_equal(a[n].params, b[n].params)
        and np.array_equal(a[n].stats, b[n].stats)
        and np.array_equal(a[n].counters, b[n].counters)
        for n in a
    )

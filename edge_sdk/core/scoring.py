"""How often is an engine right about labelled windows?"""

from __future__ import annotations

import numpy as np

from edge_sdk.core.interfaces import Engine
from edge_sdk.core.records import Float32, Int64, RoundData

_BATCH = 16  # windows that an engine is given at once, so that memory stays small


def accuracy(engine: Engine, data: RoundData) -> float:
    """Returns the share of labelled rows that the engine predicts right, each with the modalities that it has."""
    return float(np.mean(classes(engine, data) == data.y))


def classes(engine: Engine, data: RoundData) -> Int64:
    """Returns the class numbers (n,) that an engine gives to rows, each with the modalities that it has."""
    mask = masks(data, engine.info.modalities)
    starts = range(0, len(mask), _BATCH)
    logits = [_logits(engine, data, mask, slice(i, i + _BATCH)) for i in starts]
    found: Int64 = np.concatenate(logits).argmax(1)
    return found


def masks(data: RoundData, modalities: tuple[str, ...]) -> Float32:
    """Returns the mask (n, M) of rows."""
    return np.stack([data.has[m] for m in modalities], axis=1).astype(np.float32)


def _logits(engine: Engine, data: RoundData, mask: Float32, rows: slice) -> Float32:
    return engine.run({m: data.x[m][rows] for m in engine.info.modalities}, mask[rows])


__all__ = ["accuracy", "classes", "masks"]

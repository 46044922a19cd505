"""Made-up features with a strong and a weak modality, for tests and quick looks at modality imbalance.

Per class and modality a Gaussian mean of norm r, plus unit noise, randomly rotated and scaled. The strong modality
(r = 3) is learnt at normal scale; the weak one (r = 1.5) is multiplied by 0.3, so that its gradients are small.
`synthetic` or `synthetic:pair` has `strong` and `weak`; `synthetic:triple` adds `middle` (r = 2, scale 0.6).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Dataset, Float32, Int64
from edge_sdk.datasets import variants
from edge_sdk.datasets.variants import VariantOptions

SAMPLES, CLASSES, FEATURES, TEST_SHARE = 2400, 6, 32, 0.2


@dataclass(frozen=True, slots=True)
class Source:
    """How well one modality tells the classes apart."""

    name: str
    norm: float  # r: distance of every class mean from the origin, in units of the noise
    scale: float  # factor on the finished features


STRONG, MIDDLE, WEAK = Source("strong", 3.0, 1.0), Source("middle", 2.0, 0.6), Source("weak", 1.5, 0.3)
SOURCES = {"pair": (STRONG, WEAK), "triple": (STRONG, MIDDLE, WEAK)}


class Options(VariantOptions):
    """Two modalities or three."""

    form: Literal["pair", "triple"] = "pair"


def load(data: Path | None = None, *, variant: str = "", seed: int = 0) -> Dataset:
    """Returns a set of 2,400 rows, four fifths of them for training; the same seed gives the same rows."""
    if data is not None:
        raise DataError(f"synthetic is drawn at random and reads no files: leave out {data}")
    sources = SOURCES[variants.read("synthetic", variant, Options).form]
    rng = np.random.default_rng([seed, len(sources)])
    y: Int64 = rng.permutation(np.arange(SAMPLES, dtype=np.int64) % CLASSES)
    return Dataset(
        name="synthetic",
        x={s.name: _features(s, y, rng) for s in sources},
        y=y,
        classes=tuple(f"class_{c}" for c in range(CLASSES)),
        has={s.name: np.ones(SAMPLES, np.bool_) for s in sources},
        split=np.where(np.arange(SAMPLES) < SAMPLES * (1 - TEST_SHARE), "train", "test"),
    )


def _features(source: Source, y: Int64, rng: np.random.Generator) -> Float32:
    means = rng.standard_normal((CLASSES, FEATURES))
    means *= source.norm / np.linalg.norm(means, axis=1, keepdims=True)
    rotation, _ = np.linalg.qr(rng.standard_normal((FEATURES, FEATURES)))
    x = (means[y] + rng.standard_normal((len(y), FEATURES))) @ rotation  # (n, F)
    features: Float32 = (source.scale * x).astype(np.float32)
    return features


__all__ = ["MIDDLE", "SOURCES", "STRONG", "WEAK", "Options", "Source", "load"]

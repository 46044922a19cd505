"""The made-up strong/weak sets: same seed same rows, and the imbalance that they are there for."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.core.errors import DataError, PluginError
from edge_sdk.core.records import Dataset
from edge_sdk.datasets import select


def nearest_mean_accuracy(data: Dataset, modality: str) -> float:
    """Accuracy on the test rows of assigning each to the nearest class mean of the training rows."""
    assert data.split is not None
    train, x = data.split == "train", data.x[modality]
    means = np.stack([x[train & (data.y == c)].mean(axis=0) for c in range(len(data.classes))])
    nearest = ((x[~train, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    return float((nearest == data.y[~train]).mean())


def test_same_seed_same_rows() -> None:
    one, two, other = select("synthetic", seed=1), select("synthetic:pair", seed=1), select("synthetic", seed=2)
    np.testing.assert_array_equal(one.x["weak"], two.x["weak"])
    assert not np.array_equal(one.x["weak"], other.x["weak"])


def test_strong_is_learnt_better_than_weak_and_weak_better_than_chance() -> None:
    data = select("synthetic:triple", seed=3)
    assert data.modalities == ("strong", "middle", "weak")
    strong, middle, weak = (nearest_mean_accuracy(data, m) for m in data.modalities)
    assert strong > 0.9
    assert strong > middle > weak > 1.5 / len(data.classes)
    assert data.x["weak"].std() < 0.5 * data.x["strong"].std()


def test_split_and_classes() -> None:
    data = select("synthetic")
    assert data.split is not None
    assert (data.split == "test").mean() == pytest.approx(0.2)
    assert set(data.y[data.split == "test"]) == set(range(6))


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="form: Input should be 'pair' or 'triple', found 'quad'"):
        select("synthetic:quad")
    with pytest.raises(PluginError, match="uci_har"):
        select("no_such_set")

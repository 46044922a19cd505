"""From a data set to a federation: who is test, what the spec says, and how inputs are standardised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array, Dataset, Int64
from edge_sdk.core.spec import FederationSpec, MethodSpec, ModalitySpec, ModelSpec, TrainingSpec, WindowSpec

TEST_SUBJECT_EVERY = 5  # without a split of its own, every fifth subject of a data set is test
TEST_FRACTION = 0.2  # without subjects either
FLAT = 1e-6  # a channel that deviates less is constant in training: dividing by it would blow up any other value


@dataclass(frozen=True, slots=True)
class Split:
    """A data set cut in two."""

    train: Dataset
    test: Dataset


def split(dataset: Dataset, seed: int) -> Split:
    """Returns training and test rows: the set's own split, else every fifth subject, else stratified 80/20 by seed.

    Raises:
        DataError: one of the two would be empty, or the test asks for a class that nobody can learn.
    """
    test = _test_rows(dataset, seed)
    if test.all() or not test.any():
        which = "training" if test.all() else "test"
        raise DataError(f"{dataset.name}: no {which} rows; give every row a split of 'train' or 'test', or more rows")
    unknown = np.setdiff1d(dataset.y[test & (dataset.y >= 0)], dataset.y[~test])
    if len(unknown):
        names = ", ".join(repr(dataset.classes[label]) for label in unknown)
        raise DataError(
            f"{dataset.name}: no training row of class {names}, which the test has; add some, or leave it out"
        )
    return Split(dataset.take(np.flatnonzero(~test)), dataset.take(np.flatnonzero(test)))


def _test_rows(dataset: Dataset, seed: int) -> Array:
    if dataset.split is not None:
        return np.asarray(dataset.split == "test")
    if dataset.subject is not None:
        people = np.unique(dataset.subject)
        return np.isin(dataset.subject, people[TEST_SUBJECT_EVERY - 1 :: TEST_SUBJECT_EVERY])
    rng = np.random.default_rng(seed)
    test = np.zeros(len(dataset.y), bool)
    for label in np.unique(dataset.y):
        rows = rng.permutation(np.flatnonzero(dataset.y == label))
        test[rows[: round(TEST_FRACTION * len(rows))]] = True
    return test


def validation(train: Dataset, share: float, seed: int) -> Split:
    """Returns training rows cut in two, to choose a setting without a look at the test rows.

    Args:
        train: training rows of a data set.
        share: part that is held out, (0, 1): whole people where the set knows them, else stratified rows.
        seed: of the draw.

    Raises:
        DataError: one of the two would be empty.
    """
    rng = np.random.default_rng(seed)
    groups = train.y if train.subject is None else train.subject
    held = np.zeros(len(train.y), bool)
    if train.subject is None:
        for label in np.unique(groups):
            rows = rng.permutation(np.flatnonzero(groups == label))
            held[rows[: round(share * len(rows))]] = True
    else:
        people = rng.permutation(np.unique(groups))
        held = np.isin(groups, people[: max(1, round(share * len(people)))])
    if held.all() or not held.any():
        raise DataError(
            f"{train.name}: {len(train.y)} training rows cannot give a validation split of {share:g}; "
            "give more rows or people, or another share"
        )
    return Split(train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held)))


def spec_of(
    train: Dataset, *, name: str, method: str, options: Mapping[str, Any] | None = None,
    modalities: tuple[str, ...] = (), model: ModelSpec | None = None, training: TrainingSpec | None = None,
    window: WindowSpec | None = None,
) -> FederationSpec:  # fmt: skip
    """Returns the federation that fits a training set: shapes, rates, classes, and mean and deviation per channel."""
    kept = modalities or train.modalities
    return FederationSpec(
        name=name,
        modalities=tuple(_modality(train, m) for m in kept),
        classes=train.classes,
        window=window or WindowSpec(),
        model=model or ModelSpec(),
        method=MethodSpec(name=method, config=dict(options or {})),
        training=training or TrainingSpec(),
    )


def _modality(train: Dataset, name: str) -> ModalitySpec:
    if name not in train.x:
        raise DataError(f"{train.name}: no modality {name!r}; it has {', '.join(train.modalities)}")
    rows: Array = train.x[name][train.has[name]]
    if len(rows) == 0:
        raise DataError(f"{train.name}: no training row has modality {name!r}; leave it out")
    axes = (0, *range(2, rows.ndim))
    mean = rows.mean(axis=axes, dtype=np.float64)
    std = rows.std(axis=axes, dtype=np.float64)
    return ModalitySpec(
        name=name,
        shape=tuple(rows.shape[1:]),
        rate_hz=float(train.rate_hz.get(name, 0.0)),
        mean=tuple(float(f"{v:.6g}") for v in mean),
        std=tuple(float(f"{v if v > FLAT else 1.0:.6g}") for v in std),
    )


def only(dataset: Dataset, modalities: tuple[str, ...]) -> Dataset:
    """Returns the set with just these modalities, rows that have none of them left out."""
    some = np.zeros(len(dataset.y), bool)
    for m in modalities:
        some |= dataset.has[m]
    rows: Int64 = np.flatnonzero(some)
    taken = dataset.take(rows)
    return Dataset(
        name=dataset.name,
        x={m: taken.x[m] for m in modalities},
        y=taken.y,
        classes=taken.classes,
        has={m: taken.has[m] for m in modalities},
        rate_hz={m: r for m, r in taken.rate_hz.items() if m in modalities},
        subject=taken.subject,
        split=taken.split,
    )


__all__ = ["Split", "only", "spec_of", "split", "validation"]

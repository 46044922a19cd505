"""Who owns which rows: IID, by subject, or Dirichlet."""

from __future__ import annotations

import numpy as np

from edge_sdk.core.errors import ConfigError, DataError
from edge_sdk.core.records import Dataset, Int64

FULL = 1.1  # times the mean number of rows


def partition(dataset: Dataset, devices: int, how: str | None, seed: int) -> list[Int64]:
    """Returns one array of row numbers per device; every row belongs to exactly one device.

    Args:
        dataset: training rows.
        devices: N.
        how: "iid", "subject" (round robin over subjects), "dirichlet:A", or None: by subject if there are at
            least N, else IID.
        seed: of the draw.

    Raises:
        ConfigError: `how` is none of these.
        DataError: fewer rows (or subjects) than devices.
    """
    if devices > len(dataset.y):
        raise DataError(f"{dataset.name}: {devices} devices but only {len(dataset.y)} training rows; use fewer devices")
    if how is None:
        people = 0 if dataset.subject is None else len(np.unique(dataset.subject))
        how = "subject" if people >= devices else "iid"
    kind, _, value = how.partition(":")
    rng = np.random.default_rng([seed, 0x9A27])
    if kind == "iid" and not value:
        return [np.sort(part) for part in np.array_split(rng.permutation(len(dataset.y)), devices)]
    if kind == "subject" and not value:
        return _by_subject(dataset, devices)
    if kind == "dirichlet" and value:
        return _dirichlet(dataset, devices, _concentration(value), rng)
    raise ConfigError(f"partition {how!r}: expected iid, subject or dirichlet:A with A > 0")


def _concentration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError(f"partition dirichlet:{text}: A must be a number above 0")
    return value


def _by_subject(dataset: Dataset, devices: int) -> list[Int64]:
    if dataset.subject is None:
        raise DataError(f"{dataset.name}: has no subjects; use --partition iid")
    people = np.unique(dataset.subject)
    if len(people) < devices:
        raise DataError(f"{dataset.name}: {devices} devices but only {len(people)} training subjects; use iid")
    return [np.flatnonzero(np.isin(dataset.subject, people[d::devices])) for d in range(devices)]


def _dirichlet(dataset: Dataset, devices: int, concentration: float, rng: np.random.Generator) -> list[Int64]:
    """Class by class by drawn shares; whoever holds FULL times the mean already gets nothing of the next classes.

    The rule of the authors' code of BMSFed (Fan et al., ECCV 2024), which keeps the sizes near one another.
    """
    parts: list[list[Int64]] = [[] for _ in range(devices)]
    sizes = np.zeros(devices)
    for label in np.unique(dataset.y):
        rows = rng.permutation(np.flatnonzero(dataset.y == label))
        free = sizes < FULL * len(dataset.y) / devices
        shares = rng.dirichlet(np.full(devices, concentration)) * free
        if not shares.any():  # a small A gave everything to those that are full
            shares = free.astype(np.float64)
        cuts = (np.cumsum(shares / shares.sum())[:-1] * len(rows)).astype(int)
        for device, piece in enumerate(np.split(rows, cuts)):
            parts[device].append(piece)
            sizes[device] += len(piece)
    return _none_empty([np.sort(np.concatenate(part)) for part in parts])


def _none_empty(owned: list[Int64]) -> list[Int64]:
    """A small A can leave a device without rows: it takes one from whoever has most."""
    for d, rows in enumerate(owned):
        if len(rows) == 0:
            rich = max(range(len(owned)), key=lambda k: len(owned[k]))
            owned[d], owned[rich] = owned[rich][:1], owned[rich][1:]
    return owned


__all__ = ["partition"]

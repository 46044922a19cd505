"""Which rows of a set are taken, and which are test."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Int64


def choose(total: int, count: int | None, rng: np.random.Generator, *, what: str) -> Int64:
    """Returns `count` of the row numbers 0 … total − 1, drawn without replacement, ascending; None: all of them.

    Raises:
        DataError: more are asked for than there are; `what` says of what.
    """
    if count is None:
        return np.arange(total, dtype=np.int64)
    if count > total:
        raise DataError(f"{what}: {count} asked for, but there are {total}")
    return np.sort(rng.permutation(total)[:count])


def random_split(total: int, test: int, rng: np.random.Generator) -> NDArray[np.str_]:
    """Returns "test" for `test` of the rows, drawn at random, and "train" for the others."""
    split = np.full(total, "train")
    split[rng.permutation(total)[:test]] = "test"
    return split


__all__ = ["choose", "random_split"]

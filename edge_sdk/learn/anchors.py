"""Per-sample constants of one round, kept by window number: the rows of a round set may differ from phase to phase."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sdk.core.records import Array, Int64, RoundData


def pack(name: str, values: torch.Tensor, index: Int64, dtype: str) -> dict[str, Array]:
    """Returns what a phase carries on: values (n, D) and the window numbers (n,) they belong to."""
    return {name: values.numpy().astype(dtype), f"{name}/index": index}


def match(
    carry: Mapping[str, Array], name: str, data: RoundData, has: NDArray[np.bool_]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns values float32 (n, D) by row of a round set, and which rows have one, bool (n,).

    Args:
        carry: what `pack` made, among other things.
        name: the name it was packed under.
        data: the round set of n rows.
        has: (n,) rows that count at all.
    """
    values, index = carry[name], carry[f"{name}/index"]
    order = np.argsort(index, kind="stable")
    place = np.clip(np.searchsorted(index[order], data.indices), 0, len(index) - 1)
    rows = order[place]  # (n,)
    known = (index[rows] == data.indices) & has
    return torch.from_numpy(values[rows].astype(np.float32)), torch.from_numpy(known)


__all__ = ["match", "pack"]

"""Real data as recordings that devices replay: each device gets the segments of its own people."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_sdk.core.clock import NS
from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Chunk, Dataset
from edge_sdk.recording import Writer


def segment_s(data: Dataset) -> float:
    """Returns the length of one row in seconds; all modalities must be time series of one length."""
    lengths = {round(data.x[m].shape[-1] / data.rate_hz[m], 9) for m in data.modalities if data.rate_hz.get(m)}
    if len(lengths) != 1:
        raise DataError(f"{data.name}: the demo replays time series of one length; found lengths {sorted(lengths)} s")
    return float(lengths.pop())


def write(data: Dataset, folder: Path, *, seed: int) -> Path:
    """Writes rows as one recording, a segment each, in shuffled order, with their labels.

    Rows are segments, not a continuous recording: every chunk begins a new segment (`gap_before`), on the grid of the
    federation, so that each gives exactly one window and none mixes two rows.
    """
    length_ns = round(segment_s(data) * NS)
    order = np.random.default_rng(seed).permutation(len(data.y))
    with Writer(folder, start_ns=0) as writer:
        for place, row in enumerate(order):
            for m in data.modalities:
                writer.append(_chunk(data, m, int(row), place=place, length_ns=length_ns))
            start_s = place * length_ns / NS
            writer.label(start_s, start_s + length_ns / NS, data.classes[data.y[row]])
    return folder


def _chunk(data: Dataset, modality: str, row: int, *, place: int, length_ns: int) -> Chunk:
    samples = data.x[modality][row].T  # (C, L) -> (L, C)
    return Chunk(
        stream=modality,
        seq=place,
        t_ns=place * length_ns,
        data=np.ascontiguousarray(samples),
        period_ns=length_ns // len(samples),
        gap_before=True,
    )


__all__ = ["segment_s", "write"]

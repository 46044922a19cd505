"""Makes the excerpt of UCI-HAR that travels with the package.

    python -m edge_sdk.datasets.data.make_excerpt SRC OUT.npz [--per-subject N]

SRC is the official archive or its folder. Per person the excerpt takes up to N windows, evenly spread over the rows in
their official order, so that every activity is there. Values are stored as int16 times a step: 2^-10 g and
2^-9 rad/s, which is finer than the noise of the phone's sensors. The file stays
below 3 MB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_sdk.core.records import Array, Dataset, Float32, Int64
from edge_sdk.datasets import uci_har

STEPS = {"acc": 2.0**-10, "gyro": 2.0**-9}  # g, rad/s
PER_SUBJECT = 110


def choose_rows(subject: Int64, per_subject: int) -> Int64:
    """Returns the rows to keep: for every person at most `per_subject`, evenly spread, in ascending order."""
    kept = []
    for person in np.unique(subject):
        rows = np.flatnonzero(subject == person)
        count = min(per_subject, len(rows))
        kept.append(rows[np.round(np.linspace(0, len(rows) - 1, count)).astype(np.int64)])
    return np.sort(np.concatenate(kept))


def pack(dataset: Dataset) -> dict[str, Array]:
    """Returns the arrays of an excerpt file."""
    assert dataset.subject is not None
    assert dataset.split is not None
    arrays: dict[str, Array] = {
        "y": dataset.y.astype(np.uint8),
        "subject": dataset.subject.astype(np.uint8),
        "split": dataset.split,
    }
    for modality, step in STEPS.items():
        arrays[modality] = _to_steps(dataset.x[modality], step)
        arrays[f"{modality}_step"] = np.float64(step)[...]
    return arrays


def _to_steps(x: Float32, step: float) -> Array:
    limits = np.iinfo(np.int16)
    return np.clip(np.round(x / step), limits.min, limits.max).astype(np.int16)


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the excerpt and says how large it is."""
    parser = argparse.ArgumentParser(description="Make the packaged excerpt of UCI-HAR.")
    parser.add_argument("src", type=Path, help="the official archive, or its folder")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    parser.add_argument("--per-subject", type=int, default=PER_SUBJECT, help="windows per person, at most")
    args = parser.parse_args(argv)
    full = uci_har.load(args.src)
    assert full.subject is not None
    excerpt = full.take(choose_rows(full.subject, args.per_subject))
    np.savez_compressed(args.out, **pack(excerpt))  # type: ignore[arg-type]  # numpy's stub: allow_pickle is a keyword
    sys.stdout.write(f"{args.out}: {len(excerpt.y)} windows, {args.out.stat().st_size / 1e6:.2f} MB\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""UCI-HAR: six activities of thirty people, seen by the accelerometer and gyroscope of a phone at the waist.

Source: Anguita, Ghio, Oneto, Parra, Reyes-Ortiz, "A Public Domain Dataset for Human Activity Recognition Using
Smartphones", ESANN 2013; https://archive.ics.uci.edu/dataset/240/human+activity+recognition+using+smartphones

Windows of 128 samples at 50 Hz. The official split is by person (21 train, 9 test). Official windows overlap by half;
a copy that holds only some of them is a set of segments, not a recording. Reads the official archive (also the outer
zip in which the site wraps it), the unpacked folder, a folder that holds either, or an excerpt of this package.

    acc     (3, 128) total acceleration, gravity included, g
    gyro    (3, 128) angular velocity, rad/s
    body    (3, 128) acceleration without gravity, g; only in the variant `uci_har:body`, not in the excerpt
"""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array, Dataset, Float32, Int64
from edge_sdk.datasets import variants
from edge_sdk.datasets.archive import Folder, places, read_npz
from edge_sdk.datasets.variants import VariantOptions

log = logging.getLogger(__name__)

WHERE = "https://archive.ics.uci.edu/dataset/240/human+activity+recognition+using+smartphones"
EXCERPT = Path(__file__).parent / "data" / "uci_har_excerpt.npz"
CLASSES = ("walking", "walking_upstairs", "walking_downstairs", "sitting", "standing", "laying")
SIGNALS = {
    "acc": "total_acc",
    "gyro": "body_gyro",
    "body": "body_acc",
}  # modality → start of the official file names
MODALITIES = {"phone": ("acc", "gyro"), "body": ("acc", "gyro", "body")}
RATE_HZ, LENGTH = 50.0, 128
WINDOWS = {"train": 7352, "test": 2947}  # of the official set


class Options(VariantOptions):
    """`uci_har:body` has the third modality."""

    form: Literal["phone", "body"] = "phone"


def load(data: Path | None = None, *, variant: str = "", seed: int = 0) -> Dataset:
    """Returns the user's copy of UCI-HAR, or the excerpt that travels with the package if `data` is None.

    Raises:
        DataError: a file is missing or malformed; names it, what was expected and where to get it.
    """
    modalities = MODALITIES[variants.read("uci_har", variant, Options).form]
    path = EXCERPT if data is None else data
    if path.suffix == ".npz":
        return _load_excerpt(path, modalities)
    root = _find_root(path)
    return _join([_read_side(root, side, modalities) for side in ("train", "test")])


def _find_root(path: Path) -> Folder:
    """Returns the folder that holds train/ and test/, in `path` itself, below it, or in an archive there."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected the archive of UCI-HAR, from {WHERE}")
    for folder in places(path):
        if any((folder / side / "Inertial Signals").exists() for side in ("train", "test")):
            return folder
    raise DataError(
        f"{path}: found no train/Inertial Signals; expected the archive of UCI-HAR or its folder, from {WHERE}"
    )


def _read_side(root: Folder, side: str, modalities: tuple[str, ...]) -> Dataset:
    """Returns the rows of one official folder, train or test."""
    folder = root / side
    y = _integers(folder / f"y_{side}.txt", high=len(CLASSES)) - 1
    subject = _integers(folder / f"subject_{side}.txt", high=10_000)
    if len(subject) != len(y):
        raise DataError(f"{folder}: y_{side}.txt has {len(y)} rows, subject_{side}.txt has {len(subject)}")
    if len(y) != WINDOWS[side]:
        log.warning("%s: %d windows; the official set has %d", folder, len(y), WINDOWS[side])
    x: dict[str, Float32] = {}
    for m in modalities:
        axes = [_signal(folder / "Inertial Signals" / f"{SIGNALS[m]}_{axis}_{side}.txt", len(y)) for axis in "xyz"]
        x[m] = np.stack(axes, axis=1)  # 3 × (n, 128) -> (n, 3, 128)
    return _dataset(x, y=y, subject=subject, split=np.full(len(y), side))


def _integers(path: Folder, *, high: int) -> Int64:
    values = _table(path)
    if values.shape[1] != 1:
        raise DataError(f"{path}: expected one number per row, found {values.shape[1]}")
    column = values[:, 0]
    good = (column >= 1) & (column <= high) & (column == np.floor(column))
    if not good.all():
        row = int(np.argmin(good))
        raise DataError(f"{path}: row {row} is {column[row]:g}; expected an integer from 1 to {high}")
    return column.astype(np.int64)


def _signal(path: Folder, rows: int) -> Float32:
    values = _table(path).astype(np.float32)
    if values.shape != (rows, LENGTH):
        found = f"{values.shape[0]} rows of {values.shape[1]} numbers"
        raise DataError(f"{path}: expected {rows} rows of {LENGTH} numbers, found {found}")
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise DataError(f"{path}: row {int(np.argmin(finite))} holds NaN or Inf; download the archive again")
    return values


def _table(path: Folder) -> Array:
    """Returns the numbers of a text file as (rows, columns) float64."""
    if not path.exists():
        raise DataError(f"{path}: missing; expected the complete archive of UCI-HAR, from {WHERE}")
    try:
        with path.open("r", encoding="ascii") as file:
            values: Array = np.loadtxt(file, dtype=np.float64, ndmin=2, comments=None)
    except (ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a table of numbers: {error}") from error
    if values.size == 0:
        raise DataError(f"{path}: empty; expected the complete archive of UCI-HAR, from {WHERE}")
    return values


def _load_excerpt(path: Path, modalities: tuple[str, ...]) -> Dataset:
    """Returns an excerpt as `data/make_excerpt.py` writes it: integers, each times its modality's step."""
    arrays = read_npz(path)
    needed = [n for m in modalities for n in (m, f"{m}_step")] + ["y", "subject", "split"]
    if missing := [name for name in needed if name not in arrays]:
        raise DataError(f"{path}: an excerpt without {missing[0]}; the full archive has it, from {WHERE}")
    n = len(arrays["y"])
    for m in modalities:
        if arrays[m].shape != (n, 3, LENGTH) or arrays[m].dtype != np.int16:
            found = f"{arrays[m].dtype} {arrays[m].shape}"
            raise DataError(f"{path}: {m}: expected int16 ({n}, 3, {LENGTH}), found {found}")
    x = {m: arrays[m].astype(np.float32) * np.float32(arrays[f"{m}_step"]) for m in modalities}
    y, subject = arrays["y"].astype(np.int64), arrays["subject"].astype(np.int64)
    return _dataset(x, y=y, subject=subject, split=arrays["split"].astype(np.str_))


def _dataset(x: dict[str, Float32], *, y: Int64, subject: Int64, split: Array) -> Dataset:
    return Dataset(
        name="uci_har",
        x=x,
        y=y,
        classes=CLASSES,
        has={m: np.ones(len(y), np.bool_) for m in x},
        rate_hz=dict.fromkeys(x, RATE_HZ),
        subject=subject,
        split=split,
    )


def _join(parts: list[Dataset]) -> Dataset:
    """Returns the rows of all parts as one data set."""
    x = {m: np.concatenate([p.x[m] for p in parts]) for m in parts[0].x}
    y = np.concatenate([p.y for p in parts])
    subject = np.concatenate([p.subject for p in parts if p.subject is not None])
    return _dataset(x, y=y, subject=subject, split=np.concatenate([p.split for p in parts if p.split is not None]))


__all__ = ["CLASSES", "EXCERPT", "load"]

"""A user's own data: one .npz file.

    x_<modality>        (n, channels, length), (n, features) or (n, channels, height, width), any real number type
    y                   (n,) integers or strings; the sorted different values are the classes
    subject             (n,) integers or strings, optional: who or what a row comes from
    split               (n,) 'train' or 'test', optional
    has_<modality>      (n,) bool, optional: False where the row lacks the modality (its values are then ignored)
    rate_hz_<modality>  one number, optional: sampling rate

Modalities keep the order of the file. Everything is checked before anything is used; pickled objects are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array, Dataset, Float32, Int64
from edge_sdk.core.spec import IDENTIFIER
from edge_sdk.datasets.archive import read_npz


def load(data: Path | None = None, *, variant: str = "", seed: int = 0) -> Dataset:
    """Returns the data set in the file `data`.

    Raises:
        DataError: names the file, the array and, where it is one, the row that is wrong.
    """
    if data is None or variant:
        raise DataError("npz needs the path of a file and has no variants: write FILE.npz as the data set's name")
    arrays = read_npz(data)
    try:
        return build(data.stem, arrays)
    except DataError as error:
        raise DataError(f"{data}: {error}") from error


def build(name: str, arrays: Mapping[str, Array]) -> Dataset:
    """Returns the data set made of these arrays, named as in the module docstring."""
    modalities = tuple(key.removeprefix("x_") for key in arrays if key.startswith("x_"))
    _check_names(modalities, arrays)
    y, classes = _classes(arrays["y"])
    has = {m: _presence(m, arrays, len(y)) for m in modalities}
    return Dataset(
        name=name,
        x={m: _values(f"x_{m}", arrays[f"x_{m}"], has[m]) for m in modalities},
        y=y,
        classes=classes,
        has=has,
        rate_hz={m: _rate(f"rate_hz_{m}", arrays[f"rate_hz_{m}"]) for m in modalities if f"rate_hz_{m}" in arrays},
        subject=_subjects(arrays["subject"], len(y)) if "subject" in arrays else None,
        split=_split(arrays["split"], len(y)) if "split" in arrays else None,
    )


def _check_names(modalities: tuple[str, ...], arrays: Mapping[str, Array]) -> None:
    if not modalities:
        raise DataError(f"expected an array x_<modality>, found {sorted(arrays) or 'no arrays'}")
    if "y" not in arrays:
        raise DataError(f"expected an array y with the class of every row, found {sorted(arrays)}")
    for modality in modalities:
        if not re.match(IDENTIFIER, modality):
            raise DataError(f"x_{modality}: a modality's name is 1 to 64 letters, digits, '_' or '-'")
    prefixes = ("x_", "has_", "rate_hz_")
    known = {"y", "subject", "split", *(p + m for p in prefixes for m in modalities)}
    if unknown := sorted(set(arrays) - known):
        raise DataError(f"unknown array {unknown[0]}; expected {', '.join(sorted(known))}")


def _classes(y: Array) -> tuple[Int64, tuple[str, ...]]:
    if y.ndim != 1 or len(y) == 0:
        raise DataError(f"y: expected one class per row, shape (n,), found shape {y.shape}")
    if y.dtype.kind not in "iuU":
        raise DataError(f"y: expected integers or strings, found {y.dtype}")
    values, numbers = np.unique(y, return_inverse=True)
    if len(values) < 2:
        raise DataError(f"y: expected at least two classes, found only {values[0]!s}")
    return numbers.astype(np.int64), tuple(str(v) for v in values)


def _presence(modality: str, arrays: Mapping[str, Array], n: int) -> NDArray[np.bool_]:
    name = f"has_{modality}"
    has = arrays.get(name, np.ones(n, np.bool_))
    if has.dtype != np.bool_ or has.shape != (n,):
        raise DataError(f"{name}: expected bool of shape ({n},), found {has.dtype} of shape {has.shape}")
    if not has.any():
        raise DataError(f"{name}: no row has the modality; leave x_{modality} out")
    return has


def _values(name: str, x: Array, has: NDArray[np.bool_]) -> Float32:
    if x.dtype.kind not in "fiub":
        raise DataError(f"{name}: expected real numbers, found {x.dtype}")
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise DataError(
            f"{name}: expected (n, features), (n, channels, length) or (n, channels, h, w), found shape {x.shape}"
        )
    if len(x) != len(has):
        raise DataError(f"{name}: expected {len(has)} rows as in y, found {len(x)}")
    with np.errstate(over="ignore"):  # too large for float32 becomes Inf, which is named below
        values = x.astype(np.float32)
    values[~has] = 0.0
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        kind = "NaN" if np.isnan(values[row]).any() else "Inf (or a number too large for float32)"
        raise DataError(f"{name}: row {row} holds {kind} ({int(bad.sum())} such rows); remove or repair them")
    return values


def _rate(name: str, rate: Array) -> float:
    if rate.size != 1 or rate.dtype.kind not in "fiu" or not (np.isfinite(rate).all() and rate.item() > 0):
        raise DataError(f"{name}: expected one positive number, found {rate!r}")
    return float(rate.item())


def _subjects(subject: Array, n: int) -> Int64:
    if subject.shape != (n,) or subject.dtype.kind not in "iuU":
        raise DataError(
            f"subject: expected integers or strings of shape ({n},), found {subject.dtype} of shape {subject.shape}"
        )
    if subject.dtype.kind == "U":
        return np.unique(subject, return_inverse=True)[1].astype(np.int64)
    return subject.astype(np.int64)


def _split(split: Array, n: int) -> NDArray[np.str_]:
    if split.shape != (n,) or split.dtype.kind != "U":
        raise DataError(f"split: expected strings of shape ({n},), found {split.dtype} of shape {split.shape}")
    known = np.isin(split, ("train", "test"))
    if not known.all():
        row = int(np.argmin(known))
        raise DataError(f"split: row {row} says {str(split[row])!r}; expected 'train' or 'test'")
    for side in ("train", "test"):
        if not (split == side).any():
            raise DataError(f"split: no row says {side!r}; leave split out to have the rows divided")
    return split.astype(np.str_)


__all__ = ["build", "load"]

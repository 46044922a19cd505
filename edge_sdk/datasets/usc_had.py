"""USC-HAD: twelve activities of fourteen people, seen by an inertial sensor at the hip.

Source: Zhang, Sawchuk, "USC-HAD: A Daily Activity Dataset for Ubiquitous Activity Recognition Using Wearable Sensors",
UbiComp 2012 workshops; https://sipi.usc.edu/had/

840 recordings at 100 Hz (twelve activities, fourteen people, five trials), cut into windows of `length` samples, a new
one every `hop`. There is no official split: by default every fifth person is test; `split=random` draws a fifth of the
windows, as MBA's table is read, but neighbouring windows overlap, so that test windows are half known from training.
Activity, trial and person are taken from the file's path: the fields inside differ between files.

    acc     (3, length) acceleration, gravity included, m/s²
    gyro    (3, length) angular velocity, rad/s

Reads the official archive or its folder: `USC-HAD/Subject{1..14}/a{1..12}t{1..5}.mat`, variable `sensor_readings`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Dataset, Float32
from edge_sdk.datasets import variants
from edge_sdk.datasets.archive import INERTIAL_UNITS, Folder, check_complete, check_finite, places
from edge_sdk.datasets.matlab import read_mat
from edge_sdk.datasets.rows import random_split
from edge_sdk.datasets.variants import VariantOptions

WHERE = "https://sipi.usc.edu/had/ (USC-HAD.zip)"
CLASSES = (
    "walking_forward", "walking_left", "walking_right", "walking_upstairs", "walking_downstairs", "running_forward",
    "jumping_up", "sitting", "standing", "sleeping", "elevator_up", "elevator_down",
)  # fmt: skip
PEOPLE, TRIALS, RATE_HZ = 14, 5, 100.0
TEST_SHARE = 0.2

Key = tuple[int, int, int]  # person, activity, trial; from 1


class Options(VariantOptions):
    """How recordings are cut, and what is test."""

    length: int = Field(default=128, ge=8)  # samples of a window
    hop: int | None = Field(default=None, ge=1)  # samples between the starts of two; None: half a window
    split: Literal["person", "random"] = "person"
    partial: bool = False  # take a copy from which recordings are missing


def load(data: Path | None = None, *, variant: str = "", seed: int = 0) -> Dataset:
    """Returns the windows in the order person, activity, trial, time.

    Raises:
        DataError: a recording is missing or malformed; names it, the counts and where to get it.
    """
    options = variants.read("usc_had", variant, Options)
    if data is None or not data.exists():
        raise DataError(f"usc_had: {data or 'no --data'}: expected the archive of USC-HAD or its folder, from {WHERE}")
    files = _files(data)
    if not options.partial:
        check_complete(str(data), map(_name, files), map(_name, _official()), where=WHERE)
    windows = {key: _windows(files[key], options) for key in sorted(files)}
    keys = [key for key, found in windows.items() for _ in range(len(found))]
    if not keys:
        raise DataError(
            f"{data}: no recording is as long as a window of {options.length} samples; use a smaller length"
        )
    x = np.concatenate(list(windows.values()))  # (n, 6, length)
    rng = np.random.default_rng(seed)
    return Dataset(
        name="usc_had",
        x={"acc": x[:, :3], "gyro": x[:, 3:]},
        y=np.array([key[1] - 1 for key in keys], np.int64),
        classes=CLASSES,
        has={m: np.ones(len(keys), np.bool_) for m in ("acc", "gyro")},
        rate_hz=dict.fromkeys(("acc", "gyro"), RATE_HZ),
        subject=np.array([key[0] for key in keys], np.int64),
        split=random_split(len(keys), round(TEST_SHARE * len(keys)), rng) if options.split == "random" else None,
    )


def _official() -> list[Key]:
    people, activities, trials = range(1, PEOPLE + 1), range(1, len(CLASSES) + 1), range(1, TRIALS + 1)
    return [(p, a, t) for p in people for a in activities for t in trials]


def _name(key: Key) -> str:
    return "Subject{}/a{}t{}.mat".format(*key)


def _files(data: Path) -> dict[Key, Folder]:
    pattern = re.compile(r"a(\d+)t(\d+)\.mat")
    for folder in places(data):
        found: dict[Key, Folder] = {}
        for person in range(1, PEOPLE + 1):
            home = folder / f"Subject{person}"
            for entry in home.iterdir() if home.exists() else ():
                if match := pattern.fullmatch(entry.name):
                    found[person, int(match[1]), int(match[2])] = entry
        if strange := sorted(set(found) - set(_official())):
            raise DataError(f"{folder}: {_name(strange[0])} is no recording of USC-HAD")
        if found:
            return found
    raise DataError(f"{data}: found no {_name((1, 1, 1))}; expected {len(_official())} recordings, from {WHERE}")


def _windows(path: Folder, options: Options) -> Float32:
    """Returns the windows of one recording, float32 (n, 6, length), in SI units; none if it is shorter than one."""
    values = read_mat(path, "sensor_readings")
    if values.ndim != 2 or values.shape[1] != 6:
        raise DataError(f"{path}: expected sensor_readings of shape T × 6, found {values.shape}")
    check_finite(values, f"{path}: sensor_readings")
    if len(values) < options.length:
        return np.zeros((0, 6, options.length), np.float32)
    cut = sliding_window_view((values * INERTIAL_UNITS).astype(np.float32), options.length, axis=0)
    return np.ascontiguousarray(cut[:: options.hop or max(1, options.length // 2)])  # (n, 6, length)


__all__ = ["CLASSES", "Options", "load"]

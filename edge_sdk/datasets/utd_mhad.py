"""UTD-MHAD: 27 actions of eight people, seen by a wearable inertial sensor, a skeleton tracker and a depth camera.

Source: Chen, Jafari, Kehtarnavaz, "UTD-MHAD: A Multimodal Dataset for Human Action Recognition Utilizing a Depth Camera
and a Wearable Inertial Sensor", ICIP 2015; https://personal.utdallas.edu/~kehtar/UTD-MHAD.html

861 recordings of whole actions, each of another length: `fit=resample` (default) stretches every one linearly to
`length` samples, so that all of the action is seen but its speed is not; `fit=crop` keeps the sampling rate and cuts
the middle out, or holds the ends. People 1, 3, 5, 7 train and 2, 4, 6, 8 test, the protocol of the paper. The sensor
sat on the right wrist for actions 1 to 21 and on the right thigh for 22 to 27.

    utd_mhad (or utd_mhad:inertial)
        acc        (3, length) acceleration, gravity included, m/s²
        gyro       (3, length) angular velocity, rad/s
    utd_mhad:three
        inertial   (6, length) acc and gyro
        skeleton   (57, length // 2) x, y, z of one joint after another, relative to the hip centre (left out), m
        depth      (16, 60, 80) distance in 16 evenly spaced frames, every fourth pixel, m; 0 where there is nobody

Reads the official Inertial.zip, Skeleton.zip and Depth.zip, or their unpacked folders, in the folder `data`. Instead of
Depth.zip there may be a Depth_lowres.npz with `depth_mm` uint16 (n, 16, 60, 80) and `action_subject_trial` (n, 3).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array, Dataset, Float32
from edge_sdk.datasets import variants
from edge_sdk.datasets.archive import INERTIAL_UNITS, Folder, check_complete, check_finite, places, read_npz
from edge_sdk.datasets.matlab import read_mat
from edge_sdk.datasets.variants import VariantOptions
from edge_sdk.features import resample_series

WHERE = "https://personal.utdallas.edu/~kehtar/UTD-MHAD.html"
CLASSES = (
    "swipe_left", "swipe_right", "wave", "clap", "throw", "arm_cross", "basketball_shoot", "draw_x",
    "draw_circle_clockwise", "draw_circle_counter_clockwise", "draw_triangle", "bowling", "boxing", "baseball_swing",
    "tennis_swing", "arm_curl", "tennis_serve", "push", "knock", "catch", "pick_up_and_throw", "jog", "walk",
    "sit_to_stand", "stand_to_sit", "lunge", "squat",
)  # fmt: skip
PEOPLE, TRIALS, RATE_HZ = 8, 4, 50.0
CORRUPT = {(8, 1, 4), (23, 6, 4), (27, 8, 4)}  # removed by the authors
HIP_CENTRE = 3  # row of the skeleton
DEPTH_SHAPE, STRIDE = (16, 60, 80), 4  # frames, height, width; pixels of the original per pixel
LOW_RES = "Depth_lowres.npz"

Key = tuple[int, int, int]  # action, subject, trial; from 1


class Options(VariantOptions):
    """What to read, and how recordings of different lengths become equally long."""

    form: Literal["inertial", "three"] = "inertial"
    length: int = Field(default=128, ge=16)  # samples of an inertial sequence; the recordings have 107 to 326
    fit: Literal["resample", "crop"] = "resample"
    partial: bool = False  # take a copy from which recordings are missing


def load(data: Path | None = None, *, variant: str = "", seed: int = 0) -> Dataset:
    """Returns the recordings in the folder `data`, in the order action, subject, trial.

    Raises:
        DataError: a file is missing or malformed; names it, what was expected and where to get it.
    """
    options = variants.read("utd_mhad", variant, Options)
    if data is None:
        raise DataError(f"utd_mhad: give the folder with Inertial.zip as --data; download it from {WHERE}")
    if not data.is_dir():
        raise DataError(f"{data}: no such folder; expected the one with Inertial.zip of UTD-MHAD, from {WHERE}")
    parts = {m: READERS[m](data, options) for m in FORMS[options.form]}
    if not options.partial:
        for m, found in parts.items():
            check_complete(f"{data}: {m}", map(_name, found), map(_name, _official()), where=WHERE)
    keys = sorted(set().union(*parts.values()))
    x = {m: _rows(keys, found) for m, found in parts.items()}
    has = {m: np.array([key in found for key in keys]) for m, found in parts.items()}
    if options.form == "inertial":
        x = {"acc": x["inertial"][:, :3], "gyro": x["inertial"][:, 3:]}
        has = dict.fromkeys(x, has["inertial"])
    subject = np.array([key[1] for key in keys], np.int64)
    timed = [m for m in x if m in ("acc", "gyro", "inertial")] if options.fit == "crop" else []
    return Dataset(
        name="utd_mhad",
        x=x,
        y=np.array([key[0] - 1 for key in keys], np.int64),
        classes=CLASSES,
        has=has,
        rate_hz=dict.fromkeys(timed, RATE_HZ),
        subject=subject,
        split=np.where(subject % 2 == 1, "train", "test"),
    )


def _official() -> list[Key]:
    actions, people, trials = range(1, len(CLASSES) + 1), range(1, PEOPLE + 1), range(1, TRIALS + 1)
    return [(a, s, t) for a in actions for s in people for t in trials if (a, s, t) not in CORRUPT]


def _name(key: Key) -> str:
    return "a{}_s{}_t{}".format(*key)


def _rows(keys: list[Key], found: Mapping[Key, Float32]) -> Float32:
    """Returns the arrays in the order of the keys, zeros where there is none."""
    nothing = np.zeros_like(next(iter(found.values())))
    return np.stack([found.get(key, nothing) for key in keys])


def _files(data: Path, kind: str) -> dict[Key, Folder]:
    """Returns the recordings of one kind ("inertial", "skeleton", "depth") that lie in `data`."""
    pattern = re.compile(rf"a(\d+)_s(\d+)_t(\d+)_{kind}\.mat")
    official = set(_official())
    for folder in places(data):
        named = [(match, entry) for entry in folder.iterdir() if (match := pattern.fullmatch(entry.name))]
        if not named:
            continue
        found = {(int(m[1]), int(m[2]), int(m[3])): entry for m, entry in named}
        if strange := sorted(set(found) - official):
            raise DataError(f"{folder}: {_name(strange[0])}_{kind}.mat is no recording of UTD-MHAD")
        return found
    raise DataError(
        f"{data}: found no a*_s*_t*_{kind}.mat; expected {kind.capitalize()}.zip or its folder, with {len(official)} "
        f"recordings, from {WHERE}"
    )


def _variable(path: Folder, name: str, shape: tuple[int | None, ...]) -> Array:
    """Returns a variable of a recording; None in `shape` is the free number of samples."""
    values = read_mat(path, name)
    fits = values.ndim == len(shape) and all(want in (None, n) for want, n in zip(shape, values.shape, strict=True))
    if not fits or values.size == 0:
        wanted = " × ".join("T" if n is None else str(n) for n in shape)
        raise DataError(f"{path}: expected {name} of shape {wanted}, found {values.shape}")
    check_finite(values, f"{path}: {name}")
    return values


def _inertial(data: Path, options: Options) -> dict[Key, Float32]:
    fit = FITS[options.fit]
    files = _files(data, "inertial")
    return {k: fit(_variable(path, "d_iner", (None, 6)) * INERTIAL_UNITS, options.length) for k, path in files.items()}


def _skeleton(data: Path, options: Options) -> dict[Key, Float32]:
    found = {}
    for key, path in _files(data, "skeleton").items():
        joints = np.moveaxis(_variable(path, "d_skel", (20, 3, None)), 2, 0)  # (20, 3, T) -> (T, 20, 3)
        others = np.delete(joints - joints[:, HIP_CENTRE : HIP_CENTRE + 1], HIP_CENTRE, axis=1)
        found[key] = FITS[options.fit](others.reshape(len(joints), -1), options.length // 2)
    return found


def _depth(data: Path, options: Options) -> dict[Key, Float32]:
    if (data / LOW_RES).is_file():
        return _low_res(data / LOW_RES)
    found = {}
    for key, path in _files(data, "depth").items():
        frames = _variable(path, "d_depth", (DEPTH_SHAPE[1] * STRIDE, DEPTH_SHAPE[2] * STRIDE, None))
        chosen = np.round(np.linspace(0, frames.shape[2] - 1, DEPTH_SHAPE[0])).astype(int)
        small = frames[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE, :][:, :, chosen]
        found[key] = _metres(np.moveaxis(small, 2, 0))
    return found


def _metres(depth_mm: Array) -> Float32:
    metres: Float32 = depth_mm.astype(np.float32) / np.float32(1000)
    return metres


def _low_res(path: Path) -> dict[Key, Float32]:
    arrays = read_npz(path)
    if missing := {"depth_mm", "action_subject_trial"} - set(arrays):
        raise DataError(f"{path}: expected an array {min(missing)}, found {sorted(arrays)}")
    depth, keys = arrays["depth_mm"], arrays["action_subject_trial"]
    if depth.shape != (len(keys), *DEPTH_SHAPE) or keys.shape != (len(keys), 3) or keys.dtype.kind not in "iu":
        raise DataError(
            f"{path}: expected depth_mm (n, {', '.join(map(str, DEPTH_SHAPE))}) and integers action_subject_trial "
            f"(n, 3), found {depth.shape} and {keys.dtype} {keys.shape}"
        )
    return {(int(a), int(s), int(t)): _metres(d) for (a, s, t), d in zip(keys, depth, strict=True)}


def _stretch(values: Array, length: int) -> Float32:
    """(T, channels) at any rate → (channels, length): first sample to first, last to last."""
    step_ns = 1_000_000
    times = np.arange(len(values), dtype=np.int64) * step_ns
    span_s = max(1, len(values) - 1) * step_ns / 1e9
    return resample_series(times, values, rate_hz=(length - 1) / span_s, start_ns=0, length=length)


def _crop(values: Array, length: int) -> Float32:
    """(T, channels) → (channels, length): the middle, or the whole with its ends held."""
    first = (len(values) - length) // 2  # negative: so much is held before the first sample
    rows = np.clip(np.arange(first, first + length), 0, len(values) - 1)
    return np.ascontiguousarray(values[rows].T, np.float32)


FITS: Mapping[str, Callable[[Array, int], Float32]] = {"resample": _stretch, "crop": _crop}
FORMS = {"inertial": ("inertial",), "three": ("inertial", "skeleton", "depth")}
READERS: Mapping[str, Callable[[Path, Options], dict[Key, Float32]]] = {
    "inertial": _inertial, "skeleton": _skeleton, "depth": _depth,
}  # fmt: skip

__all__ = ["CLASSES", "Options", "load"]

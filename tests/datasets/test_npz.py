"""The user's own .npz: what is taken, and what every mistake is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array, Dataset
from edge_sdk.datasets import select


def arrays() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "x_imu": rng.standard_normal((6, 3, 20)),
        "x_env": rng.integers(0, 9, (6, 4)),
        "x_cam": rng.integers(0, 255, (6, 3, 8, 8)).astype(np.uint8),
        "y": np.array(["run", "sit", "run", "lie", "sit", "run"]),
    }


def load(folder: Path, content: dict[str, Array]) -> Dataset:
    path = folder / "mine.npz"
    np.savez(path, **content)  # type: ignore[arg-type]
    return select(str(path))


def test_takes_every_kind_of_modality(tmp_path: Path) -> None:
    data = load(tmp_path, arrays())
    assert data.name == "mine"
    assert data.modalities == ("imu", "env", "cam")
    assert {m: a.shape[1:] for m, a in data.x.items()} == {"imu": (3, 20), "env": (4,), "cam": (3, 8, 8)}
    assert {a.dtype for a in data.x.values()} == {np.dtype(np.float32)}
    assert data.classes == ("lie", "run", "sit")
    assert data.y.tolist() == [1, 2, 1, 0, 2, 1]
    assert all(has.all() for has in data.has.values())
    assert (data.subject, data.split, dict(data.rate_hz)) == (None, None, {})


def test_takes_what_is_optional(tmp_path: Path) -> None:
    has = np.array([True, False, True, True, True, True])
    content = arrays() | {
        "y": np.array([7, 3, 7, 3, 7, 3], np.uint8),
        "subject": np.array(["b", "a", "b", "a", "c", "c"]),
        "split": np.array(["train", "test"] * 3),
        "has_imu": has,
        "rate_hz_imu": np.array(100),
    }
    content["x_imu"][1] = np.nan  # the row lacks the modality: whatever stands there is not read
    data = load(tmp_path, content)
    assert data.classes == ("3", "7")
    assert data.y.tolist() == [1, 0, 1, 0, 1, 0]
    assert data.subject is not None
    assert data.subject.tolist() == [1, 0, 1, 0, 2, 2]
    assert data.split is not None
    assert data.split.tolist() == ["train", "test"] * 3
    assert data.has["imu"].tolist() == has.tolist()
    assert not data.x["imu"][1].any()
    assert data.rate_hz == {"imu": 100.0}
    assert data.take(np.array([4, 0])).y.tolist() == [1, 1]


def bad_value(row: int, value: float) -> Array:
    x: Array = arrays()["x_imu"]
    x[row, 1, 2] = value
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_imu": bad_value(4, np.nan)}, r"mine\.npz: x_imu: row 4 holds NaN"),
        ({"x_imu": bad_value(0, -np.inf)}, "x_imu: row 0 holds Inf"),
        ({"x_imu": bad_value(5, 1e300)}, "x_imu: row 5 holds Inf .or a number too large"),
        ({"x_imu": np.zeros((5, 3, 20))}, "x_imu: expected 6 rows as in y, found 5"),
        ({"x_imu": np.zeros(6)}, r"x_imu: expected .* found shape \(6,\)"),
        ({"x_imu": np.zeros((6, 0))}, r"found shape \(6, 0\)"),
        ({"x_imu": np.zeros((6, 3), complex)}, "x_imu: expected real numbers, found complex128"),
        ({"x_imu": np.full((6, 3), "a")}, "x_imu: expected real numbers"),
        ({"x_bad name": np.zeros((6, 3))}, "x_bad name: a modality's name"),
        ({"x_": np.zeros((6, 3))}, "a modality's name"),
        ({"y": np.zeros((6, 1), int)}, r"y: expected one class per row, shape \(n,\), found shape \(6, 1\)"),
        ({"y": np.arange(6.0)}, "y: expected integers or strings, found float64"),
        ({"y": np.zeros(6, int)}, "y: expected at least two classes, found only 0"),
        ({"subject": np.zeros(5, int)}, "subject: expected integers or strings"),
        ({"subject": np.zeros(6)}, "subject: expected integers or strings"),
        ({"split": np.array(["train"] * 5 + ["val"])}, "split: row 5 says 'val'"),
        ({"split": np.array(["train"] * 6)}, "split: no row says 'test'"),
        ({"split": np.zeros(6)}, "split: expected strings"),
        ({"has_imu": np.ones(6)}, "has_imu: expected bool"),
        ({"has_imu": np.zeros(6, bool)}, "has_imu: no row has the modality"),
        ({"has_mic": np.ones(6, bool)}, "unknown array has_mic"),
        ({"rate_hz_imu": np.array(0.0)}, "rate_hz_imu: expected one positive number"),
        ({"rate_hz_imu": np.array([1.0, 2.0])}, "rate_hz_imu: expected one positive number"),
        ({"rate_hz_imu": np.array("fast")}, "rate_hz_imu: expected one positive number"),
        ({"labels": np.zeros(6)}, "unknown array labels"),
        ({"y": np.array(["a", 1, None, "b", "c", "d"], object)}, "array y cannot be read: Python objects are not read"),
    ],
)
def test_every_mistake_names_array_and_row(tmp_path: Path, change: dict[str, Array], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, arrays() | change)


def test_arrays_that_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected an array y"):
        load(tmp_path, {"x_imu": np.zeros((6, 3))})
    with pytest.raises(DataError, match="expected an array x_<modality>"):
        load(tmp_path, {"y": np.arange(6)})


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        select(str(tmp_path / "none.npz"))
    path = tmp_path / "wrong.npz"
    path.write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        select(str(path))
    np.savez_compressed(path, **arrays())  # type: ignore[arg-type]
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + b"\0" * 400 + whole[600:])
    with pytest.raises(DataError, match="cannot be read"):
        select(str(path))
    with pytest.raises(DataError, match="needs the path of a file"):
        select("npz")
    with pytest.raises(DataError, match="leave out the data folder"):
        select("mine.npz", tmp_path)

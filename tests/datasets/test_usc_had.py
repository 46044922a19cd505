"""USC-HAD: the official tree, windows, units, splits, and what broken copies say."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array
from edge_sdk.datasets import select

RECORDINGS = {(1, 1, 1): 300, (1, 12, 5): 128, (2, 1, 1): 127, (14, 3, 2): 200}  # person, activity, trial → samples


def readings(length: int) -> Array:
    """(T, 6): the sample's number in g as x, 1 g in z, 180 deg/s about y."""
    values = np.zeros((length, 6))
    values[:, 0] = np.arange(length)
    values[:, 2] = 1.0
    values[:, 4] = 180.0
    return values


def write(root: Path, key: tuple[int, int, int], values: Array) -> Path:
    """Writes a recording with the official fields, which are strings."""
    person, activity, trial = key
    path = root / f"Subject{person}" / f"a{activity}t{trial}.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"title": "USC Human Motion Database", "version": "1.0", "subject": str(person), "activity": "walking"}
    savemat(path, {**fields, "activity_number": str(activity), "trial": str(trial), "sensor_readings": values})
    return path


@pytest.fixture
def official(tmp_path: Path) -> Path:
    root = tmp_path / "USC-HAD"
    for key, length in RECORDINGS.items():
        write(root, key, readings(length))
    (root / "Readme.txt").write_text("USC-HAD")
    return root


def test_windows_in_si_units_by_person_and_activity(official: Path) -> None:
    data = select("usc_had:partial=true", official)
    assert data.x["acc"].shape == data.x["gyro"].shape == (6, 3, 128)  # 3 + 1 + 0 + 2
    assert {a.dtype for a in data.x.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(data.x["acc"][:, 0, 0] / 9.80665, [0, 64, 128, 0, 0, 64], rtol=1e-6)
    np.testing.assert_allclose(data.x["acc"][:, 2], 9.80665, rtol=1e-6)
    np.testing.assert_allclose(data.x["gyro"][:, 1], np.pi, rtol=1e-6)
    assert data.y.tolist() == [0, 0, 0, 11, 2, 2]
    assert (data.classes[0], data.classes[11], len(data.classes)) == ("walking_forward", "elevator_down", 12)
    assert data.subject is not None
    assert data.subject.tolist() == [1, 1, 1, 1, 14, 14]
    assert data.rate_hz == {"acc": 100.0, "gyro": 100.0}
    assert data.split is None


def test_length_and_hop(official: Path) -> None:
    data = select("usc_had:length=100,hop=100,partial=true", official)
    assert data.x["acc"].shape == (7, 3, 100)  # 3 + 1 + 1 + 2
    with pytest.raises(DataError, match="no recording is as long as a window of 500 samples"):
        select("usc_had:length=500,partial=true", official)


def test_random_split_is_a_fifth_and_follows_the_seed(official: Path) -> None:
    text = "usc_had:length=16,split=random,partial=true"
    one, two, other = (select(text, official, seed=seed).split for seed in (1, 1, 2))
    assert one is not None
    assert two is not None
    assert other is not None
    assert (one == "test").mean() == pytest.approx(0.2, abs=0.01)
    assert one.tolist() == two.tolist()
    assert one.tolist() != other.tolist()


def test_reads_the_archive_and_the_folder_above(official: Path, tmp_path: Path) -> None:
    archive = tmp_path / "copy" / "USC-HAD.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(official.rglob("*.mat")):
            file.write(path, path.relative_to(tmp_path))
    plain = select("usc_had:partial=true", official)
    for place in (archive, archive.parent, tmp_path):
        np.testing.assert_array_equal(select("usc_had:partial=true", place).x["acc"], plain.x["acc"])


def test_the_complete_tree_is_taken_without_a_word(tmp_path: Path) -> None:
    one = write(tmp_path, (1, 1, 1), readings(128)).read_bytes()
    for person in range(1, 15):
        (tmp_path / f"Subject{person}").mkdir(exist_ok=True)
        for activity in range(1, 13):
            for trial in range(1, 6):
                (tmp_path / f"Subject{person}" / f"a{activity}t{trial}.mat").write_bytes(one)
    data = select("usc_had", tmp_path)
    assert np.bincount(data.y).tolist() == [70] * 12
    (tmp_path / "Subject9" / "a4t3.mat").unlink()
    with pytest.raises(DataError, match=r"Subject9/a4t3\.mat is missing \(expected 840 files, found 839\)"):
        select("usc_had", tmp_path)


def test_what_is_missing_or_broken_is_named(official: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no --data.*sipi\.usc\.edu/had"):
        select("usc_had")
    with pytest.raises(DataError, match=r"nowhere: expected the archive of USC-HAD.*sipi\.usc\.edu"):
        select("usc_had", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"found no Subject1/a1t1\.mat; expected 840 recordings"):
        select("usc_had", tmp_path / "empty")
    values = readings(200)
    values[150, 5] = np.inf
    path = write(official, (14, 3, 2), values)
    with pytest.raises(DataError, match=r"a3t2\.mat: sensor_readings: row 150 holds NaN or Inf"):
        select("usc_had:partial=true", official)
    write(official, (14, 3, 2), values[:, :3])
    with pytest.raises(DataError, match=r"expected sensor_readings of shape T × 6, found \(200, 3\)"):
        select("usc_had:partial=true", official)
    path.rename(path.with_name("a13t1.mat"))
    with pytest.raises(DataError, match=r"Subject14/a13t1\.mat is no recording of USC-HAD"):
        select("usc_had:partial=true", official)

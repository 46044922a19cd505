"""UTD-MHAD: the official files zipped and unpacked, units, lengths, presence, and what broken copies say."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array
from edge_sdk.datasets import select
from tests.helpers.public_data import whole_copy

RECORDINGS = ("a1_s1_t1", "a1_s2_t1", "a27_s3_t2", "a27_s4_t4")
LENGTHS = (107, 130, 200, 326)
HIP_CENTRE = 3


def inertial(length: int) -> Array:
    """(T, 6): acceleration ramps from 0 to 1 g in x and is 1 g in z; 90 deg/s about z."""
    values = np.zeros((length, 6))
    values[:, 0] = np.linspace(0, 1, length)
    values[:, 2] = 1.0
    values[:, 5] = 90.0
    return values


def skeleton(length: int) -> Array:
    """(20, 3, T): joint j stands j / 10 m above the camera's axis, 2 m away; all drift sideways together."""
    values = np.zeros((20, 3, length))
    values[:, 0] = np.linspace(0, 1, length)
    values[:, 1] = np.arange(20)[:, None] / 10
    values[:, 2] = 2.0
    return values


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """The unpacked folders Inertial, Skeleton and Depth with four recordings."""
    root = tmp_path / "UTD-MHAD"
    for name, length in zip(RECORDINGS, LENGTHS, strict=True):
        frames = length * 3 // 5
        save(root / "Inertial" / f"{name}_inertial.mat", d_iner=inertial(length))
        save(root / "Skeleton" / f"{name}_skeleton.mat", d_skel=skeleton(frames))
    depth = np.zeros((240, 320, 20), np.uint16)
    depth[2::4, 2::4] = np.arange(20) * 100  # what the loader keeps; mm
    save(root / "Depth" / f"{RECORDINGS[0]}_depth.mat", d_depth=depth)
    (root / "Skeleton" / "Skeleton_joint_order.txt").write_text("1. head;")
    return root


def save(path: Path, **content: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content)


def test_inertial_in_si_units_by_action_and_person(official: Path) -> None:
    data = select("utd_mhad:partial=true", official)
    assert data.modalities == ("acc", "gyro")
    assert data.x["acc"].shape == data.x["gyro"].shape == (4, 3, 128)
    assert {a.dtype for a in data.x.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(data.x["acc"][:, 2], 9.80665, rtol=1e-6)
    np.testing.assert_allclose(data.x["gyro"][:, 2], np.pi / 2, rtol=1e-6)
    assert data.y.tolist() == [0, 0, 26, 26]
    assert (data.classes[0], data.classes[26], len(data.classes)) == ("swipe_left", "squat", 27)
    assert data.subject is not None
    assert data.subject.tolist() == [1, 2, 3, 4]
    assert data.split is not None
    assert data.split.tolist() == ["train", "test", "train", "test"]
    assert data.rate_hz == {}  # stretched: no recording has its own rate any more


def test_resampling_keeps_both_ends_and_cropping_the_middle(official: Path) -> None:
    stretched = select("utd_mhad:length=64,partial=true", official).x["acc"][:, 0] / np.float32(9.80665)
    np.testing.assert_allclose(stretched, np.tile(np.linspace(0, 1, 64), (4, 1)), atol=1e-6)
    data = select("utd_mhad:inertial,length=200,fit=crop,partial=true", official)
    cropped = data.x["acc"][:, 0] / np.float32(9.80665)
    assert data.rate_hz == {"acc": 50.0, "gyro": 50.0}
    np.testing.assert_allclose(cropped[2], np.linspace(0, 1, 200), atol=1e-6)
    np.testing.assert_allclose(cropped[3], np.linspace(0, 1, 326)[63:263], atol=1e-6)
    np.testing.assert_allclose(cropped[0, 47:154], np.linspace(0, 1, 107), atol=1e-6)
    assert not cropped[0, :47].any()
    assert (cropped[0, 154:] == 1).all()


def test_three_modalities_of_which_some_recordings_lack_one(official: Path) -> None:
    data = select("utd_mhad:three,partial=true", official)
    shapes = {m: a.shape for m, a in data.x.items()}
    assert shapes == {"inertial": (4, 6, 128), "skeleton": (4, 57, 64), "depth": (4, 16, 60, 80)}
    joints = data.x["skeleton"].reshape(4, 19, 3, 64)
    assert not joints[:, :, (0, 2)].any()  # relative to the hip centre nothing drifts
    heights = np.delete(np.arange(20) - HIP_CENTRE, HIP_CENTRE) / 10
    np.testing.assert_allclose(joints[:, :, 1], np.broadcast_to(heights[None, :, None], (4, 19, 64)), atol=1e-6)
    assert data.has["depth"].tolist() == [True, False, False, False]
    frames = np.round(np.linspace(0, 19, 16)) / 10  # m
    np.testing.assert_allclose(data.x["depth"][0, :, 30, 40], frames, rtol=1e-6)
    assert not data.x["depth"][1:].any()


def test_reads_the_archives_as_downloaded(official: Path, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    for kind in ("Inertial", "Skeleton", "Depth"):
        with zipfile.ZipFile(folder / f"{kind}.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted((official / kind).iterdir()):
                file.write(path, f"{kind}/{path.name}")
    zipped, unpacked = (select("utd_mhad:three,partial=true", f) for f in (folder, official))
    for m in unpacked.modalities:
        np.testing.assert_array_equal(zipped.x[m], unpacked.x[m])


def test_ten_lines_of_the_documents_make_a_set_of_ones_own_from_it(official: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    script, zipped, made = tmp_path / "ten_lines.py", tmp_path / "Inertial.zip", tmp_path / "mine.npz"
    script.write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    with zipfile.ZipFile(zipped, "w") as file:
        for path in sorted((official / "Inertial").iterdir()):
            file.write(path, f"Inertial/{path.name}")
    subprocess.run([sys.executable, script, zipped, made], check=True)
    data = select(str(made))
    assert {m: data.x[m].shape for m in data.modalities} == {"acc": (4, 3, 107), "gyro": (4, 3, 107)}
    assert data.classes == ("1", "27")
    assert data.split.tolist() == ["train", "test", "train", "test"]
    assert data.subject.tolist() == [1, 2, 3, 4]


def test_takes_reduced_depth(official: Path) -> None:
    shutil.rmtree(official / "Depth")
    keys = np.array([[27, 4, 4], [1, 1, 1]], np.int16)
    depth = np.full((2, 16, 60, 80), [[[[2500]]], [[[1500]]]], np.uint16)
    np.savez(official / "Depth_lowres.npz", depth_mm=depth, action_subject_trial=keys)
    data = select("utd_mhad:three,partial=true", official)
    assert data.has["depth"].tolist() == [True, False, False, True]
    assert (data.x["depth"][0] == 1.5).all()
    assert (data.x["depth"][3] == 2.5).all()
    np.savez(official / "Depth_lowres.npz", depth_mm=depth[:, :8], action_subject_trial=keys)
    with pytest.raises(DataError, match=r"Depth_lowres\.npz: expected depth_mm \(n, 16, 60, 80\)"):
        select("utd_mhad:three,partial=true", official)
    np.savez(official / "Depth_lowres.npz", depth_mm=depth)
    with pytest.raises(DataError, match="expected an array action_subject_trial"):
        select("utd_mhad:three,partial=true", official)


def test_what_is_missing_is_named_with_its_source(official: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data.*personal\.utdallas\.edu"):
        select("utd_mhad")
    with pytest.raises(DataError, match=r"nowhere: no such folder.*personal\.utdallas\.edu"):
        select("utd_mhad", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"inertial: a10_s1_t1 is missing \(expected 861 files, found 4\).*utdallas"):
        select("utd_mhad", official)
    shutil.rmtree(official / "Inertial")
    with pytest.raises(DataError, match=r"found no a\*_s\*_t\*_inertial\.mat; expected Inertial\.zip .*861"):
        select("utd_mhad:partial=true", official)


def test_broken_files_are_named(official: Path) -> None:
    path = official / "Inertial" / "a1_s2_t1_inertial.mat"
    values = inertial(130)
    values[17, 2] = np.nan
    for content, message in (
        ({"d_iner": values}, r"a1_s2_t1_inertial\.mat: d_iner: row 17 holds NaN"),
        ({"d_iner": values[:, :5]}, r"expected d_iner of shape T × 6, found \(130, 5\)"),
        ({"d_iner": np.array(["no numbers"])}, "d_iner: expected an array of real numbers"),
        ({"other": values}, "d_iner, found no such variable"),
    ):
        save(path, **content)
        with pytest.raises(DataError, match=message):
            select("utd_mhad:partial=true", official)
    path.write_bytes(b"not a MATLAB file at all" * 9)
    with pytest.raises(DataError, match=r"a1_s2_t1_inertial\.mat: not a MATLAB file of level 5"):
        select("utd_mhad:partial=true", official)
    path.unlink()
    save(official / "Inertial" / "a8_s1_t4_inertial.mat", d_iner=inertial(99))
    with pytest.raises(DataError, match=r"a8_s1_t4_inertial\.mat is no recording of UTD-MHAD"):
        select("utd_mhad:partial=true", official)


def test_the_whole_set() -> None:
    data = select("utd_mhad:three", whole_copy("utd_mhad"))
    assert len(data.y) == 861
    counts = np.bincount(data.y)
    assert {a + 1: n for a, n in enumerate(counts.tolist()) if n != 32} == {8: 31, 23: 31, 27: 31}
    assert all(has.all() for has in data.has.values())
    assert data.split is not None
    assert (data.split == "train").sum() == 431
    start = np.linalg.norm(data.x["inertial"][:, :3, 0], axis=1)  # before most actions the sensor is still
    assert float(np.median(start)) == pytest.approx(9.8, abs=0.5)  # m/s²
    assert 1.0 < float(data.x["depth"][data.x["depth"] > 0].mean()) < 4.0  # m
    assert float(np.abs(data.x["skeleton"]).max()) < 2.5  # m: nobody reaches farther from the hip

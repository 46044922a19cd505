"""UCI-HAR: the official layout in all its wrappings, the packaged excerpt, and what broken copies say."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core.errors import DataError
from edge_sdk.datasets import select, uci_har
from edge_sdk.datasets.data import make_excerpt
from tests.helpers.public_data import whole_copy

SIDES = {"train": ([1, 2, 3, 4, 6], [1, 1, 3, 3, 30]), "test": ([5, 5, 1], [2, 2, 9])}  # activity, person


def value(prefix: str, axis: int, row: int) -> float:
    return {"total_acc": 1.0, "body_gyro": 0.5, "body_acc": 0.25}[prefix] * (axis + 1) + 0.01 * row


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A folder in the official layout: 16-character numbers with three-digit exponents, leading blanks."""
    root = tmp_path / "data" / "UCI HAR Dataset"
    for side, (y, subject) in SIDES.items():
        folder = root / side / "Inertial Signals"
        folder.mkdir(parents=True)
        (root / side / f"y_{side}.txt").write_text("".join(f"{v}\n" for v in y))
        (root / side / f"subject_{side}.txt").write_text("".join(f"{v}\n" for v in subject))
        for prefix in ("total_acc", "body_acc", "body_gyro"):
            for axis, letter in enumerate("xyz"):
                rows = [number(value(prefix, axis, row)) * 128 + "\n" for row in range(len(y))]
                (folder / f"{prefix}_{letter}_{side}.txt").write_text("".join(rows))
    (root / "activity_labels.txt").write_text("1 WALKING\n")
    return root


def number(x: float) -> str:
    mantissa, exponent = f"{x:.7e}".split("e")
    return f"{mantissa}e{int(exponent):+04d}".rjust(16)


def archive(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent))
    return target


def check(path: Path) -> None:
    data = uci_har.load(path)
    assert data.modalities == ("acc", "gyro")
    assert data.x["acc"].shape == data.x["gyro"].shape == (8, 3, 128)
    assert data.x["acc"].dtype == np.float32
    np.testing.assert_allclose(data.x["acc"][2, :, 0], [1.02, 2.02, 3.02], rtol=1e-6)
    np.testing.assert_allclose(data.x["gyro"][6, :, 127], [0.51, 1.01, 1.51], rtol=1e-6)
    assert data.y.tolist() == [0, 1, 2, 3, 5, 4, 4, 0]
    assert data.subject is not None
    assert data.subject.tolist() == [1, 1, 3, 3, 30, 2, 2, 9]
    assert data.split is not None
    assert data.split.tolist() == ["train"] * 5 + ["test"] * 3
    assert data.rate_hz == {"acc": 50.0, "gyro": 50.0}
    assert len(data.classes) == 6


def test_reads_the_folder_and_the_folder_above(official: Path) -> None:
    check(official)
    check(official.parent)


def test_reads_the_archive_and_a_folder_with_it(official: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy" / "UCI HAR Dataset.zip"
    target.parent.mkdir()
    check(archive(official, target))
    check(target.parent)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_reads_the_archive_inside_the_sites_archive(official: Path, tmp_path: Path, method: int) -> None:
    inner = archive(official, tmp_path / "UCI HAR Dataset.zip")
    outer = tmp_path / "human+activity+recognition+using+smartphones.zip"
    with zipfile.ZipFile(outer, "w", method) as file:
        file.writestr("UCI HAR Dataset.names", "names")
        file.write(inner, inner.name)
    check(outer)


def test_a_copy_of_another_size_is_taken_and_said(official: Path, caplog: pytest.LogCaptureFixture) -> None:
    uci_har.load(official)
    assert "train: 5 windows; the official set has 7352" in caplog.text
    assert "test: 3 windows; the official set has 2947" in caplog.text


def test_a_large_copy() -> None:
    data = select("uci_har:body", whole_copy("uci_har"))
    assert data.subject is not None
    assert data.split is not None
    train = data.split == "train"
    assert len(np.unique(data.subject[train])) == 21
    assert len(np.unique(data.subject[~train])) == 9
    assert np.bincount(data.y[train]).min() > 0.1 * train.sum()  # all six activities
    gravity = data.x["acc"] - data.x["body"]
    np.testing.assert_allclose(np.linalg.norm(gravity.mean(axis=2), axis=1), 1.0, atol=0.15)  # g


def test_body_is_a_third_modality(official: Path) -> None:
    data = select("uci_har:body", official)
    assert data.modalities == ("acc", "gyro", "body")
    np.testing.assert_allclose(data.x["body"][0, :, 0], [0.25, 0.5, 0.75], rtol=1e-6)


def test_missing_things_are_named_with_their_source(official: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder.*archive\.ics\.uci\.edu"):
        uci_har.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"found no train/Inertial Signals.*archive\.ics\.uci\.edu"):
        uci_har.load(tmp_path / "empty")
    (official / "test" / "Inertial Signals" / "body_gyro_y_test.txt").unlink()
    with pytest.raises(DataError, match=r"body_gyro_y_test\.txt: missing.*archive\.ics\.uci\.edu"):
        uci_har.load(official)


def test_a_missing_side_is_named(official: Path) -> None:
    shutil.rmtree(official / "test")
    with pytest.raises(DataError, match=r"y_test\.txt: missing"):
        uci_har.load(official)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train/y_train.txt", "1\n2\n", r"y_train\.txt has 2 rows, subject_train\.txt has 5"),
        ("train/y_train.txt", "1\n2\n7\n4\n6\n", r"y_train\.txt: row 2 is 7; expected an integer from 1 to 6"),
        ("train/y_train.txt", "1\n2\n1.5\n4\n6\n", r"row 2 is 1\.5"),
        ("train/y_train.txt", "1 2\n2 2\n", r"expected one number per row, found 2"),
        ("train/y_train.txt", "one\n", r"y_train\.txt: not a table of numbers"),
        ("test/y_test.txt", "5\nnan\n1\n", r"row 1 is nan"),
        (
            "train/Inertial Signals/total_acc_x_train.txt",
            "1 2 3\n" * 5,
            r"expected 5 rows of 128 numbers, found 5 rows",
        ),
        ("train/Inertial Signals/total_acc_x_train.txt", "0 " * 128 + "\n", r"found 1 rows of 128 numbers"),
        ("test/Inertial Signals/total_acc_z_test.txt", ("0 " * 127 + "nan\n") * 3, r"row 0 holds NaN or Inf"),
        ("test/Inertial Signals/total_acc_z_test.txt", "\u00e9", r"not a table of numbers"),
    ],
)
def test_malformed_files_are_named(official: Path, name: str, text: str, message: str) -> None:
    (official / name).write_text(text)
    with pytest.raises(DataError, match=message):
        uci_har.load(official)


@pytest.mark.filterwarnings("ignore:loadtxt. input contained no data:UserWarning")  # the case under test
def test_an_empty_file_is_named(official: Path) -> None:
    (official / "train" / "y_train.txt").write_text("")
    with pytest.raises(DataError, match=r"y_train\.txt: empty"):
        uci_har.load(official)


def test_a_damaged_archive_is_named(official: Path, tmp_path: Path) -> None:
    target = archive(official, tmp_path / "cut.zip")
    target.write_bytes(target.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"cut\.zip: not a readable zip archive"):
        uci_har.load(target)


def test_the_excerpt_holds_everybody_and_every_activity() -> None:
    data = select("uci_har")
    assert uci_har.EXCERPT.stat().st_size <= 3_000_000
    assert data.subject is not None
    assert data.split is not None
    assert np.unique(data.subject).tolist() == list(range(1, 31))
    train = data.split == "train"
    assert len(np.unique(data.subject[train])) == 21
    assert len(np.unique(data.subject[~train])) == 9
    assert not set(data.subject[train]) & set(data.subject[~train])
    for person in range(1, 31):
        assert len(np.unique(data.y[data.subject == person])) == 6
    still = np.isin(data.y, (3, 4, 5))
    gravity = np.linalg.norm(data.x["acc"][still].mean(axis=2), axis=1)
    np.testing.assert_allclose(gravity, 1.0, atol=0.1)  # g
    assert np.abs(data.x["gyro"]).max() < 10  # rad/s


def test_the_excerpt_is_made_from_the_official_layout(official: Path, tmp_path: Path) -> None:
    target = tmp_path / "excerpt.npz"
    assert make_excerpt.main([str(official), str(target), "--per-subject", "1"]) == 0
    data, full = uci_har.load(target), uci_har.load(official)
    assert data.subject is not None
    assert data.subject.tolist() == [1, 3, 30, 2, 9]
    rows = np.array([0, 2, 4, 5, 7])
    np.testing.assert_allclose(data.x["acc"], full.x["acc"][rows], atol=2.0**-11)
    np.testing.assert_allclose(data.x["gyro"], full.x["gyro"][rows], atol=2.0**-10)
    assert data.y.tolist() == full.y[rows].tolist()


def test_wrong_excerpts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without body"):
        uci_har.load(variant="body")
    with pytest.raises(DataError, match="form: Input should be 'phone' or 'body', found 'nine'"):
        uci_har.load(variant="nine")
    path = tmp_path / "wrong.npz"
    np.savez(
        path, acc=np.zeros((2, 3, 64)), acc_step=1, gyro=0, gyro_step=1, y=[0, 1], subject=[1, 1], split=["a", "b"]
    )
    with pytest.raises(DataError, match=r"acc: expected int16 \(2, 3, 128\), found float64 \(2, 3, 64\)"):
        uci_har.load(path)

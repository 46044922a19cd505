"""Spoken and written digits: who is paired with what, what is never shared, and what broken copies say."""

from __future__ import annotations

import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Dataset
from edge_sdk.datasets import select
from tests.helpers.idx import write_mnist
from tests.helpers.public_data import whole_copy
from tests.helpers.sounds import tone, write_wave

SPOKEN = [(digit, speaker, take) for digit in range(10) for speaker in ("george", "theo") for take in (4, 5, 17)]
RATE_HZ = 8000


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FSDD with a tone of 300 Hz per digit and one of 40 per speaker, and MNIST, each in its folder."""
    root = tmp_path_factory.mktemp("data")
    for digit, speaker, take in SPOKEN:
        samples = tone(300 * (digit + 1) + 10 * take, rate_hz=RATE_HZ)
        write_wave(root / "fsdd" / "recordings" / f"{digit}_{speaker}_{take}.wav", samples, rate_hz=RATE_HZ)
    write_mnist(root / "mnist", train=100, test=40)
    return root


def loudest_hz(data: Dataset) -> list[int]:
    """Returns the frequency at which each recording is loudest."""
    return [round(int(row[0].mean(axis=1).argmax()) * RATE_HZ / 256) for row in data.x["audio"]]


def test_a_recording_and_an_image_of_the_same_digit(copies: Path) -> None:
    data = select("fsdd_mnist:partial=true", copies)
    assert {m: a.shape for m, a in data.x.items()} == {"audio": (60, 1, 129, 62), "image": (60, 1, 28, 28)}
    assert {a.dtype for a in data.x.values()} == {np.dtype(np.float32)}
    heard = np.array([(hz - 30) / 300 - 1 for hz in loudest_hz(data)])  # takes add 40 to 170 Hz
    assert (np.abs(heard - data.y) < 0.6).all()
    seen = data.x["image"][:, 0, 10].sum(axis=1) - 1  # digit d is d + 1 columns wide
    assert seen.tolist() == data.y.tolist()
    assert data.split is not None
    assert Counter(data.split.tolist()) == {"train": 40, "test": 20}  # takes 5 and 17; take 4
    assert data.subject is not None
    assert Counter(data.subject.tolist()) == {0: 30, 4: 30}  # george, theo


def test_every_recording_is_used_as_often_as_the_others(copies: Path) -> None:
    data = select("fsdd_mnist:n=80,test=20,partial=true", copies)
    assert data.split is not None
    train = data.split == "train"
    assert (np.bincount(data.y[train]) == 8).all()
    sounds = Counter(row.tobytes() for row in data.x["audio"][train])
    assert sum(sounds.values()) == 80
    assert set(sounds.values()) == {4}  # george and theo say the same tone: two recordings, twice each
    assert not set(sounds) & {row.tobytes() for row in data.x["audio"][~train]}


def test_same_seed_same_pairs(copies: Path) -> None:
    one, two, other = (select("fsdd_mnist:partial=true", copies, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.x["audio"], two.x["audio"])
    np.testing.assert_array_equal(one.x["image"], two.x["image"])
    assert one.y.tolist() != other.y.tolist()


def test_reads_the_archive_as_downloaded(copies: Path, tmp_path: Path) -> None:
    shutil.copytree(copies / "mnist", tmp_path / "mnist")
    (tmp_path / "audio").mkdir()
    with zipfile.ZipFile(tmp_path / "audio" / "free-spoken-digit-dataset-1.0.10.zip", "w") as file:
        for path in sorted((copies / "fsdd" / "recordings").iterdir()):
            file.write(path, f"free-spoken-digit-dataset-1.0.10/recordings/{path.name}")
    zipped, plain = (select("fsdd_mnist:partial=true", folder) for folder in (tmp_path, copies))
    np.testing.assert_array_equal(zipped.x["audio"], plain.x["audio"])


def test_what_is_missing_is_named_with_its_source(copies: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data; from https://github\.com/Jakobovski"):
        select("fsdd_mnist")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        select("fsdd_mnist", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"found no recordings/0_george_0\.wav; expected 3000 recordings"):
        select("fsdd_mnist", tmp_path)
    with pytest.raises(DataError, match=r"recordings: 0_george_0\.wav is missing \(expected 3000 files, found 60\)"):
        select("fsdd_mnist", copies)
    with pytest.raises(DataError, match="train images of the digit 0: 11 asked for, but there are 10"):
        select("fsdd_mnist:n=110,partial=true", copies)
    shutil.copytree(copies / "fsdd", tmp_path / "fsdd")
    with pytest.raises(DataError, match=r"found no train-images-idx3-ubyte.*yann\.lecun\.com"):
        select("fsdd_mnist:partial=true", tmp_path)
    write_mnist(tmp_path)
    for path in (tmp_path / "fsdd" / "recordings").glob("7_*_4.wav"):
        path.unlink()
    with pytest.raises(DataError, match="test: no recording of the digit 7"):
        select("fsdd_mnist:partial=true", tmp_path)


def test_the_whole_set() -> None:
    data = select("fsdd_mnist", whole_copy("fsdd").parent, seed=1)
    assert data.split is not None
    assert data.subject is not None
    train = data.split == "train"
    assert (int(train.sum()), int((~train).sum())) == (2700, 300)
    assert np.bincount(data.y).tolist() == [300] * 10
    assert np.bincount(data.subject).tolist() == [500] * 6
    assert len({row.tobytes() for row in data.x["audio"]}) == 3000  # each recording once
    assert np.abs(data.x["audio"].mean(axis=(1, 2, 3))).max() < 1e-3

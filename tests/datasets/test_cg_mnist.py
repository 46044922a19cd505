"""CG-MNIST: the colours' distribution in training and testing, the same rows for the same seed, MNIST's files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Dataset, Float32
from edge_sdk.datasets import select
from edge_sdk.datasets.cg_mnist import PALETTE
from tests.helpers.idx import idx, write_mnist
from tests.helpers.public_data import whole_copy


def tints(data: Dataset) -> Float32:
    """Returns the colour of every image, (n, 3): the column that every digit's image fills."""
    return data.x["color"][:, :, 10, 0]


def test_gray_and_colour_show_the_same_digit(tmp_path: Path) -> None:
    data = select("cg_mnist:partial=true", write_mnist(tmp_path))
    assert {m: a.shape for m, a in data.x.items()} == {"gray": (70, 1, 28, 28), "color": (70, 3, 28, 28)}
    assert {a.dtype for a in data.x.values()} == {np.dtype(np.float32)}
    assert set(np.unique(data.x["gray"])) == {0.0, 1.0}
    np.testing.assert_allclose(data.x["color"], data.x["gray"] * tints(data)[:, :, None, None], atol=1e-6)
    steps = 255 * data.x["color"]
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)  # 8 bits, as in the published files
    assert data.split is not None
    assert data.split.tolist() == ["train"] * 40 + ["test"] * 30
    assert data.y[:40].tolist() == [i % 10 for i in range(40)]
    assert (data.classes, data.subject) == (tuple("0123456789"), None)


def test_colour_follows_the_label_in_training_only(tmp_path: Path) -> None:
    data = select("cg_mnist:variance=0.001,partial=true", write_mnist(tmp_path, train=2000, test=2000))
    assert data.split is not None
    train = data.split == "train"
    palette = np.array(PALETTE)
    shown = np.linalg.norm(tints(data)[:, None] - palette, axis=2).argmin(axis=1)
    assert (shown == data.y)[train].all()
    assert (shown == data.y)[~train].mean() == pytest.approx(0.1, abs=0.03)
    assert np.bincount(shown[~train], minlength=10).min() > 150  # every digit's colour, about 200 times each


def test_variance_is_the_variance_of_a_channel(tmp_path: Path) -> None:
    data = select("cg_mnist:partial=true", write_mnist(tmp_path, train=4000))
    orange = tints(data)[:4000][data.y[:4000] == 7]
    middle = orange[:, 1]  # mean 0.5: three deviations inside [0, 1], hardly clipped
    assert middle.mean() == pytest.approx(0.5, abs=0.03)
    assert middle.var() == pytest.approx(0.030, rel=0.2)
    assert np.cov(orange.T)[0, 1] == pytest.approx(0, abs=0.005)


def test_the_palette_is_well_apart() -> None:
    distances = np.linalg.norm(np.array(PALETTE)[:, None] - np.array(PALETTE)[None], axis=2)
    assert distances[~np.eye(10, dtype=bool)].min() > 2 * np.sqrt(0.030)


def test_same_seed_same_set_and_n_takes_some_of_it(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path, train=200, test=60)
    whole = select("cg_mnist:partial=true", folder, seed=5)
    again, other = (select("cg_mnist:n=120,partial=true", folder, seed=seed) for seed in (5, 6))
    assert again.split is not None
    assert ((again.split == "train").sum(), (again.split == "test").sum()) == (120, 20)
    colours = {tuple(row) for row in tints(whole)[:200].tolist()}
    assert {tuple(row) for row in tints(again)[:120].tolist()} <= colours
    assert not np.array_equal(again.x["color"], other.x["color"])
    np.testing.assert_array_equal(again.x["color"], select("cg_mnist:n=120,partial=true", folder, seed=5).x["color"])
    assert len(select("cg_mnist:n=20,test=30,partial=true", folder).y) == 50


def test_reads_files_that_are_not_packed_and_dotted_names(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path, packed=False)
    (folder / "train-images-idx3-ubyte").rename(folder / "train-images.idx3-ubyte")
    assert len(select("cg_mnist:partial=true", folder).y) == 70


def test_mistakes_are_named(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    with pytest.raises(DataError, match=r"--data.*yann\.lecun\.com"):
        select("cg_mnist")
    with pytest.raises(DataError, match=r"images per digit are \(4, 4, .*, expected \(5923, .*partial=true"):
        select("cg_mnist", folder)
    with pytest.raises(DataError, match="train images: 50 asked for, but there are 40"):
        select("cg_mnist:n=50,partial=true", folder)
    with pytest.raises(DataError, match="variance: Input should be greater than 0"):
        select("cg_mnist:variance=0", folder)


def test_broken_files_are_named(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    images, labels = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz"
    whole = {path: path.read_bytes() for path in (images, labels)}
    for path, content, message in (
        (images, whole[images][:-30], r"train-images-idx3-ubyte\.gz: cannot be read"),
        (images, b"GIF89a", "not an idx file of uint8 with 3 dimensions"),
        (images, gzip.decompress(whole[images])[:-5], "expected 31360 values for shape .*, found 31355"),
        (images, whole[labels], "not an idx file"),
        (labels, idx(np.arange(39) % 10), r"39 labels, but images of shape \(40, 28, 28\)"),
        (labels, idx(np.r_[np.zeros(39), 10]), "label 39 is 10; expected 0 to 9"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            select("cg_mnist:partial=true", folder)
        path.write_bytes(whole[path])
    labels.unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte \(or \.gz\) is missing"):
        select("cg_mnist:partial=true", folder)


def test_the_whole_set() -> None:
    data = select("cg_mnist:n=6000", whole_copy("mnist"), seed=1)
    assert data.split is not None
    train = data.split == "train"
    assert (int(train.sum()), int((~train).sum())) == (6000, 1000)
    assert np.bincount(data.y[train]).min() > 480
    assert data.x["gray"][train].mean() == pytest.approx(0.1307, abs=0.003)  # the published normalisation
    assert data.x["gray"][train].std() == pytest.approx(0.3081, abs=0.003)

"""UPMC Food-101: images and titles in the official layout, hashed words, and what broken copies say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core.errors import DataError
from edge_sdk.datasets import food101, select
from edge_sdk.datasets.food101 import hashed_words

PAGES = {
    "train": (
        ("apple_pie", "apple_pie_0.jpg", "Apple Pie, by Grandma Ople | Allrecipes", (250, 20, 20)),
        ("baklava", "baklava_3.jpg", 'The "best" baklava', (20, 250, 20)),
    ),
    "test": (("baklava", "baklava_9.jpg", "Baklava Recipe", (20, 20, 250)),),
}


def jpeg(path: Path, rgb: tuple[int, int, int], *, size: tuple[int, int] = (300, 400)) -> None:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*size, 3), 255, np.uint8)
    image[:, size[1] // 8 : -size[1] // 8] = rgb[::-1]  # white at the sides, which are cropped
    assert cv2.imwrite(str(path), image)


def titles(root: Path, side: str, lines: list[str]) -> None:
    (root / "texts").mkdir(parents=True, exist_ok=True)
    (root / "texts" / f"{side}_titles.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def official(tmp_path: Path) -> Path:
    root = tmp_path / "UPMC_Food101"
    for side, pages in PAGES.items():
        lines = []
        for label, image, title, rgb in pages:
            jpeg(root / "images" / side / label / image, rgb)
            quoted = title.replace('"', '""')
            lines.append(f'{image},"{quoted}",{label}')
        titles(root, side, lines)
    return root


def test_images_and_titles(official: Path) -> None:
    data = select("food101:size=48,words=64,partial=true", official)
    assert {m: a.shape for m, a in data.x.items()} == {"image": (3, 3, 48, 48), "text": (3, 64)}
    assert {a.dtype for a in data.x.values()} == {np.dtype(np.float32)}
    expected = np.array([page[3] for pages in PAGES.values() for page in pages]) / 255
    np.testing.assert_allclose(data.x["image"].mean(axis=(2, 3)), expected, atol=0.03)
    assert data.x["image"].std(axis=(2, 3)).max() < 0.06  # nothing white is left
    assert data.classes == ("apple_pie", "baklava")
    assert data.y.tolist() == [0, 1, 1]
    assert data.split is not None
    assert data.split.tolist() == ["train", "train", "test"]
    alone, best = data.x["text"][2], data.x["text"][1]
    assert alone @ best == pytest.approx(1 / np.sqrt(2 * 3), abs=1e-6)  # they share one word of two and of three


@pytest.mark.parametrize("size", [24, 64, 200, 280])
def test_every_size_shows_the_same_colours(official: Path, size: int) -> None:
    image = select(f"food101:size={size},partial=true", official).x["image"]
    np.testing.assert_allclose(image[0].mean(axis=(1, 2)), np.array([250, 20, 20]) / 255, atol=0.03)


def test_small_images_are_enlarged(official: Path) -> None:
    jpeg(official / "images" / "train" / "apple_pie" / "apple_pie_0.jpg", (250, 20, 20), size=(30, 50))
    image = select("food101:size=64,partial=true", official).x["image"][0]
    np.testing.assert_allclose(image.mean(axis=(1, 2)), np.array([250, 20, 20]) / 255, atol=0.05)


def test_hashed_words() -> None:
    rows = hashed_words(["Pie pie PIE", "", "a b", "crème brûlée"], 4096)
    assert (rows[0] > 0).sum() == 1
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 0, 1, 1])
    assert sorted(rows[2][rows[2] > 0]) == pytest.approx([1 / np.sqrt(2)] * 2)
    assert (rows[3] > 0).sum() == 2
    assert rows.dtype == np.float32


def test_some_rows_by_seed(official: Path) -> None:
    lines = [f"apple_pie_0.jpg,title {i},apple_pie" for i in range(30)]
    titles(official, "train", lines)
    one, two, other = (select("food101:n=10,words=512,partial=true", official, seed=seed) for seed in (1, 1, 2))
    assert len(one.y) == 10
    np.testing.assert_array_equal(one.x["text"], two.x["text"])
    assert not np.array_equal(one.x["text"], other.x["text"])


def test_a_row_may_lack_its_image_in_a_partial_copy(official: Path) -> None:
    (official / "images" / "train" / "baklava" / "baklava_3.jpg").unlink()
    data = select("food101:partial=true", official)
    assert data.has["image"].tolist() == [True, False, True]
    assert data.has["text"].all()


def test_counts_are_checked(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"texts: expected 101 classes, found 2; download .*visiir.*partial=true"):
        select("food101", official)
    monkeypatch.setattr(food101, "CLASSES", 2)
    with pytest.raises(DataError, match=r"train_titles\.csv: expected 67988 titles, found 2"):
        select("food101", official)
    monkeypatch.setattr(food101, "ROWS", {"train": 2, "test": 1})
    assert len(select("food101", official).y) == 3
    (official / "images" / "test" / "baklava" / "baklava_9.jpg").unlink()
    with pytest.raises(DataError, match=r"baklava_9\.jpg: missing \(and 0 more of 3 images\)"):
        select("food101", official)


def test_what_is_missing_or_broken_is_named(official: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no --data: expected the folder with images and texts, from https://visiir"):
        select("food101")
    image = official / "images" / "train" / "apple_pie" / "apple_pie_0.jpg"
    for content in (b"", b"no image at all", image.read_bytes()[:50]):
        image.write_bytes(content)
        with pytest.raises(DataError, match=r"apple_pie_0\.jpg: not a readable image"):
            select("food101:partial=true", official)
    for line in ("a.jpg,title", "../../etc/x.jpg,title,apple_pie", "a.jpg,title,..", ",title,apple_pie"):
        titles(official, "train", ["b.jpg,title,apple_pie", line])
        with pytest.raises(DataError, match=r"train_titles\.csv: row 1: expected image\.jpg,title,class"):
            select("food101:partial=true", official)
    (official / "texts" / "train_titles.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"train_titles\.csv: not a readable CSV file"):
        select("food101:partial=true", official)
    (official / "texts" / "train_titles.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"train_titles\.csv: empty; expected 67988 titles"):
        select("food101:partial=true", official)
    (official / "texts" / "train_titles.csv").unlink()
    with pytest.raises(DataError, match=r"train_titles\.csv: no such file; expected 67988 titles"):
        select("food101:partial=true", official)

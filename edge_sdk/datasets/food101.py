"""UPMC Food-101: 101 dishes as photos from the web, each with the title of its page.

Source: Wang, Kumar, Thome, Cord, Precioso, "Recipe Recognition with Large Multimodal Food Dataset", ICME workshops
2015; https://visiir.isir.upmc.fr/explore. 67,988 training and 22,716 test pages.

    image    (3, size, size) the middle square, RGB in [0, 1]
    text     (words,) how often each word stands in the title, hashed (CRC-32) into `words` places, of length 1

A device without a tokenizer can make the same text features; they are no substitute for a language model. All images at
`size=64` take 4.5 GB: `n` takes some rows, drawn by the seed, and decodes only these.

Reads the folder as unpacked: `images/{train,test}/{class}/*.jpg`, `texts/{train,test}_titles.csv` with lines of
`image.jpg,title,class`.
"""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Dataset, Float32
from edge_sdk.datasets import variants
from edge_sdk.datasets.pictures import read_image
from edge_sdk.datasets.rows import choose
from edge_sdk.datasets.variants import VariantOptions

WHERE = "https://visiir.isir.upmc.fr/explore (or https://www.kaggle.com/datasets/gianmarco96/upmcfood101)"
CLASSES, ROWS = 101, {"train": 67_988, "test": 22_716}
_PLAIN = re.compile(r"[^/\\]*[^/\\.][^/\\]*")  # a name that stays in its folder


class Options(VariantOptions):
    """How much to decode."""

    size: int = Field(default=64, ge=8)  # pixels of an image's side
    words: int = Field(default=512, ge=16)  # places of the hashed words
    n: int | None = Field(default=None, ge=10)  # rows of both sides together; None: all
    partial: bool = False  # take a copy from which pages or images are missing; a row may lack its image


@dataclass(frozen=True, slots=True)
class _Page:
    """One line of a titles file."""

    image: Path
    title: str
    label: str
    side: str  # "train" | "test"


def load(data: Path | None = None, *, variant: str = "", seed: int = 0) -> Dataset:
    """Returns the pages, training first, in the order of the titles files.

    Raises:
        DataError: a file is missing or malformed; names it, the counts and where to get it.
        PluginError: OpenCV, which decodes images, is not installed.
    """
    options = variants.read("food101", variant, Options)
    if data is None or not data.is_dir():
        raise DataError(f"food101: {data or 'no --data'}: expected the folder with images and texts, from {WHERE}")
    root = next((p for p in (data, *sorted(data.iterdir())) if (p / "texts").is_dir()), data)
    pages = [page for side in ROWS for page in _pages(root, side)]
    classes = sorted({page.label for page in pages})
    if not options.partial:
        _complete(root, pages, classes)
    rng = np.random.default_rng(seed)
    pages = [pages[i] for i in choose(len(pages), options.n, rng, what="food101: rows")]
    seen = np.array([page.image.is_file() for page in pages])
    images = np.zeros((len(pages), 3, options.size, options.size), np.float32)
    for row in np.flatnonzero(seen):
        images[row] = read_image(pages[row].image, options.size)
    return Dataset(
        name="food101",
        x={"image": images, "text": hashed_words([page.title for page in pages], options.words)},
        y=np.array([classes.index(page.label) for page in pages], np.int64),
        classes=tuple(classes),
        has={"image": seen, "text": np.ones(len(pages), np.bool_)},
        split=np.array([page.side for page in pages]),
    )


def _pages(root: Path, side: str) -> list[_Page]:
    path = root / "texts" / f"{side}_titles.csv"
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {ROWS[side]} titles, from {WHERE}")
    pages = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file)):
                if len(row) != 3 or not (_PLAIN.fullmatch(row[0]) and _PLAIN.fullmatch(row[2])):
                    raise DataError(f"{path}: row {number}: expected image.jpg,title,class, found {row[:4]}")
                pages.append(_Page(root / "images" / side / row[2] / row[0], row[1], row[2], side))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file: {error}") from error
    if not pages:
        raise DataError(f"{path}: empty; expected {ROWS[side]} titles, from {WHERE}")
    return pages


def _complete(root: Path, pages: Sequence[_Page], classes: Sequence[str]) -> None:
    advice = f"download the set from {WHERE}, or take what there is with the option partial=true"
    if len(classes) != CLASSES:
        raise DataError(f"{root / 'texts'}: expected {CLASSES} classes, found {len(classes)}; {advice}")
    for side, expected in ROWS.items():
        count = sum(page.side == side for page in pages)
        if count != expected:
            raise DataError(
                f"{root / 'texts' / f'{side}_titles.csv'}: expected {expected} titles, found {count}; {advice}"
            )
    lacking = [page.image for page in pages if not page.image.is_file()]
    if lacking:
        raise DataError(f"{lacking[0]}: missing (and {len(lacking) - 1} more of {len(pages)} images); {advice}")


def hashed_words(titles: Sequence[str], width: int) -> Float32:
    """Returns how often the words of each title fall on each of `width` places, float32 (n, width), rows of length 1.

    A word is a run of letters or digits, without case; a title without any gives zeros.
    """
    counts = np.zeros((len(titles), width), np.float32)
    for row, title in enumerate(titles):
        for word in re.findall(r"[^\W_]+", title.lower()):
            counts[row, zlib.crc32(word.encode()) % width] += 1
    norms = np.linalg.norm(counts, axis=1, keepdims=True)
    return np.asarray(counts / np.maximum(norms, 1), np.float32)  # a word alone has length 1 already


__all__ = ["Options", "hashed_words", "load"]

"""Spoken and written digits: recordings of the Free Spoken Digit Dataset, each with an MNIST image of the same digit.

Sources: Jackson et al., "Free Spoken Digit Dataset", https://github.com/Jakobovski/free-spoken-digit-dataset; MNIST.
The pairing follows the idea of AV-MNIST (Vielzeuf et al., "CentralNet", 2018), which also weakens both modalities; here
they are as they come.

Training rows pair takes 5 to 49 with training images, test rows takes 0 to 4 with test images: nobody hears or sees in
training what is tested. By default every recording is used once (2,700 and 300 rows, as many of each digit); a larger
`n` uses each recording as often as the others. Who spoke is the subject. The same seed gives the same pairs.

    audio    (1, 129, 62) log-magnitude spectrogram of the recording tiled to 1 s, standardised; FFT 256, hop 128
    image    (1, 28, 28) in [0, 1]

Reads `recordings/{digit}_{speaker}_{take}.wav`, zipped or not, and MNIST's four idx files, both in the folder `data` or
one level below (`data/fsdd`, `data/mnist`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from edge_sdk.core.errors import DataError
from edge_sdk.core.feature import LogSpectrogram
from edge_sdk.core.records import Dataset, Float32, Int64
from edge_sdk.datasets import mnist_files, variants
from edge_sdk.datasets.archive import Folder, check_complete, places
from edge_sdk.datasets.mnist_files import CLASSES, SIZE, Digits, read_digits
from edge_sdk.datasets.rows import choose
from edge_sdk.datasets.variants import VariantOptions
from edge_sdk.datasets.waves import read_wave
from edge_sdk.features import spectrogram

WHERE = "https://github.com/Jakobovski/free-spoken-digit-dataset (or DOI 10.5281/zenodo.1342401)"
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
TAKES, TEST_TAKES = 50, 5
SOUND = LogSpectrogram(rate_hz=8000, seconds=1.0, n_fft=256, hop=128, frames=62)
TRAIN_PER_TEST = 9  # rows, as in the whole set

Key = tuple[int, int, int]  # digit, number of the speaker, take


class Options(VariantOptions):
    """How many pairs."""

    n: int | None = Field(default=None, ge=10)  # training rows; None: every recording once
    test: int | None = Field(default=None, ge=10)  # test rows; None: n / 9, or every recording once
    partial: bool = False  # take copies from which recordings or images are missing


@dataclass(frozen=True, slots=True)
class _Pairs:
    """One side of the split."""

    audio: Float32  # (n, 1, frequencies, frames)
    image: Float32  # (n, 1, 28, 28)
    y: Int64  # (n,)
    subject: Int64  # (n,) number of the speaker


def load(data: Path | None = None, *, variant: str = "", seed: int = 0) -> Dataset:
    """Returns the pairs, training rows first, in random order within each side.

    Raises:
        DataError: a recording or file is missing or malformed; names it, the counts and where to get it.
    """
    options = variants.read("fsdd_mnist", variant, Options)
    if data is None:
        raise DataError(f"fsdd_mnist: give the folder with FSDD's recordings and MNIST's files as --data; from {WHERE}")
    recordings = _recordings(data)
    if not options.partial:
        check_complete(f"{data}: recordings", map(_name, recordings), map(_name, _official()), where=WHERE)
    counts = {"train": options.n, "test": options.test}
    if options.test is None and options.n is not None:
        counts["test"] = max(10, options.n // TRAIN_PER_TEST)
    digits = _mnist_folder(data)
    sides = []
    for number, (side, count) in enumerate(counts.items()):
        mine = {key: path for key, path in recordings.items() if (key[2] < TEST_TAKES) == (side == "test")}
        written = read_digits(digits, side, partial=options.partial)
        sides.append(_pair(mine, written, count, np.random.default_rng([seed, number]), f"fsdd_mnist: {side}"))
    n = [len(side.y) for side in sides]
    return Dataset(
        name="fsdd_mnist",
        x={"audio": np.concatenate([s.audio for s in sides]), "image": np.concatenate([s.image for s in sides])},
        y=np.concatenate([s.y for s in sides]),
        classes=CLASSES,
        has={m: np.ones(sum(n), np.bool_) for m in ("audio", "image")},
        subject=np.concatenate([s.subject for s in sides]),
        split=np.repeat(("train", "test"), n),
    )


def _official() -> list[Key]:
    return [(d, s, t) for d in range(len(CLASSES)) for s in range(len(SPEAKERS)) for t in range(TAKES)]


def _name(key: Key) -> str:
    return f"{key[0]}_{SPEAKERS[key[1]]}_{key[2]}.wav"


def _levels(data: Path) -> list[Path]:
    if not data.is_dir():
        raise DataError(f"{data}: no such folder; expected FSDD's recordings and MNIST's files, from {WHERE}")
    return [data, *sorted(entry for entry in data.iterdir() if entry.is_dir())]


def _recordings(data: Path) -> dict[Key, Folder]:
    pattern = re.compile(rf"(\d)_({'|'.join(SPEAKERS)})_(\d\d?)\.wav")
    for level in _levels(data):
        for folder in places(level):
            inner = folder if folder.name == "recordings" else folder / "recordings"
            if not inner.exists():
                continue
            named = [(match, entry) for entry in inner.iterdir() if (match := pattern.fullmatch(entry.name))]
            if named:
                return {(int(m[1]), SPEAKERS.index(m[2]), int(m[3])): entry for m, entry in named}
    raise DataError(
        f"{data}: found no recordings/0_george_0.wav; expected {len(_official())} recordings, zipped or not, from "
        f"{WHERE}"
    )


def _mnist_folder(data: Path) -> Path:
    for level in _levels(data):
        if any(level.glob("train-images*")):
            return level
    raise DataError(f"{data}: found no train-images-idx3-ubyte; MNIST's four files are at {mnist_files.WHERE}")


def _pair(
    recordings: Mapping[Key, Folder], digits: Digits, count: int | None, rng: np.random.Generator, what: str
) -> _Pairs:
    """Returns as many pairs of each digit, in random order."""
    keys: list[Key] = []
    images: list[Int64] = []
    for digit in range(len(CLASSES)):
        takes = sorted(key for key in recordings if key[0] == digit)
        if not takes:
            raise DataError(f"{what}: no recording of the digit {digit}; download the set from {WHERE}")
        wanted = len(takes) if count is None else count // len(CLASSES) + (digit < count % len(CLASSES))
        order = np.resize(rng.permutation(len(takes)), wanted)  # again from the start when all have been used
        keys += [takes[i] for i in order]
        candidates = np.flatnonzero(digits.y == digit)
        images.append(candidates[choose(len(candidates), wanted, rng, what=f"{what} images of the digit {digit}")])
    shuffled = rng.permutation(len(keys))
    keys, rows = [keys[i] for i in shuffled], np.concatenate(images)[shuffled]
    sounds = {key: spectrogram(read_wave(recordings[key], rate_hz=SOUND.rate_hz), SOUND) for key in sorted(set(keys))}
    return _Pairs(
        audio=np.stack([sounds[key] for key in keys]),
        image=digits.images[rows].reshape(-1, 1, SIZE, SIZE).astype(np.float32) / np.float32(255),
        y=digits.y[rows],
        subject=np.array([key[1] for key in keys], np.int64),
    )


__all__ = ["SPEAKERS", "Options", "load"]

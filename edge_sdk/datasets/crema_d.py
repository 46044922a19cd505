"""CREMA-D: six emotions acted by 91 people, as video and audio clips.

Source: Cao et al., "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset", IEEE Transactions on Affective
Computing, 2014; https://github.com/CheyneyComputerScience/CREMA-D

7,442 clips of about 2.5 s. There is no official split: by default every fifth actor is test; `split=random` draws a
tenth of the clips (744, as in BMSFed and MBA; everybody is then in training and test); `split=files` takes the lists
`train.csv` and `test.csv` in `data`, clip name first, as OGM-GE publishes them.

    video    (3, 3 · size, size) three uniform frames, sides cropped, one above the other, RGB in [0, 1]
    audio    (1, 257, 300) log-magnitude spectrogram of the clip tiled to 3 s at 16 kHz, standardised

Everything is decoded while loading and kept: with `size=64` all clips take 3.4 GB, with the papers' `size=224` 15 GB;
`n` takes some clips, drawn by the seed, and decodes only these. `crema_d:audio` leaves the video out.

Reads the folder of the repository as downloaded (with Git LFS): `AudioWAV/*.wav`, `VideoFlash/*.flv`.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Dataset, Float32
from edge_sdk.datasets import variants
from edge_sdk.datasets.pictures import read_frames
from edge_sdk.datasets.rows import choose, random_split
from edge_sdk.datasets.variants import VariantOptions
from edge_sdk.datasets.waves import read_wave
from edge_sdk.features import PAPER, spectrogram

WHERE = "https://github.com/CheyneyComputerScience/CREMA-D (with Git LFS)"
EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
CLASSES = tuple(EMOTIONS.values())
CLIPS, TEST_CLIPS, FRAMES = 7442, 744, 3
FOLDERS = {"audio": ("AudioWAV", (".wav",)), "video": ("VideoFlash", (".flv", ".mp4", ".avi"))}
_NAME = re.compile(rf"(\d{{4}})_[A-Z]{{3}}_({'|'.join(EMOTIONS)})_[A-Z]{{1,2}}")  # actor, sentence, emotion, intensity


class Options(VariantOptions):
    """How much to decode, and what is test."""

    form: Literal["both", "audio"] = "both"
    size: int = Field(default=64, ge=8)  # pixels of a frame's side
    n: int | None = Field(default=None, ge=10)  # clips; None: all
    split: Literal["actor", "random", "files"] = "actor"
    partial: bool = False  # take a copy from which clips are missing; a clip may lack a modality


def load(data: Path | None = None, *, variant: str = "", seed: int = 0) -> Dataset:
    """Returns the clips in the order of their names.

    Raises:
        DataError: a clip is missing or malformed; names it, the counts and where to get it.
        PluginError: OpenCV, which decodes videos, is not installed.
    """
    options = variants.read("crema_d", variant, Options)
    if data is None or not data.is_dir():
        raise DataError(
            f"crema_d: {data or 'no --data'}: expected the folder with AudioWAV and VideoFlash, from {WHERE}"
        )
    files = {m: _clips(data, m) for m in (("video", "audio") if options.form == "both" else ("audio",))}
    names = sorted(set().union(*files.values()))
    if not options.partial:
        _complete(data, files, names)
    sides = _listed(data, names) if options.split == "files" else {}
    if sides:
        names = [name for name in names if name in sides]
    rng = np.random.default_rng(seed)
    names = [names[i] for i in choose(len(names), options.n, rng, what="crema_d: clips")]
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    return Dataset(
        name="crema_d",
        x={m: _decode(m, files[m], names, options) for m in files},
        y=np.array([list(EMOTIONS).index(match[2]) for match in matches], np.int64),
        classes=CLASSES,
        has={m: np.array([name in found for name in names]) for m, found in files.items()},
        subject=np.array([int(match[1]) for match in matches], np.int64),
        split=_split(names, sides, options, rng),
    )


def _clips(data: Path, modality: str) -> dict[str, Path]:
    folder, endings = FOLDERS[modality]
    place = data / folder
    if not place.is_dir():
        raise DataError(f"{place}: no such folder; expected {CLIPS} clips, from {WHERE}")
    found = {path.stem: path for path in place.iterdir() if path.suffix in endings}
    if strange := sorted(name for name in found if not _NAME.fullmatch(name)):
        raise DataError(f"{found[strange[0]]}: expected a name such as 1001_DFA_ANG_XX")
    if not found:
        raise DataError(f"{place}: no {' or '.join(endings)} files; expected {CLIPS} clips, from {WHERE}")
    return found


def _complete(data: Path, files: dict[str, dict[str, Path]], names: list[str]) -> None:
    for m, found in files.items():
        lacking = [name for name in names if name not in found]
        if lacking or len(found) != CLIPS:
            what = f"{lacking[0]} is missing, " if lacking else ""
            raise DataError(
                f"{data / FOLDERS[m][0]}: {what}expected {CLIPS} clips, found {len(found)}; download the set from "
                f"{WHERE}, or take what there is with the option partial=true"
            )


def _listed(data: Path, names: list[str]) -> dict[str, str]:
    """Returns clip → side of those that train.csv and test.csv name."""
    sides: dict[str, str] = {}
    known = set(names)
    for side in ("train", "test"):
        path = data / f"{side}.csv"
        if not path.is_file():
            raise DataError(f"{path}: no such file; split=files needs train.csv and test.csv with one clip per line")
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row[0].strip() for row in csv.reader(file) if row]
        for name in rows:
            if name in sides:
                raise DataError(f"{path}: {name} is listed twice")
            if name not in known:
                raise DataError(f"{path}: {name} is no clip in {data}")
            sides[name] = side
    return sides


def _split(
    names: list[str], sides: dict[str, str], options: Options, rng: np.random.Generator
) -> NDArray[np.str_] | None:
    if options.split == "files":
        return np.array([sides[name] for name in names])
    if options.split == "random":
        return random_split(len(names), max(1, round(len(names) * TEST_CLIPS / CLIPS)), rng)
    return None


def _decode(modality: str, files: dict[str, Path], names: list[str], options: Options) -> Float32:
    shape = PAPER.shape if modality == "audio" else (3, FRAMES * options.size, options.size)
    values = np.zeros((len(names), *shape), np.float32)
    for row, name in enumerate(names):
        if name not in files:
            continue
        if modality == "audio":
            values[row] = spectrogram(read_wave(files[name], rate_hz=PAPER.rate_hz))
        else:
            values[row] = read_frames(files[name], count=FRAMES, size=options.size)
    return values


__all__ = ["CLASSES", "Options", "load"]

"""IEMOCAP: emotions in conversations of ten actors, as text, audio and video features of every utterance.

Source: Busso et al., "IEMOCAP: Interactive emotional dyadic motion capture database", Language Resources and
Evaluation, 2008; https://sail.usc.edu/iemocap/ (signed release). The features are those of Poria et al.,
"Context-Dependent Sentiment Analysis in User-Generated Videos", ACL 2017, and what followed it: one pickle
`IEMOCAP_features*.pkl`, a tuple of

    ids, speakers, labels, text, audio, video, sentences     each: dialogue → one entry per utterance
    training dialogues, test dialogues                        sets or lists

Published: 120 training and 31 test dialogues, 7,433 utterances, six emotions. Training and test share no actor. Sizes
of the features differ between versions and are taken from the file. It is read by an unpickler that knows numpy arrays
and plain containers only: a pickle from somewhere else could run code.

    text, audio, video    (features,) each

`iemocap` (or `iemocap:six`) has happy, sad, neutral, angry, excited, frustrated; `iemocap:four` takes excited as happy
and leaves frustrated out, as is usual with four. A dialogue is a subject (`subject=actor`: who speaks).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Dataset, Float32, Int64
from edge_sdk.datasets import variants
from edge_sdk.datasets.archive import check_finite
from edge_sdk.datasets.pickles import read_pickle
from edge_sdk.datasets.variants import VariantOptions

log = logging.getLogger(__name__)

WHERE = "https://sail.usc.edu/iemocap/ (corpus, signed release); features as IEMOCAP_features*.pkl"
SIX = ("happy", "sad", "neutral", "angry", "excited", "frustrated")  # in the order of the file's labels
FORMS: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "six": (SIX, (0, 1, 2, 3, 4, 5)),
    "four": (SIX[:4], (0, 1, 2, 3, 0, -1)),
}  # class names; the file's label → class, -1: left out
PUBLISHED = (120, 31, 7433)  # training dialogues, test dialogues, utterances
PARTS = ("ids", "speakers", "labels", "text", "audio", "video", "sentences")
MODALITIES = ("text", "audio", "video")


class Options(VariantOptions):
    """How many emotions, and what counts as a client."""

    form: Literal["six", "four"] = "six"
    subject: Literal["dialogue", "actor"] = "dialogue"


@dataclass(frozen=True, slots=True)
class _Content:
    """What the pickle holds, checked."""

    parts: Mapping[str, Mapping[str, Sequence[Any]]]  # name in PARTS → dialogue → one entry per utterance
    sides: Mapping[str, list[str]]  # "train", "test" → dialogues, sorted


def load(data: Path | None = None, *, variant: str = "", seed: int = 0) -> Dataset:
    """Returns one row per utterance: training dialogues first, sorted, in the order of speaking.

    Raises:
        DataError: the file is missing, malformed, or a pickle of anything but arrays and plain containers.
    """
    options = variants.read("iemocap", variant, Options)
    path = _find(data)
    content = _check(path, read_pickle(path))
    classes, mapping = FORMS[options.form]
    dialogues = [d for side in content.sides.values() for d in side]
    lengths = [len(content.parts["labels"][d]) for d in dialogues]
    _compare(path, content, sum(lengths))
    labels = _labels(path, content, dialogues)
    y = np.array(mapping)[labels]
    kept = y >= 0
    side_lengths = [sum(len(content.parts["labels"][d]) for d in side) for side in content.sides.values()]
    x = {m: _features(path, m, content.parts[m], dialogues)[kept] for m in MODALITIES}
    return Dataset(
        name="iemocap",
        x=x,
        y=y[kept].astype(np.int64),
        classes=classes,
        has={m: np.ones(int(kept.sum()), np.bool_) for m in MODALITIES},
        subject=_subjects(path, options, content, dialogues, lengths)[kept],
        split=np.repeat(list(content.sides), side_lengths)[kept],
    )


def _find(data: Path | None) -> Path:
    if data is None:
        raise DataError(f"iemocap: give the feature file or its folder as --data; {WHERE}")
    if data.is_dir():
        found = sorted(data.glob("IEMOCAP_features*.pkl"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise DataError(f"{data}: expected one IEMOCAP_features*.pkl, found {names}; {WHERE}")
        return found[0]
    if not data.exists():
        raise DataError(f"{data}: no such file; {WHERE}")
    return data


def _check(path: Path, raw: Any) -> _Content:
    """Returns the content if it is built as expected; every dialogue named has as many entries in every part."""
    if not isinstance(raw, tuple | list) or len(raw) < len(PARTS) + 2:
        raise DataError(f"{path}: expected a tuple of {len(PARTS) + 2} parts, found {type(raw).__name__}")
    parts = dict(zip(PARTS, raw, strict=False))
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise DataError(f"{path}: {name}: expected dialogue → utterances, found {type(part).__name__}")
    sides = {}
    for side, names in zip(("train", "test"), raw[len(PARTS) :], strict=False):
        if (
            not isinstance(names, list | set | frozenset | tuple)
            or not names
            or not all(isinstance(n, str) for n in names)
        ):
            raise DataError(f"{path}: expected a list of {side} dialogues, found {type(names).__name__}")
        sides[side] = sorted(names)
    if both := set(sides["train"]) & set(sides["test"]):
        raise DataError(f"{path}: dialogue {min(both)} is in training and test")
    for dialogue in (*sides["train"], *sides["test"]):
        counts = {name: len(part[dialogue]) for name, part in parts.items() if dialogue in part}
        if len(counts) < len(PARTS) or len(set(counts.values())) != 1 or 0 in counts.values():
            raise DataError(f"{path}: dialogue {dialogue}: expected as many entries in every part, found {counts}")
    return _Content(parts, sides)


def _compare(path: Path, content: _Content, utterances: int) -> None:
    found = (len(content.sides["train"]), len(content.sides["test"]), utterances)
    if found != PUBLISHED:
        log.warning(
            "%s: %d training and %d test dialogues, %d utterances; published: %d, %d, %d", path, *found, *PUBLISHED
        )


def _labels(path: Path, content: _Content, dialogues: list[str]) -> Int64:
    labels = np.concatenate([np.asarray(content.parts["labels"][d]) for d in dialogues])
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(SIX):
        raise DataError(
            f"{path}: labels: expected integers 0 to {len(SIX) - 1}, found {np.unique(labels)[:9].tolist()}"
        )
    return labels.astype(np.int64)


def _features(path: Path, name: str, part: Mapping[str, Sequence[Any]], dialogues: list[str]) -> Float32:
    rows = [np.asarray(row) for d in dialogues for row in part[d]]
    shape = rows[0].shape
    for number, row in enumerate(rows):
        if row.ndim != 1 or row.shape != shape or row.dtype.kind not in "fiu" or row.size == 0:
            raise DataError(
                f"{path}: {name}: utterance {number}: expected {shape} numbers, found {row.dtype} {row.shape}"
            )
    values = np.stack(rows).astype(np.float32)
    check_finite(values, f"{path}: {name}")
    return values


def _subjects(path: Path, options: Options, content: _Content, dialogues: list[str], lengths: list[int]) -> Int64:
    if options.subject == "dialogue":
        return np.repeat(np.arange(len(dialogues), dtype=np.int64), lengths)
    actors: list[str] = []
    for dialogue in dialogues:
        session = re.match(r"Ses\d+", dialogue)
        if session is None:
            raise DataError(
                f"{path}: dialogue {dialogue!r}: expected a name that begins with its session, such as Ses01"
            )
        actors += [f"{session[0]}{speaker}" for speaker in content.parts["speakers"][dialogue]]
    return np.unique(actors, return_inverse=True)[1].astype(np.int64)


__all__ = ["SIX", "Options", "load"]

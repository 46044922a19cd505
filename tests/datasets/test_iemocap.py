"""IEMOCAP features: the usual tuple of dicts, six or four emotions, dialogues or actors, and what wrong files say."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.core.errors import DataError
from edge_sdk.datasets import select

# dialogue → speakers and labels
TRAIN = {"Ses02F_impro01": ("MFM", [0, 1, 5]), "Ses01M_script01": ("FM", [4, 3])}
TEST = {"Ses05F_impro02": ("MMFF", [2, 2, 0, 5])}
SIZES = {"text": 100, "audio": 40, "video": 512}


def content() -> list[Any]:
    """The nine parts; features of utterance i of a dialogue are all i, plus 10 for audio and 20 for video."""
    everything = TRAIN | TEST
    parts: list[Any] = [
        {d: [f"{d}_{i}" for i in range(len(labels))] for d, (_, labels) in everything.items()},
        {d: list(speakers) for d, (speakers, _) in everything.items()},
        {d: list(labels) for d, (_, labels) in everything.items()},
    ]
    for at, width in enumerate(SIZES.values()):
        parts.append({d: [np.full(width, 10 * at + i) for i in range(len(e[1]))] for d, e in everything.items()})
    sentences = {d: [f"sentence {i}" for i in range(len(labels))] for d, (_, labels) in everything.items()}
    return [*parts, sentences, set(TRAIN), list(TEST)]


def write(folder: Path, raw: Any) -> Path:
    (folder / "IEMOCAP_features_raw.pkl").write_bytes(pickle.dumps(raw, protocol=2))
    return folder


def test_one_row_per_utterance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = select("iemocap", write(tmp_path, tuple(content())))
    assert "2 training and 1 test dialogues, 9 utterances; published: 120, 31, 7433" in caplog.text
    assert {m: a.shape for m, a in data.x.items()} == {"text": (9, 100), "audio": (9, 40), "video": (9, 512)}
    assert {a.dtype for a in data.x.values()} == {np.dtype(np.float32)}
    assert data.x["audio"][:, 3].tolist() == [10, 11, 10, 11, 12, 10, 11, 12, 13]
    assert data.y.tolist() == [4, 3, 0, 1, 5, 2, 2, 0, 5]
    assert data.classes == ("happy", "sad", "neutral", "angry", "excited", "frustrated")
    assert data.subject is not None
    assert data.subject.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert data.split is not None
    assert data.split.tolist() == ["train"] * 5 + ["test"] * 4


def test_four_emotions_and_actors(tmp_path: Path) -> None:
    path = write(tmp_path, tuple(content())) / "IEMOCAP_features_raw.pkl"
    data = select("iemocap:four,subject=actor", path)
    assert data.classes == ("happy", "sad", "neutral", "angry")
    assert data.y.tolist() == [0, 3, 0, 1, 2, 2, 0]  # excited is happy, frustrated is left out
    assert data.x["text"][:, 0].tolist() == [0, 1, 0, 1, 0, 1, 2]
    assert data.subject is not None
    assert data.subject.tolist() == [0, 1, 3, 2, 5, 5, 4]  # Ses01F Ses01M Ses02F Ses02M Ses05F Ses05M
    assert data.split is not None
    assert data.split.tolist() == ["train"] * 4 + ["test"] * 3


def shorter(raw: list[Any]) -> None:
    raw[4]["Ses05F_impro02"].pop()


def not_a_number(raw: list[Any]) -> None:
    raw[5]["Ses05F_impro02"][1] = np.full(512, np.nan)


def other_size(raw: list[Any]) -> None:
    raw[3]["Ses05F_impro02"][0] = np.zeros(7)


def no_label(raw: list[Any]) -> None:
    raw[2]["Ses05F_impro02"][0] = 6


def unknown(raw: list[Any]) -> None:
    raw[8].append("Ses09F_impro01")


def twice(raw: list[Any]) -> None:
    raw[8].append("Ses02F_impro01")


def no_dict(raw: list[Any]) -> None:
    raw[1] = ["M", "F"]


def no_test(raw: list[Any]) -> None:
    raw[8] = []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shorter, "dialogue Ses05F_impro02: expected as many entries in every part, found .*'audio': 3"),
        (not_a_number, "video: row 6 holds NaN"),
        (other_size, r"text: utterance 5: expected \(100,\) numbers, found float64 \(7,\)"),
        (no_label, r"labels: expected integers 0 to 5, found \[0, 1, 2, 3, 4, 5, 6\]"),
        (unknown, "dialogue Ses09F_impro01: expected as many"),
        (twice, "dialogue Ses02F_impro01 is in training and test"),
        (no_dict, "speakers: expected dialogue → utterances, found list"),
        (no_test, "expected a list of test dialogues"),
        (lambda raw: raw.pop(), "expected a tuple of 9 parts, found list"),
    ],
)
def test_every_mistake_is_named(tmp_path: Path, spoil: Callable[[list[Any]], Any], message: str) -> None:
    raw = content()
    spoil(raw)
    with pytest.raises(DataError, match=rf"IEMOCAP_features_raw\.pkl: {message}"):
        select("iemocap", write(tmp_path, raw))


def test_what_is_missing_is_named_with_its_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data; https://sail\.usc\.edu/iemocap"):
        select("iemocap")
    with pytest.raises(DataError, match=r"expected one IEMOCAP_features\*\.pkl, found none"):
        select("iemocap", tmp_path)
    with pytest.raises(DataError, match=r"other\.pkl: no such file"):
        select("iemocap", tmp_path / "other.pkl")
    raw = content()
    names = {d: f"Dialogue{i}" for i, d in enumerate((*TRAIN, *TEST))}
    renamed = [{names[d]: v for d, v in part.items()} for part in raw[:7]]
    write(tmp_path, (*renamed, [names[d] for d in TRAIN], [names[d] for d in TEST]))
    with pytest.raises(DataError, match="'Dialogue0': expected a name that begins with its session"):
        select("iemocap:subject=actor", tmp_path)

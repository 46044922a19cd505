"""CMU-MOSI features: padding taken away, videos as subjects, and what broken files say."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array
from edge_sdk.datasets import select
from tests.helpers.public_data import whole_copy

FILE = "mosi_utterance_features_2way.npz"


def arrays() -> dict[str, Array]:
    """Three training videos and two test videos of at most four utterances; features count up, padding is -9."""
    content: dict[str, Array] = {}
    for side, lengths in (("train", (4, 1, 2)), ("test", (3, 2))):
        mask = np.arange(4)[None] < np.array(lengths)[:, None]
        content[f"mask_{side}"] = mask.astype(np.uint8)
        content[f"label_{side}"] = (mask & (np.arange(4) % 2 == 0)).astype(np.int8)
        for at, (name, width) in enumerate((("text", 50), ("audio", 50), ("video", 50), ("audio73", 73))):
            values = np.full((len(lengths), 4, width), -9, np.float32)
            values[mask] = 100 * at + np.arange(mask.sum())[:, None]
            content[f"{name}_{side}"] = values
    return content


def write(folder: Path, content: dict[str, Array]) -> Path:
    np.savez(folder / FILE, **content)  # type: ignore[arg-type]
    return folder


def test_takes_utterances_and_leaves_padding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = select("cmu_mosi", write(tmp_path, arrays()))
    assert "7 train utterances; published: 1447" in caplog.text
    assert {m: a.shape for m, a in data.x.items()} == {"text": (12, 50), "audio": (12, 50), "video": (12, 50)}
    assert data.x["video"][:, 3].tolist() == [200, 201, 202, 203, 204, 205, 206, 200, 201, 202, 203, 204]
    assert data.y.tolist() == [1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 1, 0]
    assert data.classes == ("negative", "positive")
    assert data.subject is not None
    assert data.subject.tolist() == [0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 4, 4]
    assert data.split is not None
    assert data.split.tolist() == ["train"] * 7 + ["test"] * 5


def test_raw_audio_and_the_file_itself(tmp_path: Path) -> None:
    data = select("cmu_mosi:raw", write(tmp_path, arrays()) / FILE)
    assert data.x["audio"].shape == (12, 73)
    assert data.x["audio"][0, 0] == 300


def not_a_number() -> Array:
    values = arrays()["text_test"]
    values[1, 0, 7] = np.nan
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_test": not_a_number()}, r"text: row 10 holds NaN"),
        ({"text_test": arrays()["text_test"][:, :, :40]}, r"text_test: expected .* found \(2, 4, 40\)"),
        ({"video_train": arrays()["video_train"][:2]}, r"video_train: expected \(3, 4\) utterances"),
        ({"label_train": np.full((3, 4), 2)}, r"label_train: expected classes 0 and 1, found \[2\]"),
        ({"label_train": np.zeros((3, 5))}, r"mask_train and label_train: .* found \(3, 4\) and \(3, 5\)"),
        ({"mask_test": np.full((2, 4), 3)}, "mask_test and label_test"),
        ({"mask_test": np.zeros((2, 4))}, "mask_test .* not empty"),
    ],
)
def test_every_mistake_names_file_and_array(tmp_path: Path, change: dict[str, Array], message: str) -> None:
    with pytest.raises(DataError, match=rf"{FILE}: {message}"):
        select("cmu_mosi", write(tmp_path, arrays() | change))


def test_what_is_missing_is_named_with_its_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data.*multicomp\.cs\.cmu\.edu"):
        select("cmu_mosi")
    with pytest.raises(DataError, match=rf"{FILE}: no such file.*multicomp"):
        select("cmu_mosi", tmp_path)
    content = arrays()
    del content["audio73_test"]
    select("cmu_mosi", write(tmp_path, content))
    with pytest.raises(DataError, match="expected an array audio73_test"):
        select("cmu_mosi:raw", tmp_path)


def test_the_whole_set(caplog: pytest.LogCaptureFixture) -> None:
    data = select("cmu_mosi", whole_copy("cmu_mosi"))
    assert not caplog.records
    assert data.split is not None
    assert data.subject is not None
    train = data.split == "train"
    assert (int(train.sum()), int((~train).sum())) == (1447, 752)
    assert (len(np.unique(data.subject[train])), len(np.unique(data.subject[~train]))) == (62, 31)
    assert not set(data.subject[train]) & set(data.subject[~train])
    assert (int(data.y[train].sum()), int(data.y[~train].sum())) == (709, 467)
    assert all(float(np.abs(a).max()) < 1 for a in data.x.values())  # hidden activations

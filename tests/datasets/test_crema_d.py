"""CREMA-D: clips decoded from video and audio files in the official layout, splits, and what broken copies say."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array
from edge_sdk.datasets import select
from tests.helpers.sounds import tone, write_wave

NAMES = ("1001_DFA_ANG_XX", "1001_IEO_SAD_HI", "1002_DFA_NEU_XX", "1091_WSI_DIS_XX", "1091_TAI_HAP_MD")
FLV1 = 2  # the codec's tag inside .flv files


def write_video(path: Path, frames: Array) -> None:
    """Writes uint8 (time, height, width, 3) RGB."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    _, height, width, _ = frames.shape
    video = cv2.VideoWriter(str(path), FLV1, 30.0, (width, height))
    assert video.isOpened()
    for frame in frames:
        video.write(np.ascontiguousarray(frame[:, :, ::-1]))
    video.release()


def clip(brightness: int) -> Array:
    """Thirty red frames that get brighter by ten times; at the sides, which are cropped, white."""
    frames = np.zeros((30, 72, 96, 3), np.uint8)
    frames[:, :, :, 0] = brightness + np.repeat((0, 10, 20), 10)[:, None, None]
    frames[:, :, :8] = frames[:, :, -8:] = 255
    return frames


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "CREMA-D"
    for number, name in enumerate(NAMES):
        write_video(root / "VideoFlash" / f"{name}.flv", clip(100 + 20 * number))
        samples = tone(500 * (number + 1), rate_hz=16000, seconds=1.0)
        write_wave(root / "AudioWAV" / f"{name}.wav", samples, rate_hz=16000)
    return root


@pytest.fixture
def official(original: Path, tmp_path: Path) -> Path:
    """The folders AudioWAV and VideoFlash with five clips of three actors."""
    return shutil.copytree(original, tmp_path / "CREMA-D")


def test_frames_and_spectrograms(original: Path) -> None:
    data = select("crema_d:size=32,partial=true", original)
    assert {m: a.shape for m, a in data.x.items()} == {"video": (5, 3, 96, 32), "audio": (5, 1, 257, 300)}
    assert {a.dtype for a in data.x.values()} == {np.dtype(np.float32)}
    assert data.y.tolist() == [0, 5, 4, 3, 1]  # in the order of names: 1091_TAI before 1091_WSI
    assert data.classes == ("anger", "disgust", "fear", "happy", "neutral", "sad")
    assert data.subject is not None
    assert data.subject.tolist() == [1001, 1001, 1002, 1091, 1091]
    assert data.split is None
    order = np.array([0, 1, 2, 4, 3])  # sorted by name
    red = data.x["video"][:, 0].reshape(5, 3, 32, 32).mean(axis=(2, 3)) * 255
    np.testing.assert_allclose(red, 100 + 20 * order[:, None] + np.array([0, 10, 20]), atol=6)
    assert data.x["video"][:, 2].max() < 0.1  # no white: the sides are cropped
    loudest = data.x["audio"][:, 0].mean(axis=2).argmax(axis=1) * 16000 / 512
    np.testing.assert_allclose(loudest, 500 * (order + 1), atol=16)


def test_audio_alone_needs_no_video(official: Path) -> None:
    shutil.rmtree(official / "VideoFlash")
    data = select("crema_d:audio,partial=true", official)
    assert data.modalities == ("audio",)
    with pytest.raises(DataError, match=r"VideoFlash: no such folder; expected 7442 clips, from https://github\.com"):
        select("crema_d:partial=true", official)


def test_a_clip_may_lack_a_modality_in_a_partial_copy(official: Path) -> None:
    (official / "VideoFlash" / f"{NAMES[2]}.flv").unlink()
    data = select("crema_d:size=16,partial=true", official)
    assert data.has["video"].tolist() == [True, True, False, True, True]
    assert not data.x["video"][2].any()
    with pytest.raises(DataError, match=r"VideoFlash: 1002_DFA_NEU_XX is missing, expected 7442 clips, found 4"):
        select("crema_d", official)


def test_splits(official: Path) -> None:
    drawn = select("crema_d:audio,split=random,partial=true", official).split
    assert drawn is not None
    assert sorted(drawn.tolist()) == ["test"] + ["train"] * 4
    with pytest.raises(DataError, match=r"train\.csv: no such file; split=files needs"):
        select("crema_d:audio,split=files,partial=true", official)
    (official / "train.csv").write_text(f"\ufeff{NAMES[0]},ANG\n{NAMES[3]},DIS\n", encoding="utf-8")
    (official / "test.csv").write_text(f"{NAMES[2]},NEU\n")
    data = select("crema_d:audio,split=files,partial=true", official)
    assert data.split is not None
    assert data.split.tolist() == ["train", "test", "train"]
    assert data.y.tolist() == [0, 4, 1]
    (official / "test.csv").write_text(f"{NAMES[3]},DIS\n")
    with pytest.raises(DataError, match=r"test\.csv: 1091_WSI_DIS_XX is listed twice"):
        select("crema_d:audio,split=files,partial=true", official)
    (official / "test.csv").write_text("1005_DFA_DIS_XX,DIS\n")
    with pytest.raises(DataError, match=r"test\.csv: 1005_DFA_DIS_XX is no clip in"):
        select("crema_d:audio,split=files,partial=true", official)


def test_some_clips_by_seed(official: Path) -> None:
    for number in range(20):
        write_wave(official / "AudioWAV" / f"1010_DFA_FEA_{'XHLM'[number % 4]}{'ABCDE'[number // 4]}.wav",
                   tone(1000, rate_hz=16000), rate_hz=16000)  # fmt: skip
    text = "crema_d:audio,n=10,partial=true"
    one, two, other = (select(text, official, seed=seed) for seed in (1, 1, 3))
    assert len(one.y) == 10
    assert one.y.tolist() == two.y.tolist()
    assert one.y.tolist() != other.y.tolist()


def test_what_is_missing_or_broken_is_named(official: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no --data: expected the folder with AudioWAV.*CheyneyComputerScience"):
        select("crema_d")
    with pytest.raises(DataError, match=r"nowhere: expected the folder with AudioWAV"):
        select("crema_d", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"VideoFlash: expected 7442 clips, found 5"):
        select("crema_d", official)
    video = official / "VideoFlash" / f"{NAMES[0]}.flv"
    for content, message in (
        (b"FLV" + bytes(99), r"1001_DFA_ANG_XX\.flv: not a readable video"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"1001_DFA_ANG_XX\.flv: only a pointer of Git LFS"),
    ):
        video.write_bytes(content)
        with pytest.raises(DataError, match=message):
            select("crema_d:partial=true", official)
    video.rename(video.with_name("1001_DFA_JOY_XX.flv"))
    with pytest.raises(DataError, match=r"1001_DFA_JOY_XX\.flv: expected a name such as 1001_DFA_ANG_XX"):
        select("crema_d:partial=true", official)
    for path in (official / "AudioWAV").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"AudioWAV: no \.wav files; expected 7442 clips"):
        select("crema_d:audio,partial=true", official)

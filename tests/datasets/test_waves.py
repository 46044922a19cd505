"""Recordings: full scale, channels averaged, and what wrong files say."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core.errors import DataError
from edge_sdk.datasets.waves import read_wave
from tests.helpers.sounds import write_wave


def test_full_scale_is_one_and_channels_are_averaged(tmp_path: Path) -> None:
    mono = write_wave(tmp_path / "mono.wav", np.array([0, 16384, -32768]), rate_hz=8000)
    np.testing.assert_array_equal(read_wave(mono, rate_hz=8000), np.float32([0, 0.5, -1]))
    stereo = write_wave(tmp_path / "stereo.wav", np.array([[0, 16384], [8192, 8192]]), rate_hz=8000)
    np.testing.assert_array_equal(read_wave(stereo, rate_hz=8000), np.float32([0.25, 0.25]))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    path = write_wave(tmp_path / "a.wav", np.zeros(4), rate_hz=16000)
    with pytest.raises(DataError, match=r"a\.wav: expected 16 bits at 8000 Hz, found 16 bits at 16000 Hz"):
        read_wave(path, rate_hz=8000)
    write_wave(path, np.zeros(0), rate_hz=8000)
    with pytest.raises(DataError, match=r"a\.wav: no samples"):
        read_wave(path, rate_hz=8000)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        file.writeframes(b"\x80" * 9)
    with pytest.raises(DataError, match="found 8 bits"):
        read_wave(path, rate_hz=8000)
    path.write_bytes(b"RIFF" + bytes(3))
    with pytest.raises(DataError, match=r"a\.wav: not a readable \.wav file"):
        read_wave(path, rate_hz=8000)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DataError, match="only a pointer of Git LFS"):
        read_wave(path, rate_hz=8000)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.wav: cannot be read"):
        read_wave(path, rate_hz=8000)

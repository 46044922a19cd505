"""Recordings in .wav files: 16-bit PCM, any number of channels."""

from __future__ import annotations

import io
import wave

import numpy as np

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Float32
from edge_sdk.datasets.archive import Folder, read_bytes


def read_wave(path: Folder, *, rate_hz: int) -> Float32:
    """Returns the recording, channels averaged, full scale ±1, float32 (samples,).

    Raises:
        DataError: not a .wav file of 16 bits at this rate, or without samples.
    """
    try:
        with wave.open(io.BytesIO(read_bytes(path))) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: sizes inside that contradict one another
        raise DataError(f"{path}: not a readable .wav file ({error}); download it again") from error
    if (width, rate) != (2, rate_hz):
        raise DataError(f"{path}: expected 16 bits at {rate_hz} Hz, found {8 * width} bits at {rate} Hz")
    samples = np.frombuffer(content[: len(content) // (2 * channels) * 2 * channels], "<i2").reshape(-1, channels)
    if not len(samples):
        raise DataError(f"{path}: no samples; download it again")
    return np.asarray(samples.mean(axis=1) / 32768, np.float32)


__all__ = ["read_wave"]

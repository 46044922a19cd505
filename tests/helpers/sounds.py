"""Short .wav files as a test likes them."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from edge_sdk.core.records import Array


def tone(frequency_hz: float, *, rate_hz: int, seconds: float = 0.4) -> Array:
    """Returns a sine at half of full scale, int16."""
    times = np.arange(round(rate_hz * seconds)) / rate_hz
    return np.round(16384 * np.sin(2 * np.pi * frequency_hz * times)).astype(np.int16)


def write_wave(path: Path, samples: Array, *, rate_hz: int) -> Path:
    """Writes int16 samples, (n,) or (n, channels)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())
    return path

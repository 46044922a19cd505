"""Features: a paper-sized spectrogram, a stream of overlapping ones, a video image; librosa beside it if installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edge_sdk import features
from edge_sdk.features import PAPER, SpectrogramStream

REPEATS = 15
HOP = 50 * PAPER.hop  # a window every half second, as a device makes them
MEDIA_LIMIT_MS = 50.0


def median_ms(work: Callable[[], object]) -> float:
    """Returns the median time of one call, ms."""
    took = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return 1e3 * float(np.median(took))


def librosa_way(wave: Any) -> Any:
    """The same features through librosa; None where it is not installed."""
    try:
        import librosa
    except ImportError:
        return None

    def work() -> Any:
        values = np.log(np.abs(librosa.stft(wave, n_fft=PAPER.n_fft, hop_length=PAPER.hop)) + 1e-7)[:, : PAPER.frames]
        return (values - values.mean()) / values.std()

    return work


def streamed(wave: Any) -> tuple[float, float]:
    """Returns the time per window of a stream, ms, and the frames computed per window."""
    stream, windows = SpectrogramStream(), 0
    start = time.perf_counter()
    for at in range(0, len(wave), 320):
        stream.push(wave[at : at + 320])
        while stream.window(HOP * windows) is not None:
            windows += 1
    return 1e3 * (time.perf_counter() - start) / windows, stream.computed / windows


def run() -> list[dict[str, Any]]:
    """Returns rows {name, value, unit, reference, ratio}; a ratio below 1 is faster than the reference."""
    rng = np.random.default_rng(0)
    wave = rng.uniform(-0.5, 0.5, PAPER.length).astype(np.float32)
    ours = median_ms(lambda: features.spectrogram(wave))
    theirs = librosa_way(wave)
    if theirs is not None:
        theirs()  # compiles and caches on first use
    reference, peer = ("librosa.stft, same run", median_ms(theirs)) if theirs else ("limit 50 ms", MEDIA_LIMIT_MS)
    long = rng.uniform(-0.5, 0.5, 30 * PAPER.rate_hz).astype(np.float32)
    stream_ms, frames = np.median([streamed(long) for _ in range(5)], axis=0).tolist()
    clip = rng.integers(0, 256, (30, 480, 640, 3), np.uint8)
    video = median_ms(lambda: features.stack_frames(clip))
    return [
        _row("features.spectrogram", ours, reference, ours / peer),
        _row("features.spectrogram_stream_per_window", stream_ms, "our batch spectrogram, same run", stream_ms / ours),
        {
            "name": "features.spectrogram_stream_frames_per_window",
            "value": round(frames, 1),
            "unit": "frames",
            "reference": f"{PAPER.frames} of a window by itself",
            "ratio": round(frames / PAPER.frames, 3),
        },
        _row("features.stack_frames_640x480", video, f"limit {MEDIA_LIMIT_MS:g} ms", video / MEDIA_LIMIT_MS),
    ]


def _row(name: str, value: float, reference: str, ratio: float) -> dict[str, Any]:
    return {"name": name, "value": round(value, 3), "unit": "ms", "reference": reference, "ratio": round(ratio, 3)}

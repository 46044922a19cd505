"""Sound as spectrograms: of one window, and of the overlapping windows of a stream with every hop computed once.

Source: Ma, Liu, Zhou, Wang, Tong, "Multimodal federated learning with blockwise aggregation" (MBA), appendix A.1:
16 kHz, tiled to 3 s, clipped to ±1, log-magnitude of the centred STFT (Hann, 512, hop 159), the first 300 of its 302
frames, standardised per sample.

The FFT runs in float64, as librosa's does: beside a pure tone the other bins lie below what float32 resolves, and the
logarithm would show the rounding. A sample without contrast (silence) standardises to zeros, not to amplified rounding.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edge_sdk.core.errors import DataError
from edge_sdk.core.feature import LogSpectrogram
from edge_sdk.core.records import Array, Float32

Float64 = NDArray[np.float64]

PAPER = LogSpectrogram()

_FLAT = 1e-5  # standard deviation below which a spectrogram has no contrast
_BLOCK = 32  # frames that are computed together


def tile(wave: Array, length: int) -> Float64:
    """Returns the first `length` samples of the waveform repeated without end, clipped to ±1; float64 (length,).

    Raises:
        DataError: no samples, or more than one dimension.
    """
    if wave.ndim != 1 or not len(wave):
        raise DataError(f"a waveform has shape (samples,) with at least one sample, found {wave.shape}")
    return np.clip(np.resize(wave.astype(np.float64), length), -1.0, 1.0)


def spectrogram(wave: Array, config: LogSpectrogram = PAPER) -> Float32:
    """Returns the standardised log-magnitude spectrogram, float32 (1, n_fft/2 + 1, frames).

    Args:
        wave: (n,), full scale ±1, at `config.rate_hz`.
        config: sizes.
    """
    cut = _cut(_padded(tile(wave, config.length), config), config)
    return _standardised(_log_magnitude(cut[: config.frames], config).T)


def _padded(wave: Float64, config: LogSpectrogram) -> Float64:
    if config.pad == "none":
        return wave
    return np.pad(wave, config.reach, mode=config.pad)


def _cut(samples: Float64, config: LogSpectrogram) -> Float64:
    """Returns the frames of n_fft samples, a view (count, n_fft)."""
    return sliding_window_view(samples, config.n_fft)[:: config.hop]


def _log_magnitude(frames: Float64, config: LogSpectrogram) -> Float32:
    """(count, n_fft) → float32 (count, n_fft/2 + 1)."""
    out: Float32 = np.empty((len(frames), config.shape[1]), np.float32)
    # Block by block: what is between the steps stays in the cache, and in memory that need not be fetched anew.
    for at in range(0, len(frames), _BLOCK):
        spectrum = np.fft.rfft(frames[at : at + _BLOCK] * _hann(config.n_fft), axis=1)
        np.abs(spectrum.astype(np.complex64), out=out[at : at + _BLOCK])
    out += np.float32(config.floor)
    return np.log(out, out=out)


@lru_cache(maxsize=8)
def _hann(n: int) -> Float64:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)


def _standardised(values: Float32) -> Float32:
    """(frequencies, frames) → (1, frequencies, frames) of mean 0 and deviation 1; all 0 without contrast."""
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    if std < _FLAT:
        return np.zeros((1, *values.shape), np.float32)
    return np.ascontiguousarray((values - np.float32(mean)) / np.float32(std))[None]


class SpectrogramStream:
    """Spectrograms of overlapping windows of one long waveform; every frame inside a window is computed once.

    Frames lie on the stream's own grid of hops. A window that begins on the grid is equal to `spectrogram` of its
    samples; one that does not is moved to the grid, by at most half a hop (5 ms). Frames that look beyond their window,
    at the padding or at its repetition where it is shorter than `config.seconds`, are computed for that window alone.

    Args:
        config: sizes.
        keep_s: how far back a window may begin, s; at least one window.
    """

    def __init__(self, config: LogSpectrogram = PAPER, keep_s: float = 8.0) -> None:
        self.config = config
        self.computed = 0  # frames computed so far, those at the edges of windows included
        keep = max(keep_s, config.seconds)
        self._frames = np.zeros((math.ceil(keep * config.rate_hz / config.hop) + 2, config.shape[1]), np.float32)
        self._piece = _BLOCK * config.hop  # samples taken at once: many frames in one call cost less than one each
        held = len(self._frames) * config.hop + config.n_fft + config.reach  # that frames to come or a window need
        self._wave = np.zeros(2 * (held + self._piece))  # twice, so that samples are seldom moved
        self._first = -config.reach  # position of the wave's first sample; what is before the stream is zero
        self.position = 0  # samples pushed so far
        self._next = 0  # number of the next frame; frame i begins at sample i · hop − reach

    def push(self, samples: Array) -> None:
        """Takes the next samples, (n,), full scale ±1."""
        for at in range(0, len(samples), self._piece):
            piece = samples[at : at + self._piece]
            if self.position + len(piece) - self._first > len(self._wave):
                self._advance()
                self._forget()
            start = self.position - self._first
            np.clip(piece, -1.0, 1.0, out=self._wave[start : start + len(piece)])
            self.position += len(piece)
            if self.position - self._next * self.config.hop >= self._piece:
                self._advance()

    def _advance(self) -> None:
        """Computes the frames that the samples so far complete."""
        config, start = self.config, self._next * self.config.hop - self.config.reach - self._first
        wave = self._wave[start : self.position - self._first]
        count = (len(wave) - config.n_fft) // config.hop + 1
        if count > 0:
            rows = np.arange(self._next, self._next + count)
            self._frames[rows % len(self._frames)] = _log_magnitude(_cut(wave, config)[:count], config)
            self.computed += count
            self._next += count

    def _forget(self) -> None:
        """Drops samples that no frame to come and no window needs."""
        oldest = max(0, self._next - len(self._frames)) * self.config.hop - self.config.reach
        kept = self._wave[oldest - self._first : self.position - self._first].copy()
        self._wave[: len(kept)] = kept
        self._first = oldest

    def window(self, start: int, samples: int | None = None) -> Float32 | None:
        """Returns the spectrogram of the samples from `start` on; None: not all there yet, or forgotten.

        Args:
            start: position of the window's first sample in the stream, moved to the nearest hop.
            samples: length of the window; None, or more than that: `config.length`.
        """
        config = self.config
        length = config.length if samples is None else min(samples, config.length)
        first = round(start / config.hop)
        if first < 0 or self.position < first * config.hop + length:
            return None
        self._advance()
        if first < self._next - len(self._frames):
            return None
        begin, end = self._inside(length)
        values: Float32 = np.empty((config.frames, config.shape[1]), np.float32)
        values[begin:end] = self._frames[np.arange(first + begin, first + end) % len(self._frames)]
        at = first * config.hop - self._first
        wave = self._wave[at : at + length]
        reached = begin * config.hop + config.n_fft  # samples that the first frames look at, and some
        if end == config.frames and reached <= length:
            values[:begin] = _log_magnitude(_cut(_padded(wave[:reached], config), config)[:begin], config)
        else:
            frames = _cut(_padded(tile(wave, config.length), config), config)
            values[:begin] = _log_magnitude(frames[:begin], config)
            values[end:] = _log_magnitude(frames[end : config.frames], config)
        self.computed += config.frames - (end - begin)
        return _standardised(values.T)

    def samples(self, start: int, stop: int) -> Float64:
        """Returns samples of the stream as they were pushed, clipped; a view, as long as a window may begin there."""
        return self._wave[start - self._first : stop - self._first]

    def _inside(self, length: int) -> tuple[int, int]:
        """Returns which of a window's frames look at nothing but its own `length` samples: from, to (exclusive)."""
        config = self.config
        begin = min(-(-config.reach // config.hop), config.frames)
        end = min((length + config.reach - config.n_fft) // config.hop + 1, config.frames)
        return begin, max(begin, end)


__all__ = ["PAPER", "SpectrogramStream", "spectrogram", "tile"]

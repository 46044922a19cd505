"""Features: what a sensor delivers, turned into the tensor an encoder takes. numpy only.

Source: Ma, Liu, Zhou, Wang, Tong, "Multimodal federated learning with blockwise aggregation" (MBA), appendix A.1.

    audio     16 kHz, tiled to 3 s, clipped to ±1, log-magnitude of the centred STFT (Hann, 512, hop 159),
              the first 300 of its 302 frames, standardised per sample                       → (1, 257, 300)
    video     3 uniform frames, sides cropped to a square, 224 × 224, stacked vertically     → (3, 672, 224)
    inertial  resampled to a rate; optionally turned until gravity points along +z           → (channels, length)

The FFT runs in float64, as librosa's does: beside a pure tone the other bins lie below what float32 resolves, and the
logarithm would show the rounding. A sample without contrast (silence) standardises to zeros, not to amplified rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array, Float32, Int64

Float64 = NDArray[np.float64]

_FLAT = 1e-5  # standard deviation below which a spectrogram has no contrast
_BLOCK = 32  # frames that are computed together
_ZEROS = 16  # zero crossings of the resampling kernel on each side


@dataclass(frozen=True, slots=True)
class SpectrogramConfig:
    """How a waveform becomes a spectrogram; the defaults are the paper's."""

    rate_hz: int = 16_000
    seconds: float = 3.0  # what a shorter waveform is tiled to
    n_fft: int = 512
    hop: int = 159  # samples
    frames: int = 300  # the first so many of the centred STFT
    floor: float = 1e-7  # added to the magnitude before the logarithm

    def __post_init__(self) -> None:
        if self.frames > self.length // self.hop + 1:
            raise DataError(f"{self.seconds:g} s have {self.length // self.hop + 1} frames, not {self.frames}")

    @property
    def length(self) -> int:
        """Samples of one waveform."""
        return round(self.rate_hz * self.seconds)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the spectrogram: (1, frequencies, frames)."""
        return 1, self.n_fft // 2 + 1, self.frames


PAPER = SpectrogramConfig()


def tile(wave: Array, length: int) -> Float64:
    """Returns the first `length` samples of the waveform repeated without end, clipped to ±1; float64 (length,).

    Raises:
        DataError: no samples, or more than one dimension.
    """
    if wave.ndim != 1 or not len(wave):
        raise DataError(f"a waveform has shape (samples,) with at least one sample, found {wave.shape}")
    return np.clip(np.resize(wave.astype(np.float64), length), -1.0, 1.0)


def spectrogram(wave: Array, config: SpectrogramConfig = PAPER) -> Float32:
    """Returns the standardised log-magnitude spectrogram, float32 (1, n_fft/2 + 1, frames).

    Args:
        wave: (n,), full scale ±1, at `config.rate_hz`.
        config: sizes.
    """
    half = config.n_fft // 2
    padded = np.pad(tile(wave, config.length), half)
    return _standardised(_log_magnitude(_cut(padded, config.frames, config), config).T)


def _cut(samples: Float64, count: int, config: SpectrogramConfig) -> Float64:
    """Returns the first `count` frames of n_fft samples, a view (count, n_fft)."""
    return sliding_window_view(samples, config.n_fft)[:: config.hop][:count]


def _log_magnitude(frames: Float64, config: SpectrogramConfig) -> Float32:
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
    samples; one that does not is moved to the grid, by at most half a hop (5 ms). The first frames of a window look at
    what lies before it, which is zero by definition: these few are computed for every window.

    Args:
        config: sizes.
        keep_s: how far back a window may begin, s; at least one window.
    """

    def __init__(self, config: SpectrogramConfig = PAPER, keep_s: float = 8.0) -> None:
        self.config = config
        self.computed = 0  # frames computed so far, those at the edges of windows included
        self._half = config.n_fft // 2
        self._edge = -(-self._half // config.hop)  # frames of a window that reach before it
        keep = max(keep_s, config.seconds)
        self._frames = np.zeros((math.ceil(keep * config.rate_hz / config.hop) + 2, config.shape[1]), np.float32)
        self._tail = np.zeros(self._half)  # newest samples: those that frames to come, or an edge, still need
        self._tail_start = -self._half  # position of the tail's first sample
        self._fresh: list[Float64] = []  # samples behind the tail
        self.position = 0  # samples pushed so far
        self._next = 0  # number of the next frame; frame i is centred on sample i · hop

    def push(self, samples: Array) -> None:
        """Takes the next samples, (n,), full scale ±1."""
        self._fresh.append(np.clip(samples.astype(np.float64), -1.0, 1.0))
        self.position += len(samples)
        if sum(map(len, self._fresh)) >= _BLOCK * self.config.hop:  # many frames in one call cost less than one each
            self._advance()

    def _advance(self) -> None:
        """Computes the frames that the samples so far complete."""
        self._tail = np.concatenate([self._tail, *self._fresh])
        self._fresh.clear()
        config, first = self.config, self._next * self.config.hop - self._half - self._tail_start
        count = (len(self._tail) - first - config.n_fft) // config.hop + 1
        if count > 0:
            rows = np.arange(self._next, self._next + count)[-len(self._frames) :]
            start = first + (count - len(rows)) * config.hop
            fresh = _log_magnitude(_cut(self._tail[start:], len(rows), config), config)
            self._frames[rows % len(self._frames)] = fresh
            self.computed += len(rows)
            self._next += count
        self._forget()

    def window(self, start: int) -> Float32 | None:
        """Returns the spectrogram of the samples from `start` on; None: not all there yet, or forgotten.

        Args:
            start: position of the window's first sample in the stream, moved to the nearest hop.
        """
        config = self.config
        first = round(start / config.hop)
        if self.position < (first + config.frames - 1) * config.hop + self._half:
            return None
        self._advance()
        if first < max(0, self._next - len(self._frames)) or first + config.frames > self._next:
            return None
        values = self._frames[np.arange(first, first + config.frames) % len(self._frames)]
        at = first * config.hop - self._tail_start
        inside = self._tail[at : at + self._edge * config.hop + self._half]
        edge = min(self._edge, config.frames)
        padded = np.pad(inside, (self._half, config.n_fft))
        values[:edge] = _log_magnitude(_cut(padded, edge, config), config)
        self.computed += edge
        return _standardised(values.T)

    def _forget(self) -> None:
        """Drops samples that no frame and no edge needs; in large steps, so that little is moved."""
        oldest = max(0, self._next - len(self._frames)) * self.config.hop - self._half
        surplus = oldest - self._tail_start
        if surplus > self.config.rate_hz:
            self._tail = self._tail[surplus:].copy()
            self._tail_start = oldest


class Resampler:
    """A waveform at another rate: windowed sinc, polyphase, block by block without seams.

    Output sample k belongs to input time k / rate_out: the filter delays nothing, it waits for `wait` input samples.

    Args:
        rate_in: samples per second that come in.
        rate_out: samples per second that go out.
    """

    def __init__(self, rate_in: int, rate_out: int) -> None:
        if rate_in < 1 or rate_out < 1:
            raise DataError(f"rates must be at least 1 Hz, found {rate_in} and {rate_out}")
        divisor = math.gcd(rate_in, rate_out)
        self._up, self._down = rate_out // divisor, rate_in // divisor
        stretch = max(1.0, self._down / self._up)  # the kernel also keeps out what the lower rate cannot hold
        self.wait = math.ceil(_ZEROS * stretch)
        self._taps = _kernel(self._up, self.wait, stretch)  # (up, 2 · wait)
        self._tail: Float32 = np.zeros(self.wait - 1, np.float32)
        self._tail_start = -(self.wait - 1)  # input position of the tail's first sample
        self._next = 0  # number of the next output sample

    def push(self, samples: Array) -> Float32:
        """Returns what the input so far completes, float32 (m,)."""
        if self._up == self._down:
            return samples.astype(np.float32)
        self._tail = np.concatenate([self._tail, samples.astype(np.float32)])
        last = self._tail_start + len(self._tail) - 1 - self.wait  # newest input whose neighbours are all there
        stop = ((last + 1) * self._up - 1) // self._down + 1  # outputs at or before it, fractions included
        if stop <= self._next:
            return np.zeros(0, np.float32)
        at = np.arange(self._next, stop, dtype=np.int64) * self._down
        base, phase = at // self._up, at % self._up
        views = sliding_window_view(self._tail, 2 * self.wait)[base - (self.wait - 1) - self._tail_start]
        self._next = stop
        surplus = stop * self._down // self._up - (self.wait - 1) - self._tail_start
        self._tail, self._tail_start = self._tail[surplus:], self._tail_start + surplus
        return np.asarray(np.einsum("nt,nt->n", views, self._taps[phase]), np.float32)


@lru_cache(maxsize=8)
def _kernel(up: int, wait: int, stretch: float) -> Float32:
    """Returns the taps of each phase, float32 (up, 2 · wait): weights of the inputs −wait + 1 … wait around it."""
    offsets = np.arange(-wait + 1, wait + 1)[None, :] - np.arange(up)[:, None] / up  # (up, 2 · wait), input samples
    cutoff = 0.94 / stretch
    taper = np.i0(9.0 * np.sqrt(np.clip(1 - (offsets / wait) ** 2, 0, None))) / np.i0(9.0)
    taps = np.sinc(offsets * cutoff) * cutoff * taper
    return np.asarray(taps / taps.sum(axis=1, keepdims=True), np.float32)  # a constant stays what it is


def uniform_indices(total: int, count: int) -> Int64:
    """Returns the middle frame of each of `count` equal parts of a clip; int64 (count,)."""
    if total < 1 or count < 1:
        raise DataError(f"cannot take {count} frames out of {total}")
    return ((2 * np.arange(count, dtype=np.int64) + 1) * total) // (2 * count)


def side_crop(image: Array) -> Array:
    """Returns the middle square of an image, a view: (height, width, …) → (n, n, …)."""
    height, width = image.shape[:2]
    n = min(height, width)
    top, left = (height - n) // 2, (width - n) // 2
    return image[top : top + n, left : left + n]


def resize(image: Array, height: int, width: int) -> Float32:
    """Returns the image at another size, float32 (height, width, channels): triangle filter, widened to shrink."""
    if image.ndim != 3 or not image.size:
        raise DataError(f"an image has shape (height, width, channels), found {image.shape}")
    rows = _triangle(image.shape[0], height)  # (height, h)
    columns = _triangle(image.shape[1], width)  # (width, w)
    planes = np.moveaxis(image, 2, 0).astype(np.float32)  # (h, w, c) -> (c, h, w)
    return np.ascontiguousarray(np.moveaxis(rows @ planes @ columns.T, 0, 2))


@lru_cache(maxsize=16)
def _triangle(n_in: int, n_out: int) -> Float32:
    """Returns the weights of a one-dimensional resize, float32 (n_out, n_in); each row sums to 1."""
    scale = n_in / n_out
    centres = (np.arange(n_out)[:, None] + 0.5) * scale - 0.5
    weights = np.clip(1 - np.abs(np.arange(n_in)[None, :] - centres) / max(1.0, scale), 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def stack_frames(frames: Array, *, count: int = 3, size: int = 224) -> Float32:
    """Returns uniform frames of a clip, one above the other, float32 (channels, count · size, size).

    Values stay 0 … 255, as the camera driver gives them: the spec's mean and std bring them to the encoder's range.

    Args:
        frames: uint8 (time, height, width, channels).
        count: frames to take.
        size: height and width of each, pixels.
    """
    if frames.ndim != 4 or frames.dtype != np.uint8:
        raise DataError(f"a clip is uint8 (time, height, width, channels), found {frames.dtype} {frames.shape}")
    chosen = [resize(side_crop(frames[i]), size, size) for i in uniform_indices(len(frames), count)]
    stacked = np.concatenate(chosen)  # (count · size, size, channels)
    return np.ascontiguousarray(np.moveaxis(stacked, 2, 0))


def resample_series(times_ns: Int64, values: Array, *, rate_hz: float, start_ns: int, length: int) -> Float32:
    """Returns the series on an even grid by linear interpolation, float32 (channels, length); ends are held.

    Args:
        times_ns: (n,) strictly increasing, ns.
        values: (n, channels).
        rate_hz: of the grid.
        start_ns: time of the first grid point, ns.
        length: grid points.
    """
    if values.ndim != 2 or times_ns.shape != (len(values),) or not len(values):
        raise DataError(f"a series has times (n,) and values (n, channels), found {times_ns.shape} and {values.shape}")
    if (np.diff(times_ns) <= 0).any():
        raise DataError("the times of a series must increase")
    grid = np.arange(length) * (1e9 / rate_hz)
    known = (times_ns - start_ns).astype(np.float64)  # small numbers: float64 does not resolve ns since boot plus days
    return np.stack([np.interp(grid, known, column) for column in values.T]).astype(np.float32)


def align_gravity(values: Array) -> Float32:
    """Turns the sensor's axes until the mean acceleration points along +z; the smallest turn that does.

    Args:
        values: (3 · k, length): acceleration x, y, z first, then other vectors in the same axes (gyroscope …).

    Returns:
        float32 (3 · k, length); unchanged where the mean acceleration is too small to have a direction.
    """
    if values.ndim != 2 or len(values) % 3 or not values.size:
        raise DataError(f"vectors have 3 channels each, (3 · k, length), found {values.shape}")
    vectors = values.reshape(-1, 3, values.shape[1]).astype(np.float64)  # (k, 3, length)
    mean = vectors[0].mean(axis=1)
    norm = float(np.linalg.norm(mean))
    if norm < 1e-6:
        return values.astype(np.float32)
    x, y, z = mean / norm
    if z < -1 + 1e-9:  # upside down: every half turn about a level axis does; take x
        turn = np.diag([1.0, -1.0, -1.0])
    else:  # Rodrigues' formula for the turn that takes (x, y, z) to (0, 0, 1)
        skew = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])
        turn = np.eye(3) + skew + skew @ skew / (1 + z)
    return (turn @ vectors).reshape(values.shape).astype(np.float32)


__all__ = [
    "PAPER",
    "Resampler",
    "SpectrogramConfig",
    "SpectrogramStream",
    "align_gravity",
    "resample_series",
    "resize",
    "side_crop",
    "spectrogram",
    "stack_frames",
    "tile",
    "uniform_indices",
]

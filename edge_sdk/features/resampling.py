"""Other rates: a waveform without seams, a window of a time series, samples with times of their own."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array, Float32, Int64

_ZEROS = 16  # zero crossings of the resampling kernel on each side


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


def decimate(values: Array, factor: int) -> Float32:
    """Returns every `factor`-th sample, without what their rate cannot hold, float32 (channels, ⌈length / factor⌉).

    Windowed sinc without delay. Beyond its ends the window goes on as its own mirror image, turned about the end point,
    so that neither a level nor a slope is bent there.

    Args:
        values: (channels, length).
        factor: whole number, at least 1.
    """
    if values.ndim != 2 or not values.size or factor < 1:
        raise DataError(f"a series has shape (channels, length), a factor is 1 or more; found {values.shape}, {factor}")
    if factor == 1:
        return values.astype(np.float32)
    wait = _ZEROS * factor
    padded = np.pad(values.astype(np.float64), ((0, 0), (wait - 1, wait)), mode="reflect", reflect_type="odd")
    views = sliding_window_view(padded, 2 * wait, axis=1)[:, ::factor]  # (channels, length / factor, taps)
    return np.asarray(views @ _kernel(1, wait, float(factor))[0], np.float32)


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


__all__ = ["Resampler", "decimate", "resample_series"]

"""What a window looks like, channel by channel: few numbers, from raw samples before a feature standardises them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.records import Array

Float64 = NDArray[np.float64]

_LONG = 4096  # samples that noise is measured on
_LEVELS = 32  # a signal of fewer different values has its samples at its extremes anyway


@dataclass(frozen=True, slots=True)
class Summary:
    """One window of one modality; arrays (C,)."""

    samples: int  # one after the other in time
    mean: Float64
    std: Float64
    low: Float64
    high: Float64
    noise: Float64  # standard deviation of what changes from sample to sample, spikes left out
    white: Float64  # share of the variance that is such noise: 1 for white noise, near 0 for a movement
    clipped: Float64  # share of samples that lie exactly at the window's highest value, or lowest


def of_series(values: Array) -> Summary:
    """Returns the summary of a time series.

    Args:
        values: (C, n).
    """
    x = values.astype(np.float64)
    std = x.std(axis=1)
    noise, white = _noise(x[:, :_LONG])
    return Summary(x.shape[1], x.mean(axis=1), std, x.min(axis=1), x.max(axis=1), noise, white, _clipped(x))


def of_images(pixels: Array, count: int) -> Summary:
    """Returns the summary of images; what counts over time is their brightness.

    Args:
        pixels: (C, height, width): `count` images one above the other.
        count: images.
    """
    x = pixels.reshape(len(pixels), count, -1)
    bright = x.mean(axis=2, dtype=np.float64)  # (C, count)
    none = np.zeros(len(x))
    clipped = _clipped(x.reshape(len(x), -1))
    return Summary(
        count, bright.mean(axis=1), bright.std(axis=1), x.min(axis=(1, 2)), x.max(axis=(1, 2)), none, none, clipped
    )


def _noise(x: Float64) -> tuple[Float64, Float64]:
    """Returns noise and whiteness from second differences, in which a movement is small; each (C,)."""
    if x.shape[1] < 8:
        return np.zeros(len(x)), np.zeros(len(x))
    rough = np.diff(x, n=2, axis=1)  # white noise of deviation σ: deviation √6 σ
    noise = np.median(np.abs(rough), axis=1) / (0.6745 * 6**0.5)
    variance = x.var(axis=1)
    share = np.divide(noise**2, variance, out=np.zeros(len(x)), where=variance > 0)
    return noise, np.minimum(share, 1.0)


def _clipped(x: Array) -> Float64:
    n = x.shape[1]
    extreme = np.maximum(
        (x == x.max(axis=1, keepdims=True)).mean(axis=1), (x == x.min(axis=1, keepdims=True)).mean(axis=1)
    )
    some = x[:, :: max(1, n // 1024)]
    fine = np.array([len(np.unique(row)) >= _LEVELS for row in some])
    return np.where(fine, extreme, 0.0)


__all__ = ["Summary", "of_images", "of_series"]

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

    It is made of every window before its prediction, so that it works on whole arrays and sorts once: medians and
    distinct values of numpy's own functions took four times as long.

    Args:
        values: (C, n).
    """
    x = values.astype(np.float64)
    n = x.shape[1]
    mean = np.add.reduce(x, axis=1) / n
    off = x - mean[:, None]
    std = np.sqrt(np.einsum("ij,ij->i", off, off) / n)
    low, high = np.minimum.reduce(x, axis=1), np.maximum.reduce(x, axis=1)
    noise, white = _noise(x[:, :_LONG])
    return Summary(n, mean, std, low, high, noise, white, _clipped(x, low, high))


def of_images(pixels: Array, count: int) -> Summary:
    """Returns the summary of images; what counts over time is their brightness.

    Args:
        pixels: (C, height, width): `count` images one above the other.
        count: images.
    """
    x = pixels.reshape(len(pixels), count, -1)
    bright = x.mean(axis=2, dtype=np.float64)  # (C, count)
    none = np.zeros(len(x))
    flat = x.reshape(len(x), -1)
    low, high = flat.min(axis=1), flat.max(axis=1)
    return Summary(count, bright.mean(axis=1), bright.std(axis=1), low, high, none, none, _clipped(flat, low, high))


def _noise(x: Float64) -> tuple[Float64, Float64]:
    """Returns noise and whiteness from second differences, in which a movement is small; each (C,)."""
    if x.shape[1] < 8:
        return np.zeros(len(x)), np.zeros(len(x))
    steps = x[:, 1:] - x[:, :-1]
    rough = np.abs(steps[:, 1:] - steps[:, :-1])  # white noise of deviation σ: deviation √6 σ
    m = rough.shape[1]
    middle = ((m - 1) // 2, m // 2)
    rough.partition(middle, axis=1)
    noise = (rough[:, middle[0]] + rough[:, middle[1]]) / (2 * 0.6745 * 6**0.5)  # of the median
    off = x - (np.add.reduce(x, axis=1) / x.shape[1])[:, None]
    variance = np.einsum("ij,ij->i", off, off) / x.shape[1]
    share = np.divide(noise * noise, variance, out=np.zeros(len(x)), where=variance > 0)
    return noise, np.minimum(share, 1.0)


def _clipped(x: Array, low: Array, high: Array) -> Float64:
    n = x.shape[1]
    extreme = np.maximum(
        np.add.reduce(x == high[:, None], axis=1), np.add.reduce(x == low[:, None], axis=1)
    )  # samples, (C,)
    some = np.sort(x[:, :: max(1, n // 1024)], axis=1)
    levels = 1 + np.add.reduce(some[:, 1:] != some[:, :-1], axis=1)
    return np.where(levels >= _LEVELS, extreme / n, 0.0)


__all__ = ["Summary", "of_images", "of_series"]

"""Which track a modality gets: by its feature, else by the number of dimensions of its shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edge_sdk import features
from edge_sdk.core.clock import NS
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.feature import Inertial
from edge_sdk.core.records import Chunk, Float32
from edge_sdk.core.spec import ModalitySpec, WindowSpec
from edge_sdk.streams.gathered import ClipTrack, TextTrack
from edge_sdk.streams.sound import SpectrogramTrack
from edge_sdk.streams.tracks import NewestTrack, Part, SeriesTrack, Times, Track

_SLACK = 0.05  # a sensor faster than the spec's rate by no more than this share of it is not filtered


class InertialTrack(Track):
    """A time series from a sensor of whatever rate: interpolated on a multiple of the spec's rate, filtered, decimated.

    The sensor's period is what its first chunks say, or the feature's `source_hz`.

    Args:
        spec: shape (channels, length), rate.
        times: the window grid.
        window: the least quality.
        feature: options.
    """

    def __init__(self, spec: ModalitySpec, times: Times, window: WindowSpec, feature: Inertial) -> None:
        super().__init__(spec, times)
        self._window, self._gravity = window, feature.gravity
        self._held: list[Chunk] = []  # came before the period was known
        self._series = self._made(NS / feature.source_hz) if feature.source_hz else None

    def _made(self, period_ns: float) -> SeriesTrack:
        factor = max(1, math.ceil(NS / period_ns / self.spec.rate_hz - _SLACK))

        def extract(values: Float32) -> Float32:
            values = features.decimate(values, factor)
            return features.align_gravity(values) if self._gravity else values

        return SeriesTrack(
            self.spec, self._times, self._window, factor=factor, source_ns=period_ns, extract=extract,
            counters=self.counters,
        )  # fmt: skip

    @property
    def pending(self) -> int:
        held = sum(len(chunk.data) for chunk in self._held)
        return held if self._series is None else self._series.pending

    def push(self, chunk: Chunk, now_ns: int) -> list[Part]:
        if self._series is not None:
            return self._series.push(chunk, now_ns)
        self._held.append(chunk)
        period_ns = _period_ns(self._held)
        if period_ns <= 0:
            return []
        self._series = self._made(period_ns)
        held, self._held = self._held, []
        return [part for early in held for part in self._series.push(early, now_ns)]


def _period_ns(chunks: list[Chunk]) -> float:
    """Returns the sample period that chunks tell, ns; 0: they do not yet."""
    newest = chunks[-1]
    if newest.period_ns > 0:
        return float(newest.period_ns)
    times = [c.times_ns if c.times_ns is not None else np.array([c.t_ns]) for c in chunks if len(c.data)]
    steps = np.diff(np.concatenate(times)) if times else np.zeros(0)
    return float(np.median(steps)) if len(steps) else 0.0


def make_track(spec: ModalitySpec, window: WindowSpec, times: Times) -> Track:
    """Returns the track that a modality gets.

    Raises:
        ConfigError: the spec's shape, rate and window length contradict each other.
    """
    if spec.feature is not None:
        return _BY_FEATURE[spec.feature.name](spec, times, window, spec.feature)
    return _BY_DIMENSIONS[len(spec.shape)](spec, window, times)


def _series(spec: ModalitySpec, window: WindowSpec, times: Times) -> Track:
    expected = round(spec.rate_hz * window.length_s)
    if spec.rate_hz <= 0 or spec.shape[1] != expected:
        raise ConfigError(
            f"modality {spec.name!r}: shape {spec.shape} is (channels, length), but a window of {window.length_s:g} s "
            f"at rate_hz = {spec.rate_hz:g} has length {expected}: correct the shape, the rate or window.length_s"
        )
    return SeriesTrack(spec, times, window)


def _newest(spec: ModalitySpec, window: WindowSpec, times: Times) -> Track:
    return NewestTrack(spec, times)


_BY_FEATURE: dict[str, Callable[[ModalitySpec, Times, WindowSpec, Any], Track]] = {
    "frames": ClipTrack,
    "inertial": InertialTrack,
    "log_spectrogram": SpectrogramTrack,
    "text": TextTrack,
}
_BY_DIMENSIONS: dict[int, Callable[[ModalitySpec, WindowSpec, Times], Track]] = {1: _newest, 2: _series, 3: _newest}

__all__ = ["InertialTrack", "make_track"]

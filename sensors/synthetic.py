"""A sensor that makes up its data: for demonstrations, benchmarks, and trying what a device does when sensors fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from edge_sdk.core.clock import NS
from edge_sdk.core.config import parse
from edge_sdk.core.errors import SensorUnavailable
from edge_sdk.core.interfaces import Driver
from edge_sdk.core.records import Array, Chunk, Int64
from edge_sdk.core.spec import Model

_POOL = 8  # images that are made in advance: making one takes longer than moving it


class Options(Model):
    """Keys of `[sensors.<modality>.options]`."""

    kind: Literal["sine", "noise", "feature", "image"] = "sine"
    rate_hz: float = Field(default=50.0, gt=0)
    channels: int = Field(default=3, ge=1)  # features of a vector, channels of a series or image
    height: int = Field(default=32, ge=1)  # of an image
    width: int = Field(default=32, ge=1)
    chunk: int = Field(default=10, ge=1)  # samples per chunk
    frequency_hz: float = Field(default=1.0, gt=0)  # of the sine
    jitter_s: float = Field(default=0.0, ge=0)  # time stamps are off by up to this, and say so
    drift_ppm: float = 0.0  # the sensor's clock runs this much fast
    gap_every_s: float = Field(default=0.0, ge=0)  # 0: no gaps
    gap_s: float = Field(default=0.5, ge=0)  # length of a gap
    duration_s: float = Field(default=0.0, ge=0)  # then the source is exhausted; 0: endless
    fail_after_s: float = Field(default=0.0, ge=0)  # after each opening; 0: never
    fail_opens: int = Field(default=0, ge=0)  # the first so many attempts to open fail
    seed: int = 0


class SyntheticDriver(Driver):
    """Sine, noise, feature vectors or images at a given rate, with the faults that are asked for."""

    def __init__(self, stream: str, options: Mapping[str, Any]) -> None:
        super().__init__(stream, options)
        self._options = o = parse(options, Options, f"sensors.{stream}.options")
        self._rng = np.random.default_rng(o.seed)
        self._period_ns = round(NS / o.rate_hz)
        self._true_period = NS / o.rate_hz / (1 + o.drift_ppm * 1e-6)  # ns of the stream clock
        makers: dict[str, Callable[[Int64], Array]] = {
            "sine": self._sine, "noise": self._noise, "feature": self._noise, "image": self._image,
        }  # fmt: skip
        self._make = makers[o.kind]
        self._pool = self._rng.integers(0, 256, (_POOL, o.channels, o.height, o.width) if o.kind == "image" else 0)
        self._pool = self._pool.astype(np.uint8)
        self._closed = threading.Event()
        self._opens = 0
        self._opened_ns = 0
        self._start_ns: int | None = None
        self._sample = 0  # samples made since the first opening
        self._seq = 0
        self._gap = False

    def open(self) -> None:
        self._opens += 1
        if self._opens <= self._options.fail_opens:
            raise SensorUnavailable(f"sensors.{self.stream}: fails to open {self._options.fail_opens} times, as asked")
        self._closed.clear()
        self._opened_ns = self.now_ns()
        if self._start_ns is None:
            self._start_ns = self._opened_ns if self.epoch_ns is None else self.epoch_ns
        self._skip_to(self._opened_ns)
        self._seq = 0

    def read(self, timeout_s: float) -> Chunk | None:
        o = self._options
        assert self._start_ns is not None
        if o.duration_s and self._sample >= round(o.duration_s * o.rate_hz):
            raise EOFError(f"sensors.{self.stream}: {o.duration_s:g} s are over")
        if o.fail_after_s and self.now_ns() - self._opened_ns > o.fail_after_s * NS:
            raise SensorUnavailable(f"sensors.{self.stream}: fails after {o.fail_after_s:g} s, as asked")
        self._take_gap()
        last_ns = self._start_ns + round((self._sample + o.chunk - 1) * self._true_period)
        wait_s = (last_ns - self.now_ns()) / NS / self.speed
        if wait_s > 0:
            self._closed.wait(min(timeout_s, wait_s))
            if wait_s > timeout_s:
                return None
        return self._chunk()

    def close(self) -> None:
        self._closed.set()

    def _chunk(self) -> Chunk:
        o = self._options
        assert self._start_ns is not None
        n = min(o.chunk, round(o.duration_s * o.rate_hz) - self._sample) if o.duration_s else o.chunk
        numbers = np.arange(self._sample, self._sample + n, dtype=np.int64)
        jitter_ns = round(self._rng.uniform(-1, 1) * o.jitter_s * NS) if o.jitter_s else 0
        chunk = Chunk(
            stream=self.stream,
            seq=self._seq,
            t_ns=self._start_ns + round(self._sample * self._true_period) + jitter_ns,
            data=self._make(numbers),
            period_ns=self._period_ns,
            t_err_ns=round(o.jitter_s * NS),
            gap_before=self._gap,
        )
        self._sample += n
        self._seq += 1
        self._gap = False
        return chunk

    def _take_gap(self) -> None:
        """Leaves out the samples of a gap when one begins."""
        o = self._options
        every = round(o.gap_every_s * o.rate_hz)
        if every and self._sample and self._sample // every > (self._sample - o.chunk) // every:
            self._sample += round(o.gap_s * o.rate_hz)
            self._gap = True

    def _skip_to(self, now_ns: int) -> None:
        """A real sensor's time goes on while it is closed."""
        assert self._start_ns is not None
        if self._opens > self._options.fail_opens + 1:
            self._sample = max(self._sample, int((now_ns - self._start_ns) / self._true_period))

    def _sine(self, numbers: Int64) -> Array:
        phase = 2 * np.pi * self._options.frequency_hz / self._options.rate_hz * numbers
        shift = np.arange(self._options.channels) * (np.pi / self._options.channels)
        return np.sin(phase[:, None] + shift).astype(np.float32)

    def _noise(self, numbers: Int64) -> Array:
        return self._rng.standard_normal((len(numbers), self._options.channels), np.float32)

    def _image(self, numbers: Int64) -> Array:
        if len(numbers) == 1:
            at = int(numbers[0]) % _POOL
            return self._pool[at : at + 1]
        return self._pool[numbers % _POOL]


__all__ = ["SyntheticDriver"]

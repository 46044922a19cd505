"""What the sensors of a device deliver now: rates, ages, drops, waveforms, a picture. No windows, model or broker."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.config import DeviceConfig
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.records import Array, Chunk, Float32, Int64
from edge_sdk.features.words import from_byte_tokens
from edge_sdk.streams.counters import Drop
from edge_sdk.streams.pump import Pump
from edge_sdk.streams.sources import Source, sources

COLUMNS = 60  # of a waveform
SPAN_S = 6.0  # of the stream clock, that a waveform shows
CHANNELS = 9  # drawn at most
_ENVELOPE = 20  # so many samples in a column: what counts is how far they reach, not where they are in the middle


@dataclass(frozen=True, slots=True)
class Trace:
    """One channel over the last seconds."""

    name: str
    points: tuple[float, ...]  # one per column, oldest first; NaN: nothing came
    envelope: bool  # points are how far the samples of a column reach, not their middle


@dataclass(frozen=True, slots=True)
class Reading:
    """One modality at one moment."""

    modality: str
    driver: str
    state: str  # closed | opening | streaming | stalled | failed | ended
    error: str  # what went wrong last; "" while streaming
    rate_hz: float  # samples per second of the stream clock, over the last seconds
    age_s: float | None  # of the newest sample; None before the first
    samples: int
    gaps: int  # chunks that say that something is missing before them
    dropped: dict[str, int]  # by the queue, by reason
    reconnects: int
    shape: tuple[int, ...]  # of a sample; () before the first
    text: str = ""  # the newest line, of text
    traces: tuple[Trace, ...] = ()
    picture: Array | None = field(default=None, compare=False)  # uint8 (h, w, 3) the newest frame

    @property
    def delivers(self) -> bool:
        """True where samples come."""
        return self.state in ("streaming", "ended") and self.samples > 0

    def plain(self) -> dict[str, Any]:
        """Returns it as JSON knows it; of a waveform the newest value of each channel."""
        return {
            "modality": self.modality, "driver": self.driver, "state": self.state, "error": self.error,
            "rate_hz": self.rate_hz, "age_s": self.age_s, "samples": self.samples, "gaps": self.gaps,
            "dropped": self.dropped, "reconnects": self.reconnects, "shape": list(self.shape), "text": self.text,
            "values": {t.name: t.points[-1] for t in self.traces if not math.isnan(t.points[-1])},
        }  # fmt: skip


class _Wave:
    """Least and greatest value of each channel in the last columns."""

    def __init__(self) -> None:
        self._step_ns = round(SPAN_S * NS / COLUMNS)
        self._columns: deque[tuple[int, Float32, Float32]] = deque(maxlen=COLUMNS)  # (number, least, greatest)
        self._most = 0  # samples in a column

    def push(self, times: Int64, data: Float32) -> None:
        """Takes samples: data (n, C)."""
        numbers, first, counts = np.unique(times // self._step_ns, return_index=True, return_counts=True)
        low, high = np.minimum.reduceat(data, first), np.maximum.reduceat(data, first)
        self._most = max(self._most, int(counts.max()))
        if self._columns and self._columns[-1][0] == numbers[0]:  # the column that the last chunk ended in
            _, least, greatest = self._columns.pop()
            low[0], high[0] = np.minimum(low[0], least), np.maximum(high[0], greatest)
        self._columns.extend(zip(numbers.tolist(), low, high, strict=True))

    def traces(self, names: list[str]) -> tuple[Trace, ...]:
        """Returns the channels that have a name; [] before the first sample."""
        if not self._columns:
            return ()
        newest, envelope = self._columns[-1][0], self._most > _ENVELOPE
        values = np.full((COLUMNS, len(names)), np.nan)
        for number, least, greatest in self._columns:
            if newest - number < COLUMNS:
                value = np.maximum(np.abs(least), np.abs(greatest)) if envelope else (least + greatest) / 2
                values[COLUMNS - 1 - (newest - number)] = value[: len(names)]
        return tuple(Trace(name, tuple(values[:, i].tolist()), envelope) for i, name in enumerate(names))


class _Gauge:
    """What is known of one modality."""

    def __init__(self, modality: str, source: Source, pump: Pump) -> None:
        self._modality, self._source, self._pump = modality, source, pump
        self._wave = _Wave()
        self._picture: Array | None = None
        self._text = ""
        self._shape: tuple[int, ...] = ()
        self._gaps = 0

    def take(self, chunk: Chunk) -> None:
        """Takes what came."""
        self._gaps += chunk.gap_before and bool(self._shape)
        if not len(chunk.data):
            return
        self._shape = chunk.data.shape[1:]
        if chunk.data.ndim == 4 and chunk.data.shape[1] in (1, 3):
            self._picture = np.moveaxis(np.broadcast_to(chunk.data[-1], (3, *chunk.data.shape[2:])), 0, 2)
        elif self._source.config.driver == "text":
            self._text = self._read(chunk.data[-1].ravel())
        else:
            times = np.arange(len(chunk.data)) * chunk.period_ns + chunk.t_ns
            flat = chunk.data.reshape(len(chunk.data), -1)[:, :CHANNELS].astype(np.float32)
            self._wave.push(times if chunk.times_ns is None else chunk.times_ns, flat)

    def _read(self, tokens: Array) -> str:
        """Returns a line; where a tokenizer made numbers of it, the numbers."""
        if self._source.config.options.get("tokenizer", "bytes") == "bytes":
            return from_byte_tokens(tokens)
        return " ".join(map(str, np.trim_zeros(tokens, "b").tolist()))

    def reading(self) -> Reading:
        """Returns how it stands."""
        counters, age_s = self._pump.counters, self._pump.last_age_s
        return Reading(
            modality=self._modality, driver=self._source.config.driver,
            state="ended" if self._pump.exhausted else self._pump.state.value, error=self._pump.error,
            rate_hz=counters.measured_hz, age_s=age_s if math.isfinite(age_s) else None, samples=counters.samples,
            gaps=self._gaps, dropped={reason.value: n for reason, n in list(counters.dropped.items())},
            reconnects=counters.reconnects, shape=self._shape, text=self._text,
            traces=self._wave.traces(self._names()), picture=self._picture,
        )  # fmt: skip

    def _names(self) -> list[str]:
        share = next(s for s in self._source.shares if s.modality == self._modality)
        width = min(CHANNELS, math.prod(self._shape)) if self._shape else 0
        named = {
            n: f"{name}.{n - part.start}" if part.stop - part.start > 1 else name
            for name, part in self._source.driver.columns.items()
            for n in range(part.start, part.stop)
        }
        numbers = range(width) if share.numbers is None else share.numbers.tolist()
        return [named.get(n, str(n)) for n in numbers][:width]


class Gauges:
    """The sensors of a device and what they deliver; as an asynchronous context manager.

    Args:
        config: names the sensors.
        clock: the stream clock.

    Raises:
        ConfigError: there are none, or their options are wrong.
        PluginError: no such driver.
    """

    def __init__(self, config: DeviceConfig, clock: Clock) -> None:
        if not config.sensors:
            raise ConfigError("nothing to look at: the configuration has no section [sensors.<modality>]")
        self._gauges: dict[str, _Gauge] = {}
        self._pumps: list[Pump] = []
        epoch_ns = clock.now_ns()
        for source in sources(config.sensors):
            pump = Pump(source.driver, source.config, clock, source.sink(self._take), epoch_ns=epoch_ns)
            self._pumps.append(pump)
            self._gauges.update({m: _Gauge(m, source, pump) for m in source.modalities})
        self._order = tuple(config.sensors)

    async def __aenter__(self) -> Gauges:
        for pump in self._pumps:
            await pump.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        for pump in self._pumps:
            await pump.aclose()

    @property
    def ended(self) -> bool:
        """True when every sensor is a finite source that has delivered everything."""
        return all(pump.exhausted for pump in self._pumps)

    def readings(self) -> list[Reading]:
        """Returns how every modality stands, in the order of the configuration."""
        return [self._gauges[modality].reading() for modality in self._order]

    def _take(self, chunk: Chunk) -> None:
        self._gauges[chunk.stream].take(chunk)


def lost(reading: Reading) -> int:
    """Returns the samples that the queue dropped, but for frames that a newer one made unneeded."""
    return sum(n for reason, n in reading.dropped.items() if reason != Drop.SUPERSEDED.value)


__all__ = ["CHANNELS", "COLUMNS", "SPAN_S", "Gauges", "Reading", "Trace", "lost"]

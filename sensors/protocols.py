"""What the serial sensors say and want to hear: one class per protocol, on top of the parsers of `sensors.frames`.

A protocol owns no port. It says which bytes to send, and makes samples of the bytes that came.
"""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.interfaces import spans
from edge_sdk.core.records import Float32, Int64
from sensors.frames import (
    BNO,
    BNO_STATUS,
    WIT,
    WIT_LENGTH,
    BnoParser,
    Damage,
    LineParser,
    UInt8,
    WitGroups,
    WitParser,
)
from sensors.xbus import MT, MT_COUNTER, MT_TIME_FINE, MTDATA2, MtSamples, XbusParser, mtdata2, xbus

BITS = 10  # on the wire per byte: start, eight, stop


@dataclass(frozen=True, slots=True)
class Samples:
    """What came out of some bytes."""

    data: Float32  # (n, C), SI units
    lost: NDArray[np.bool_]  # (n,) something was lost before this sample
    ticks: Int64 | None = None  # (n,) the sensor's own clock, where it has one


@dataclass(frozen=True, slots=True)
class Plan:
    """What the configuration asks of a protocol."""

    channels: tuple[str, ...]
    rate_hz: float
    configure: bool = True  # tell the sensor its rate and content
    save: bool = False  # and let it keep them
    separator: str = ","
    scale: Mapping[str, float] = field(default_factory=dict)


class Protocol(ABC):
    """One way to talk to a sensor."""

    quantities: ClassVar[Mapping[str, int]] = MappingProxyType({})  # channel → components; empty: any name goes
    default_channels: ClassVar[tuple[str, ...]] = ("acc", "gyro")
    bauds: ClassVar[tuple[int, ...]] = (115200,)  # in the order in which they are tried
    tick_ns = 0  # of the sensor's clock; 0: it has none
    tick_bits = 32
    failed = False  # the last question is to be asked again at once
    damage: Damage

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        unknown = [c for c in plan.channels if self.quantities and c not in self.quantities]
        if unknown or not plan.channels:
            raise ConfigError(f"channels: {unknown or 'none given'}; this protocol has {', '.join(self.quantities)}")

    @property
    def columns(self) -> dict[str, slice]:
        """Where each channel lies among the columns of the samples."""
        return spans((c, self.quantities[c]) for c in self.plan.channels)

    def check_budget(self, baud: int) -> None:
        """Raises ConfigError when the line cannot carry so many samples."""
        need = self.plan.rate_hz * self.sample_bytes * BITS
        if need > baud:
            fits = math.floor(baud / (self.sample_bytes * BITS))
            raise ConfigError(
                f"rate_hz = {self.plan.rate_hz:g} needs {need:.0f} baud for {self.sample_bytes} bytes per sample, but "
                f"the line has {baud}: at most {fits} Hz, or fewer channels, or a higher baud"
            )

    @property
    @abstractmethod
    def sample_bytes(self) -> int:
        """Bytes on the wire per sample."""

    def setup(self) -> list[bytes]:
        """Returns what to send once the sensor is heard, in this order."""
        return []

    def hello(self) -> bytes:
        """Returns what makes a silent sensor speak; b"": it speaks by itself."""
        return b""

    def request(self) -> bytes:
        """Returns what asks for one sample; b"": the sensor sends by itself."""
        return b""

    @abstractmethod
    def feed(self, data: bytes) -> Samples:
        """Returns the samples that are complete with these bytes."""

    @abstractmethod
    def heard(self, data: bytes) -> int:
        """Returns how many whole frames of this protocol lie in bytes from a line at an unknown baud."""


class WitMotion(Protocol):
    """WitMotion standard protocol, WT901 and its relatives; sends by itself."""

    quantities = MappingProxyType({name: q.count for name, q in WIT.items()})
    bauds = (115200, 9600, 921600, 230400, 460800, 57600, 38400, 19200, 4800)
    rates: ClassVar[Mapping[float, int]] = MappingProxyType(
        {0.1: 1, 0.5: 2, 1.0: 3, 2.0: 4, 5.0: 5, 10.0: 6, 20.0: 7, 50.0: 8, 100.0: 9, 200.0: 0xB}
    )
    _CONTENT: ClassVar[Mapping[str, int]] = MappingProxyType({"acc": 1, "gyro": 2, "angle": 3, "mag": 4, "quat": 9})

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if plan.configure and plan.rate_hz not in self.rates:
            raise ConfigError(
                f"rate_hz = {plan.rate_hz:g}: the sensor knows {', '.join(f'{r:g}' for r in self.rates)}; with "
                "configure = false it is left as it is"
            )
        self._parser = WitParser()
        self._groups = WitGroups(plan.channels)
        self.damage = self._parser.damage

    @property
    def sample_bytes(self) -> int:
        return WIT_LENGTH * len(self.plan.channels)

    def setup(self) -> list[bytes]:
        if not self.plan.configure:
            return []
        content = sum(1 << self._CONTENT[c] for c in self.plan.channels)
        commands = [_wit(0x69, 0xB588), _wit(0x02, content), _wit(0x03, self.rates[self.plan.rate_hz])]
        return [*commands, _wit(0x00, 0)] if self.plan.save else commands

    def feed(self, data: bytes) -> Samples:
        samples = Samples(*self._groups.feed(self._parser.feed(data)))
        self.damage.incomplete = self._groups.incomplete
        return samples

    def heard(self, data: bytes) -> int:
        return len(WitParser().feed(data).kinds)


def _wit(register: int, value: int) -> bytes:
    return struct.pack("<2sBH", b"\xff\xaa", register, value)


class Bno055(Protocol):
    """BNO055 over UART: answers questions; one read covers all channels."""

    quantities = MappingProxyType({name: q.count for name, q in BNO.items()})
    _FUSED: ClassVar[frozenset[str]] = frozenset({"angle", "quat", "linear_acc", "gravity"})

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if plan.rate_hz > 100:
            raise ConfigError(f"rate_hz = {plan.rate_hz:g}: a BNO055 has at most 100 Hz")
        first = min(BNO[c].kind for c in plan.channels)
        last = max(BNO[c].kind + 2 * BNO[c].count for c in plan.channels)
        self._first, self._length = first, last - first
        self._parser = BnoParser()
        self.damage = self._parser.damage
        self.status: dict[str, int] = {}  # error replies by meaning; an overrun now and then is normal
        self._lost = False
        self._retries = 0

    @property
    def sample_bytes(self) -> int:
        return 4 + 2 + self._length

    def hello(self) -> bytes:
        return b"\xaa\x01\x00\x01"  # chip id

    def setup(self) -> list[bytes]:
        mode = 0x0C if self._FUSED & set(self.plan.channels) else 0x07  # NDOF | accelerometer, magnetometer, gyro
        units = 0x00  # m/s², deg/s, degrees, °C
        return [_bno(0x3D, 0x00), _bno(0x07, 0x00), _bno(0x3B, units), _bno(0x3D, mode)]

    def request(self) -> bytes:
        self._parser.reset()
        self.failed = False
        return bytes((0xAA, 0x01, self._first, self._length))

    def feed(self, data: bytes) -> Samples:
        replies, lost = [], []
        for reply in self._parser.feed(data, self._length):
            if isinstance(reply, int):
                self._refused(reply)
                continue
            replies.append(reply)
            lost.append(self._lost)
            self._lost, self._retries = False, 0
        table = np.frombuffer(b"".join(replies), np.uint8).reshape(len(replies), self._length)
        values = np.concatenate([self._value(table, c) for c in self.plan.channels], axis=1)
        return Samples(values, np.array(lost, np.bool_))

    def _refused(self, status: int) -> None:
        if status == 0x01:  # "write done", of a command
            return
        self.status[BNO_STATUS[status]] = self.status.get(BNO_STATUS[status], 0) + 1
        self._retries += 1
        self.failed = self._retries <= 3
        if not self.failed:
            self._lost, self._retries = True, 0
            self.damage.incomplete += 1

    def _value(self, table: UInt8, channel: str) -> Float32:
        """(n, bytes) of replies → (n, components)."""
        q = BNO[channel]
        at = q.kind - self._first
        raw = np.ascontiguousarray(table[:, at : at + 2 * q.count]).view("<i2")
        value: Float32 = raw.astype(np.float32) * np.float32(q.scale)
        return value

    def heard(self, data: bytes) -> int:
        return 2 * (b"\xbb\x01\xa0" in data)


def _bno(register: int, value: int) -> bytes:
    return bytes((0xAA, 0x00, register, 1, value))


class Xsens(Protocol):
    """Xsens MTi: MTData2 messages with the sensor's own clock."""

    quantities = MappingProxyType({name: q.count for name, q in MT.items()})
    bauds = (115200, 921600, 230400, 460800, 57600, 9600)
    tick_ns = 100_000

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._parser = XbusParser()
        self.damage = self._parser.damage
        self._counter: int | None = None
        self._hurt = False  # something was lost since the last sample

    @property
    def sample_bytes(self) -> int:
        return 5 + 5 + 7 + sum(3 + 4 * self.quantities[c] for c in self.plan.channels)

    def setup(self) -> list[bytes]:
        if not self.plan.configure:
            return []
        wanted = b"".join(struct.pack(">HH", MT[c].kind, round(self.plan.rate_hz)) for c in self.plan.channels)
        times = struct.pack(">4H", MT_COUNTER, 0xFFFF, MT_TIME_FINE, 0xFFFF)
        return [xbus(0x30), xbus(0xC0, times + wanted), xbus(0x10)]

    def feed(self, data: bytes) -> Samples:
        parts = []
        for messages in self._parser.feed(data):
            self._hurt |= messages.lost
            for samples in mtdata2(messages) if messages.mid == MTDATA2 else ():
                if isinstance(samples, int):
                    self.damage.incomplete += samples
                elif not set(self.plan.channels) <= set(samples.values):
                    self.damage.incomplete += samples.count
                else:
                    parts.append(self._part(samples))
        return _joined(parts, sum(self.quantities[c] for c in self.plan.channels))

    def _part(self, samples: MtSamples) -> Samples:
        with np.errstate(over="ignore", invalid="ignore"):  # what is no finite number the windows count
            data = np.concatenate([samples.values[c] for c in self.plan.channels], axis=1).astype(np.float32)
        lost = self._skipped(samples)
        lost[0] |= self._hurt
        self._hurt = False
        return Samples(data, lost, samples.ticks)

    def _skipped(self, samples: MtSamples) -> NDArray[np.bool_]:
        """Returns (n,) whether the packet counter jumped before each."""
        before, counter = self._counter, samples.counter
        if counter is None:
            self._counter = None
            return np.zeros(samples.count, np.bool_)
        self._counter = int(counter[-1])
        steps = np.diff(counter, prepend=counter[0] - 1 if before is None else before)
        skipped: NDArray[np.bool_] = steps & 0xFFFF != 1
        return skipped

    def heard(self, data: bytes) -> int:
        return 2 * sum(len(messages.rows) for messages in XbusParser().feed(data))


class Csv(Protocol):
    """One line of numbers per sample; channels are the columns, "-" is left out, "t_ms" or "t_us" is the clock."""

    default_channels = ("ax", "ay", "az", "gx", "gy", "gz")
    bauds = (115200, 9600, 57600, 230400, 921600, 38400, 19200)

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        clocks = [c for c in plan.channels if c in ("t_ms", "t_us")]
        self._columns = [i for i, c in enumerate(plan.channels) if c not in ("-", *clocks)]
        unknown = set(plan.scale) - {plan.channels[i] for i in self._columns}
        if len(clocks) > 1 or not self._columns or unknown:
            raise ConfigError(
                f"channels: at most one of t_ms and t_us, and at least one column; scale: {unknown or 'good'}"
            )
        self._clock = plan.channels.index(clocks[0]) if clocks else None
        self.tick_ns = {"t_ms": 1_000_000, "t_us": 1000}[clocks[0]] if clocks else 0
        self._scale = np.array([plan.scale.get(plan.channels[i], 1.0) for i in self._columns])
        self._parser = LineParser(len(plan.channels), plan.separator)
        self.damage = self._parser.damage

    @property
    def columns(self) -> dict[str, slice]:
        return spans((self.plan.channels[i], 1) for i in self._columns)

    @property
    def sample_bytes(self) -> int:
        return 3 * len(self.plan.channels)  # the least a line may need; what it really needs only the sketch knows

    def feed(self, data: bytes) -> Samples:
        rows, lost = self._parser.feed(data)
        table = np.array(rows, np.float64).reshape(len(rows), len(self.plan.channels))
        ticks = None if self._clock is None else table[:, self._clock].astype(np.int64)
        return Samples((table[:, self._columns] * self._scale).astype(np.float32), np.array(lost, np.bool_), ticks)

    def heard(self, data: bytes) -> int:
        return len(LineParser(len(self.plan.channels), self.plan.separator).feed(data)[0])


def _joined(parts: list[Samples], columns: int) -> Samples:
    """Returns samples behind one another; their ticks where all of them have some."""
    if len(parts) == 1:
        return parts[0]
    ticks = [part.ticks for part in parts if part.ticks is not None]
    return Samples(
        np.concatenate([np.zeros((0, columns), np.float32), *(part.data for part in parts)]),
        np.concatenate([np.zeros(0, np.bool_), *(part.lost for part in parts)]),
        np.concatenate([np.zeros(0, np.int64), *ticks]) if len(ticks) == len(parts) else None,
    )


PROTOCOLS: Mapping[str, type[Protocol]] = MappingProxyType(
    {"witmotion": WitMotion, "bno055": Bno055, "xsens": Xsens, "csv": Csv}
)

__all__ = ["PROTOCOLS", "Bno055", "Csv", "Plan", "Protocol", "Samples", "WitMotion", "Xsens"]

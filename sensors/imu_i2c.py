"""Inertial sensors on an I2C bus: MPU-6050 and ICM-20948 (with its AK09916 magnetometer).

One burst read per sample: reading axis by axis mixes two instants. The sensor runs much faster than it is asked, so
that a sample is never older than one of its own periods; its low-pass filter keeps what is above half the rate out.
"""

from __future__ import annotations

import errno
import math
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from edge_sdk.core.clock import NS, monotonic_ns
from edge_sdk.core.config import parse
from edge_sdk.core.errors import ConfigError, PluginError, SensorUnavailable
from edge_sdk.core.interfaces import Driver, Found, spans
from edge_sdk.core.records import Chunk
from edge_sdk.core.spec import Model
from sensors.frames import DEG, G
from sensors.inertial import sections
from sensors.serial_port import group_of

INSTALL = "pip install 'edge-sdk[i2c]' (or apt install python3-smbus2)"
CHUNK_S = 0.05  # samples of this time travel together
RESET_S = 0.1  # what a chip needs after it was woken


class Options(Model):
    """Keys of `[sensors.<modality>.options]`."""

    chip: Literal["mpu6050", "icm20948"] = "mpu6050"
    bus: int = Field(default=7, ge=0)  # 7: pins 3 and 5 of an Orin Nano or NX; 1: of the first Nano
    address: int = Field(default=0x68, ge=0x08, le=0x77)  # 0x69: AD0 is high
    rate_hz: float = Field(default=100.0, gt=0, le=500)
    channels: tuple[str, ...] = ("acc", "gyro")  # and "mag" on an ICM-20948
    acc_range_g: Literal[2, 4, 8, 16] = 4
    gyro_range_dps: Literal[250, 500, 1000, 2000] = 500


class Chip(ABC):
    """Registers of one chip, on an open bus."""

    who_am_i: ClassVar[tuple[int, int]]  # register, value
    channels: ClassVar[tuple[str, ...]]
    period_ns: ClassVar[int]  # of the sensor itself

    def __init__(self, bus: Any, options: Options) -> None:
        self._bus = bus
        self._address = options.address
        self._options = options

    @abstractmethod
    def wake(self, wait: threading.Event) -> None:
        """Sets the chip up; `wait` is slept on."""

    @abstractmethod
    def sample(self) -> Mapping[str, tuple[float, ...]]:
        """Returns one sample in SI units: m/s², rad/s, µT."""

    def identify(self) -> int:
        """Returns what the chip says it is."""
        return int(self._bus.read_byte_data(self._address, self.who_am_i[0]))

    def _write(self, register: int, value: int) -> None:
        self._bus.write_byte_data(self._address, register, value)

    def _burst(self, register: int, count: int) -> bytes:
        return bytes(self._bus.read_i2c_block_data(self._address, register, count))


def _filter(rate_hz: float, cutoffs: tuple[tuple[float, int], ...]) -> int:
    """Returns the register value of the widest filter that ends below half the rate, else of the narrowest."""
    return next((value for hz, value in cutoffs if hz <= rate_hz / 2), cutoffs[-1][1])


class Mpu6050(Chip):
    """MPU-6050: 14 bytes from 0x3B, big-endian: acceleration, temperature, rotation."""

    who_am_i = (0x75, 0x68)
    channels = ("acc", "gyro")
    period_ns = 1_000_000
    _CUTOFFS = ((188.0, 1), (98.0, 2), (42.0, 3), (20.0, 4), (10.0, 5), (5.0, 6))

    def wake(self, wait: threading.Event) -> None:
        o = self._options
        self._write(0x6B, 0x01)  # out of sleep, clock from the gyroscope
        wait.wait(RESET_S)
        self._write(0x19, 0)  # 1 kHz
        self._write(0x1A, _filter(o.rate_hz, self._CUTOFFS))
        self._write(0x1B, (250, 500, 1000, 2000).index(o.gyro_range_dps) << 3)
        self._write(0x1C, (2, 4, 8, 16).index(o.acc_range_g) << 3)

    def sample(self) -> Mapping[str, tuple[float, ...]]:
        o = self._options
        ax, ay, az, _, gx, gy, gz = struct.unpack(">7h", self._burst(0x3B, 14))
        acc, gyro = o.acc_range_g / 32768 * G, o.gyro_range_dps / 32768 * DEG
        return {"acc": (ax * acc, ay * acc, az * acc), "gyro": (gx * gyro, gy * gyro, gz * gyro)}


class Icm20948(Chip):
    """ICM-20948: 14 bytes from 0x2D, big-endian: acceleration, rotation, temperature; AK09916 by bypass."""

    who_am_i = (0x00, 0xEA)
    channels = ("acc", "gyro", "mag")
    period_ns = 1_000_000
    _CUTOFFS = ((196.6, 0), (111.4, 2), (50.4, 3), (23.9, 4), (11.5, 5), (5.7, 6))
    _MAG, _MAG_ID = 0x0C, (0x48, 0x09)

    def wake(self, wait: threading.Event) -> None:
        o = self._options
        low_pass = _filter(o.rate_hz, self._CUTOFFS) << 3 | 1
        self._write(0x7F, 0x00)
        self._write(0x06, 0x01)  # out of sleep, best clock
        wait.wait(RESET_S)
        self._write(0x07, 0x00)  # all axes on
        self._write(0x03, 0x00)  # no I2C master: the magnetometer is read from here
        self._write(0x0F, 0x02)  # bypass
        self._write(0x7F, 0x20)
        self._write(0x00, 0)  # 1.1 kHz
        self._write(0x01, low_pass | (250, 500, 1000, 2000).index(o.gyro_range_dps) << 1)
        self._write(0x10, 0)
        self._write(0x11, 0)  # 1.125 kHz
        self._write(0x14, low_pass | (2, 4, 8, 16).index(o.acc_range_g) << 1)
        self._write(0x7F, 0x00)
        if "mag" in o.channels:
            self._wake_magnetometer()
        self._field: tuple[float, ...] = (0.0, 0.0, 0.0)

    def _wake_magnetometer(self) -> None:
        found = tuple(self._bus.read_i2c_block_data(self._MAG, 0x00, 2))
        if found != self._MAG_ID:
            raise SensorUnavailable(f"magnetometer at 0x0c says {bytes(found).hex(' ')}, not 48 09 (AK09916)")
        self._bus.write_byte_data(self._MAG, 0x31, 0x08)  # 100 Hz

    def sample(self) -> Mapping[str, tuple[float, ...]]:
        o = self._options
        ax, ay, az, gx, gy, gz, _ = struct.unpack(">7h", self._burst(0x2D, 14))
        acc, gyro = o.acc_range_g / 32768 * G, o.gyro_range_dps / 32768 * DEG
        if "mag" in o.channels:
            self._field = self._magnetic()
        rotation = (gx * gyro, gy * gyro, gz * gyro)
        return {"acc": (ax * acc, ay * acc, az * acc), "gyro": rotation, "mag": self._field}

    def _magnetic(self) -> tuple[float, ...]:
        """Returns the field; the last one where no new one is ready (100 Hz)."""
        block = bytes(self._bus.read_i2c_block_data(self._MAG, 0x10, 9))  # ST1 … ST2: the latter lets go of the data
        ready, overflow = block[0] & 1, block[8] & 8
        if not ready or overflow:
            return self._field
        x, y, z = struct.unpack_from("<3h", block, 1)
        return (x * 0.15, -y * 0.15, -z * 0.15)  # turned onto the axes of the accelerometer


CHIPS: Mapping[str, type[Chip]] = MappingProxyType({"mpu6050": Mpu6050, "icm20948": Icm20948})


def library() -> Any:
    """Returns smbus2; PluginError tells how to install it."""
    try:
        import smbus2
    except ImportError as error:
        raise PluginError(f"I2C sensors need smbus2: {INSTALL}") from error
    return smbus2


class I2cImuDriver(Driver):
    """Asks the chip at `rate_hz`; sample times are the middle of each transfer."""

    def __init__(self, stream: str, options: Mapping[str, Any]) -> None:
        super().__init__(stream, options)
        self._where = f"sensors.{stream}.options"
        self._options = o = parse(options, Options, self._where)
        known = CHIPS[o.chip].channels
        if not o.channels or not set(o.channels) <= set(known):
            raise ConfigError(f"{self._where}.channels: {', '.join(o.channels)}; a {o.chip} has {', '.join(known)}")
        library()
        self._size = max(1, math.floor(CHUNK_S * o.rate_hz))
        self._closed = threading.Event()
        self._bus: Any = None
        self._chip: Chip | None = None
        self._rows: list[tuple[float, ...]] = []
        self._times: list[int] = []
        self._error_ns = 0
        self._seq = 0
        self._due_ns = 0  # host time of the next sample
        self._late = 0  # samples left out because the host was late
        self._gap = False

    @property
    def columns(self) -> Mapping[str, slice]:
        return spans((c, 3) for c in self._options.channels)

    def open(self) -> None:
        self.close()
        self._closed.clear()
        o = self._options
        try:
            self._bus = library().SMBus(o.bus)
        except OSError as error:
            raise SensorUnavailable(self._explain(error)) from error
        chip = CHIPS[o.chip](self._bus, o)
        try:
            self._check(chip)
            chip.wake(self._closed)
        except OSError as error:
            raise SensorUnavailable(self._explain(error)) from error
        self._chip = chip
        self._rows, self._times, self._seq, self._gap = [], [], 0, False
        self._due_ns = monotonic_ns()

    def read(self, timeout_s: float) -> Chunk | None:
        assert self._chip is not None
        end_ns = monotonic_ns() + round(timeout_s * NS)
        period_ns = round(NS / self._options.rate_hz)
        while len(self._rows) < self._size:
            wait_ns = self._due_ns - monotonic_ns()
            if wait_ns > 0 and self._closed.wait(max(0, min(wait_ns, end_ns - monotonic_ns())) / NS):
                return None
            if monotonic_ns() < self._due_ns:
                return None  # the time is up
            self._take(self._chip)
            behind = max(0, (monotonic_ns() - self._due_ns) // period_ns)
            self._late += behind
            self._due_ns += (1 + behind) * period_ns
        return self._chunk()

    def close(self) -> None:
        self._closed.set()
        self._chip = None
        if self._bus is not None:
            self._bus.close()
            self._bus = None

    @staticmethod
    def detect() -> list[Found]:
        return [found for path in sorted(Path("/dev").glob("i2c-[0-9]*")) for found in scan(int(path.name[4:]))]

    def _check(self, chip: Chip) -> None:
        register, expected = chip.who_am_i
        found = chip.identify()
        if found != expected:
            raise SensorUnavailable(
                f"i2c-{self._options.bus}, address 0x{self._options.address:02x}: register 0x{register:02x} says "
                f"0x{found:02x}, a {self._options.chip} says 0x{expected:02x}; set chip to what is there"
            )

    def _take(self, chip: Chip) -> None:
        before_ns = self.now_ns()
        try:
            sample = chip.sample()
        except OSError as error:
            raise SensorUnavailable(self._explain(error)) from error
        after_ns = self.now_ns()
        age_ns = round(chip.period_ns * self.speed / 2)
        last_ns = self._times[-1] if self._times else -(2**62)
        self._times.append(max((before_ns + after_ns) // 2 - age_ns, last_ns + 1))
        self._rows.append(tuple(v for c in self._options.channels for v in sample[c]))
        self._error_ns = max(self._error_ns, (after_ns - before_ns) // 2 + age_ns)

    def _chunk(self) -> Chunk:
        chunk = Chunk(
            stream=self.stream,
            seq=self._seq,
            t_ns=self._times[0],
            data=np.array(self._rows, np.float32),
            period_ns=round(NS / self._options.rate_hz * self.speed),
            times_ns=np.array(self._times, np.int64),
            t_err_ns=self._error_ns,
            flags=self._late,
        )
        self._rows, self._times, self._error_ns, self._late = [], [], 0, 0
        self._seq += 1
        return chunk

    def _explain(self, error: OSError) -> str:
        o = self._options
        path = f"/dev/i2c-{o.bus}"
        place = f"i2c-{o.bus}, address 0x{o.address:02x}"
        if error.errno in (errno.EACCES, errno.EPERM):
            group = group_of(path)
            return f"{path}: permission denied; sudo usermod -aG {group} $USER, then log in again"
        if error.errno == errno.ENOENT:
            there = ", ".join(sorted(p.name for p in Path("/dev").glob("i2c-*"))) or "none"
            return f"{path}: no such bus; here: {there}; set bus"
        if error.errno in (errno.ENXIO, errno.EREMOTEIO, errno.EIO):
            return f"{place}: no answer; is the sensor wired, powered, and AD0 as the address says?"
        if error.errno == errno.EBUSY:
            return f"{place}: busy, a kernel driver has it; use imu_iio, or unbind that driver"
        return f"{place}: {error}"


def scan(bus: int) -> list[Found]:
    """Returns the chips that answer on a bus; asks only who they are."""
    found = []
    for name, kind in CHIPS.items():
        for address in (0x68, 0x69):
            options = Options.model_validate({"chip": name, "bus": bus, "address": address})
            try:
                with library().SMBus(bus) as opened:
                    same = kind(opened, options).identify() == kind.who_am_i[1]
            except OSError:
                continue
            if same:
                where = f'chip = "{name}", bus = {bus}, address = 0x{address:02x}'
                toml = sections("imu_i2c", where, ("acc", "gyro"))
                found.append(Found("imu_i2c", f"i2c-{bus}-{address:02x}", f"{name} on bus {bus}", toml))
    return found


__all__ = ["CHIPS", "INSTALL", "Chip", "I2cImuDriver", "Icm20948", "Mpu6050", "scan"]

"""Inertial sensors on a serial port: WitMotion, BNO055, Xsens MTi, and lines of numbers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from edge_sdk.core.clock import NS, monotonic_ns
from edge_sdk.core.config import parse
from edge_sdk.core.errors import ConfigError, SensorTimeout, SensorUnavailable
from edge_sdk.core.interfaces import Driver, Found
from edge_sdk.core.records import Chunk, Int64
from edge_sdk.core.spec import Model
from sensors.frames import Damage
from sensors.inertial import sections
from sensors.protocols import BITS, PROTOCOLS, Plan, Protocol, Samples
from sensors.serial_port import Port, library, ports
from sensors.timing import DeviceClock, Smoothed

logger = logging.getLogger(__name__)

HEARD = 2  # whole frames that prove a baud: one may come about by chance
LISTEN_S = 1.0  # for the baud that the configuration names
PROBE_S = 0.5  # for every other baud; nine of them fit into a stop of the pump
GARBAGE_S = 2.0  # of bytes without a sample, after which the port is opened (and probed) again
SETTLE_S = 0.05  # between two commands
DRAIN_S = 0.001
BATCH_NS = 20_000_000  # samples of this time travel together
OWN_ERROR_NS = 1_000_000  # filters and scheduling inside the sensor, ns


class Options(Model):
    """Keys of `[sensors.<modality>.options]`."""

    port: str  # device file; /dev/serial/by-id/… survives a reboot
    protocol: Literal["witmotion", "bno055", "xsens", "csv"] = "witmotion"
    rate_hz: float = Field(default=100.0, gt=0, le=10_000)
    baud: int = Field(default=0, ge=0)  # 0: find it
    channels: tuple[str, ...] = ()  # quantities in the order of the columns; (): accelerometer and gyroscope
    configure: bool = True  # tell the sensor its rate and content
    save: bool = False  # and let it keep them over power-off
    separator: str = ","  # csv; "" is white space
    scale: dict[str, float] = Field(default_factory=dict)  # csv: column → factor to SI units


class SerialImuDriver(Driver):
    """Reads one inertial sensor; columns are those of `channels`, SI units.

    `Chunk.flags` counts the runs of damaged bytes since the chunk before; `damage` has the totals since open().
    """

    def __init__(self, stream: str, options: Mapping[str, Any]) -> None:
        super().__init__(stream, options)
        self._where = f"sensors.{stream}.options"
        self._options = o = parse(options, Options, self._where)
        kind = PROTOCOLS[o.protocol]
        self._plan = Plan(
            o.channels or kind.default_channels, o.rate_hz, o.configure, o.save, separator=o.separator, scale=o.scale
        )
        self._protocol = self._make()
        if o.baud:
            self._check_budget(o.baud)
        library()
        self._closed = threading.Event()
        self._port: Port | None = None
        self._times: Smoothed | DeviceClock
        self._seq = 0
        self._regions = 0
        self._heard_ns = 0  # host time of the last sample
        self._due_ns = 0  # host time of the next question
        self._garbage = 0  # bytes since the last sample
        self._held = b""  # bytes that wait for more
        self._parse_ns = 0  # host time until which they wait

    @property
    def columns(self) -> Mapping[str, slice]:
        return self._protocol.columns

    @property
    def damage(self) -> Damage:
        """What had to be thrown away since open()."""
        return replace(self._protocol.damage)

    @property
    def baud(self) -> int:
        """Bits per second in use; 0 while closed."""
        return self._port.baud if self._port else 0

    def open(self) -> None:
        self.close()
        self._closed.clear()
        o = self._options
        self._protocol = protocol = self._make()
        self._port = port = Port(o.port, o.baud or protocol.bauds[0])
        self._find_baud(port)
        try:
            self._check_budget(port.baud)
        except ConfigError as error:  # not for good: the sensor may be set to another baud, or was heard by chance
            raise SensorUnavailable(f"{o.port}: speaks {o.protocol} at {port.baud} baud, but {error}") from error
        for command in protocol.setup():
            port.write(command)
            self._closed.wait(SETTLE_S)
        protocol.feed(port.listen(DRAIN_S))  # samples from before open() are nobody's
        self._times = (
            DeviceClock(protocol.tick_ns, protocol.tick_bits, self.speed)
            if protocol.tick_ns
            else Smoothed(NS / o.rate_hz * self.speed, self.speed)
        )
        self._seq = self._garbage = 0
        self._regions = protocol.damage.regions
        self._held = b""
        self._heard_ns = self._due_ns = self._parse_ns = monotonic_ns()

    def read(self, timeout_s: float) -> Chunk | None:
        assert self._port is not None
        end_ns = monotonic_ns() + round(timeout_s * NS)
        while (left_ns := end_ns - monotonic_ns()) > 0:
            left_ns = min(left_ns, self._ask(self._port))
            data = self._port.drain(max(left_ns, 0) / NS)
            arrival_ns, host_ns = self.now_ns(), monotonic_ns()
            self._held += data
            if host_ns < self._parse_ns and not self._protocol.hello():
                continue  # parsing a few samples at once costs little more than one
            data, self._held = self._held, b""
            self._parse_ns = host_ns + BATCH_NS
            samples = self._protocol.feed(data)
            if len(samples.data):
                self._heard_ns, self._garbage = host_ns, 0
                return self._chunk(samples, arrival_ns)
            self._garbage += len(data)
            self._complain(host_ns)
        return None

    def close(self) -> None:
        self._closed.set()
        if self._port is not None:
            if self._protocol.damage.regions:
                logger.info("sensor %s: %s", self.stream, self._protocol.damage)
            self._port.close()
            self._port = None

    @staticmethod
    def detect() -> list[Found]:
        return devices(Path("/"))

    def _make(self) -> Protocol:
        try:
            return PROTOCOLS[self._options.protocol](self._plan)
        except ConfigError as error:
            raise ConfigError(f"{self._where}.{error}") from error

    def _check_budget(self, baud: int) -> None:
        try:
            self._protocol.check_budget(baud)
        except ConfigError as error:
            raise ConfigError(f"{self._where}.{error}") from error

    def _ask(self, port: Port) -> int:
        """Sends the next question when it is due; returns how long to wait for bytes at most, ns."""
        protocol = self._protocol
        if not protocol.hello():
            return 2**62
        due = monotonic_ns() >= self._due_ns
        if due or protocol.failed:
            port.write(protocol.request())
        if due:
            self._due_ns = max(self._due_ns + round(NS / self._options.rate_hz), monotonic_ns())
        return self._due_ns - monotonic_ns()

    def _find_baud(self, port: Port) -> None:
        """Leaves the port at the sensor's baud; SensorUnavailable if there is none, or another than configured."""
        o, protocol = self._options, self._protocol
        count = self._try(port, LISTEN_S)
        if count[0] >= HEARD:
            return
        total = count[1]
        for baud in protocol.bauds:
            if baud == (o.baud or protocol.bauds[0]):
                continue
            port.set_baud(baud)
            frames, size = self._try(port, PROBE_S)
            total += size
            if frames >= HEARD and not o.baud:
                return
            if frames >= HEARD:
                raise SensorUnavailable(
                    f"{o.port}: speaks {o.protocol} at {baud} baud, not {o.baud}: set baud = {baud}"
                )
        if not total:
            raise SensorUnavailable(f"{o.port}: open, but nothing comes; is the sensor powered, and RX on its TX?")
        raise SensorUnavailable(f"{o.port}: {total} bytes came, but no {o.protocol} at any baud; another protocol?")

    def _try(self, port: Port, seconds: float) -> tuple[int, int]:
        """Returns frames and bytes that come within a time; ends as soon as there are frames enough."""
        end_ns = monotonic_ns() + round(seconds * NS)
        data, frames = b"", 0
        port.write(self._protocol.hello())
        while frames < HEARD and (left_ns := end_ns - monotonic_ns()) > 0:
            data += port.listen(min(left_ns / NS, 0.05))
            frames = self._protocol.heard(data)
        return frames, len(data)

    def _complain(self, host_ns: int) -> None:
        """Garbage or silence where there should be samples: the port is to be opened again."""
        quiet_s = (host_ns - self._heard_ns) / NS
        if quiet_s < max(GARBAGE_S, 3 / self._options.rate_hz):
            return
        said = f"{self._garbage} bytes but no sample" if self._garbage else "nothing"
        raise SensorTimeout(f"{self._options.port}: {said} in {quiet_s:.1f} s; opening it again")

    def _chunk(self, samples: Samples, arrival_ns: int) -> Chunk:
        wire_ns = self._protocol.sample_bytes * BITS * NS * self.speed / self.baud
        taken_ns = round(arrival_ns - wire_ns)
        times, gap = self._place(samples, taken_ns)
        damage = self._protocol.damage
        hurt, self._regions = damage.regions - self._regions, damage.regions
        chunk = Chunk(
            stream=self.stream,
            seq=self._seq,
            t_ns=int(times[0]),
            data=samples.data,
            period_ns=round(NS / self._options.rate_hz * self.speed),
            times_ns=times,
            t_err_ns=round(self._times.error_ns + wire_ns + OWN_ERROR_NS * self.speed),
            gap_before=gap,
            flags=hurt,
        )
        self._seq += 1
        return chunk

    def _place(self, samples: Samples, taken_ns: int) -> tuple[Int64, bool]:
        times = self._times
        if isinstance(times, Smoothed):
            return times.place(samples.lost, taken_ns)
        if samples.ticks is None:
            raise ConfigError(f"{self._where}: the sensor sends no time; for Xsens, set configure = true")
        return times.place(np.asarray(samples.ticks), taken_ns)


def devices(root: Path) -> list[Found]:
    """Returns the serial ports under a file system root; what speaks there only opening them would tell."""
    return [
        Found("imu_serial", path, name, sections("imu_serial", f'port = "{path}"', ("acc", "gyro")))
        for path, name in ports(root)
    ]


__all__ = ["SerialImuDriver", "devices"]

"""Inertial sensors that the kernel drives (industrial I/O): buffered, or one file per axis.

Buffered capture carries the kernel's own time stamps, which are put on the monotonic clock. Without a trigger the
axes are read one by one from sysfs: slower, and not of one instant, which the stated error says.
"""

from __future__ import annotations

import errno
import os
import re
import select
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.clock import NS, monotonic_ns
from edge_sdk.core.config import parse
from edge_sdk.core.errors import ConfigError, SensorUnavailable
from edge_sdk.core.interfaces import Driver, Found, spans
from edge_sdk.core.records import Array, Chunk, Int64
from edge_sdk.core.spec import Model
from sensors.inertial import sections
from sensors.serial_port import explain
from sensors.timing import DeviceClock

NAMES = {"acc": "accel", "gyro": "anglvel", "mag": "magn"}
UNITS = {"acc": 1.0, "gyro": 1.0, "mag": 100.0}  # m/s², rad/s; Gauss to µT
FORMAT = re.compile(r"(be|le):([su])(\d+)/(\d+)(?:X(\d+))?>>(\d+)")
BUFFER = 128  # samples that the kernel keeps
KERNEL_ERROR_NS = 100_000  # from the sensor's interrupt to the kernel's time stamp, ns


class Options(Model):
    """Keys of `[sensors.<modality>.options]`."""

    device: str  # name of the sensor ("bmi160"), or its number ("iio:device0")
    rate_hz: float = Field(default=100.0, gt=0, le=10_000)
    channels: tuple[Literal["acc", "gyro", "mag"], ...] = ("acc", "gyro")
    buffered: bool = True
    trigger: str = ""  # name of the trigger for buffered capture; "": the sensor's own
    root: Path = Path("/")  # a recorded tree, for trying things


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a buffered scan."""

    name: str  # in_accel_x
    index: int
    order: str  # "<" | ">"
    signed: bool
    bits: int
    storage: int  # bytes
    shift: int

    @staticmethod
    def parse(name: str, index: int, text: str) -> Element:
        """Reads `le:s12/16>>4`; ConfigError if it is something else."""
        found = FORMAT.fullmatch(text.strip())
        if found is None or found[5] not in (None, "1") or int(found[4]) not in (8, 16, 32, 64):
            raise ConfigError(f"scan element {name}: the type {text.strip()!r} is not known")
        order, sign, bits, storage, _, shift = found.groups()
        if not 0 < int(bits) <= int(storage) - int(shift):
            raise ConfigError(f"scan element {name}: the type {text.strip()!r} contradicts itself")
        return Element(
            name, index, "<" if order == "le" else ">", sign == "s", int(bits), int(storage) // 8, int(shift)
        )

    def decode(self, raw: NDArray[Any]) -> Int64:
        """Returns the numbers in unsigned storage words."""
        values = (raw.astype(np.uint64) >> np.uint64(self.shift)) & np.uint64((1 << self.bits) - 1)
        if not self.signed:
            unsigned: Int64 = values.astype(np.int64)
            return unsigned
        unused = np.int64(64 - self.bits)
        signed: Int64 = (values << np.uint64(unused)).astype(np.int64) >> unused
        return signed


def layout(elements: list[Element]) -> np.dtype[Any]:
    """Returns the record of a scan: elements by index, each aligned to its own size."""
    offsets, at = [], 0
    ordered = sorted(elements, key=lambda e: e.index)
    for e in ordered:
        at = -(-at // e.storage) * e.storage
        offsets.append(at)
        at += e.storage
    largest = max(e.storage for e in ordered)
    formats = [f"{e.order}u{e.storage}" for e in ordered]
    size = -(-at // largest) * largest
    return np.dtype({"names": [e.name for e in ordered], "formats": formats, "offsets": offsets, "itemsize": size})


class IioImuDriver(Driver):
    """Reads one IIO device; columns are those of `channels`, SI units."""

    def __init__(self, stream: str, options: Mapping[str, Any]) -> None:
        super().__init__(stream, options)
        self._where = f"sensors.{stream}.options"
        self._options = parse(options, Options, self._where)
        if not self._options.channels:
            raise ConfigError(f"{self._where}.channels: none given")
        axes = [(c, f"in_{NAMES[c]}_{axis}") for c in self._options.channels for axis in "xyz"]
        self._axes = [name for _, name in axes]
        self._units = np.array([UNITS[c] for c, _ in axes])
        self._closed = threading.Event()
        self._folder = Path()
        self._fd = -1
        self._elements: dict[str, Element] = {}
        self._rest = b""
        self._seq = 0
        self._due_ns = 0  # host time of the next sample, unbuffered
        self._last_ns = 0

    @property
    def columns(self) -> Mapping[str, slice]:
        return spans((c, 3) for c in self._options.channels)

    def open(self) -> None:
        self.close()
        self._closed.clear()
        o = self._options
        self._folder = _folder(o)
        if not self._folder.is_dir():
            names = ", ".join(name for _, name in _devices(o.root)) or "none"
            raise SensorUnavailable(f"no IIO device {o.device!r}; here: {names}; set {self._where}.device")
        try:
            self._scale = np.array([self._calibration(a, "scale", 1.0) for a in self._axes]) * self._units
            self._offset = np.array([self._calibration(a, "offset", 0.0) for a in self._axes])
            self._tell("sampling_frequency", f"{o.rate_hz:g}", needed=False)
            if o.buffered:
                self._start_buffer()
        except OSError as error:
            path = str(error.filename or self._folder)
            raise SensorUnavailable(f"{explain(path, error)}; buffered = false needs no trigger") from error
        self._clock = DeviceClock(1, 62, self.speed)
        self._rest, self._seq = b"", 0
        self._due_ns = monotonic_ns()
        self._last_ns = -(2**62)

    def read(self, timeout_s: float) -> Chunk | None:
        return self._read_buffer(timeout_s) if self._options.buffered else self._read_files(timeout_s)

    def close(self) -> None:
        self._closed.set()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            try:
                self._tell("buffer/enable", "0", needed=False)
            except OSError:  # the device is gone
                return

    @staticmethod
    def detect() -> list[Found]:
        return devices(Path("/"))

    def _tell(self, name: str, value: str, *, needed: bool = True) -> None:
        path = self._folder / name
        if needed or path.exists():
            path.write_text(value, encoding="ascii")

    def _calibration(self, axis: str, what: str, default: float) -> float:
        """Returns a factor or offset of an axis: its own, or that of all three."""
        for name in (f"{axis}_{what}", f"{axis[:-2]}_{what}"):
            path = self._folder / name
            if path.exists():
                return _number(path)
        return default

    def _start_buffer(self) -> None:
        o = self._options
        self._tell("buffer/enable", "0")
        clock = self._folder / "current_timestamp_clock"
        self._tell(clock.name, "monotonic", needed=False)
        told = clock.exists() and clock.read_text(encoding="ascii").strip() == "monotonic"
        self._monotonic = told and self.speed == 1.0  # else the stamps are laid on the stream clock by arrival
        if o.trigger:
            self._tell("trigger/current_trigger", o.trigger)
        wanted = [*self._axes, "in_timestamp"]
        for path in sorted((self._folder / "scan_elements").glob("*_en")):
            path.write_text("1" if path.name[:-3] in wanted else "0", encoding="ascii")
        scan = self._folder / "scan_elements"
        self._elements = {
            n: Element.parse(n, int(_number(scan / f"{n}_index")), (scan / f"{n}_type").read_text(encoding="ascii"))
            for n in wanted
        }
        self._layout = layout(list(self._elements.values()))
        self._tell("buffer/length", str(BUFFER))
        self._tell("buffer/watermark", str(max(1, round(o.rate_hz * 0.02))), needed=False)
        self._tell("buffer/enable", "1")
        self._fd = os.open(o.root / "dev" / self._folder.name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def _read_buffer(self, timeout_s: float) -> Chunk | None:
        ready, _, _ = select.select([self._fd], [], [], timeout_s)
        if not ready:
            return None
        try:
            data = os.read(self._fd, BUFFER * self._layout.itemsize)
        except BlockingIOError:
            return None
        except OSError as error:
            raise SensorUnavailable(f"{self._folder.name}: went away ({error})") from error
        if not data:
            raise SensorUnavailable(f"{self._folder.name}: the buffer was closed by the kernel")
        arrival_ns = self.now_ns()
        data = self._rest + data
        whole = len(data) // self._layout.itemsize * self._layout.itemsize
        self._rest = data[whole:]
        if not whole:
            return None
        scans = np.frombuffer(data[:whole], self._layout)
        raw = np.stack([self._elements[a].decode(scans[a]) for a in self._axes], axis=1)
        stamps = self._elements["in_timestamp"].decode(scans["in_timestamp"])
        if self._monotonic:
            return self._chunk(raw, stamps + (self.now_ns() - monotonic_ns()), error_ns=KERNEL_ERROR_NS)
        times, gap = self._clock.place(stamps, arrival_ns)
        return self._chunk(raw, times, error_ns=round(self._clock.error_ns + KERNEL_ERROR_NS * self.speed), gap=gap)

    def _read_files(self, timeout_s: float) -> Chunk | None:
        wait_ns = self._due_ns - monotonic_ns()
        if wait_ns > 0:
            self._closed.wait(min(wait_ns / NS, timeout_s))
            if wait_ns > timeout_s * NS:
                return None
        before_ns = self.now_ns()
        try:
            raw = np.array([[_number(self._folder / f"{axis}_raw") for axis in self._axes]])
        except OSError as error:
            hint = " while its buffer is on" if error.errno == errno.EBUSY else ""
            raise SensorUnavailable(f"{self._folder.name}: cannot be read{hint} ({error})") from error
        after_ns = self.now_ns()
        self._due_ns = max(self._due_ns + round(NS / self._options.rate_hz), monotonic_ns())
        t_ns = max((before_ns + after_ns) // 2, self._last_ns + 1)
        return self._chunk(raw, np.array([t_ns], np.int64), error_ns=(after_ns - before_ns) // 2)

    def _chunk(self, raw: Array, times: Int64, *, error_ns: int, gap: bool = False) -> Chunk:
        chunk = Chunk(
            stream=self.stream,
            seq=self._seq,
            t_ns=int(times[0]),
            data=((raw + self._offset) * self._scale).astype(np.float32),
            period_ns=round(NS / self._options.rate_hz * self.speed),
            times_ns=times,
            t_err_ns=error_ns,
            gap_before=gap,
        )
        self._seq += 1
        self._last_ns = int(times[-1])
        return chunk


def devices(root: Path) -> list[Found]:
    """Returns the inertial sensors of the kernel under a file system root, by their names where those differ."""
    there = _devices(root)
    names = [name for _, name in there]
    found = []
    for folder, name in there:
        channels = [c for c, kind in NAMES.items() if (folder / f"in_{kind}_x_raw").exists()]
        if channels:
            listed = ", ".join(f'"{c}"' for c in channels)
            device = name if names.count(name) == 1 else folder.name
            toml = sections("imu_iio", f'device = "{device}", channels = [{listed}]', channels)
            found.append(Found("imu_iio", device, f"{name}: {', '.join(channels)}", toml))
    return found


def _number(path: Path) -> float:
    text = path.read_text(encoding="ascii")
    try:
        return float(text)
    except ValueError as error:
        raise SensorUnavailable(f"{path}: expected a number, found {text.strip()!r}") from error


def _devices(root: Path) -> list[tuple[Path, str]]:
    """Returns (folder, name) of the IIO devices."""
    folders = sorted((root / "sys/bus/iio/devices").glob("iio:device*"))
    return [(f, (f / "name").read_text(encoding="utf-8").strip()) for f in folders if (f / "name").exists()]


def _folder(o: Options) -> Path:
    """Returns the folder of the device by name or number; one that is not there if there is none."""
    for folder, name in _devices(o.root):
        if o.device in (name, folder.name):
            return folder
    return o.root / "sys/bus/iio/devices" / o.device


__all__ = ["Element", "IioImuDriver", "devices", "layout"]

"""A serial port that explains itself: opening, draining, and what to do when it cannot be opened."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import grp

from edge_sdk.core.clock import NS, monotonic_ns
from edge_sdk.core.errors import PluginError, SensorUnavailable

INSTALL = "pip install 'edge-sdk[serial]' (or apt install python3-serial)"


def library() -> Any:
    """Returns pyserial; PluginError tells how to install it."""
    try:
        import serial
    except ImportError as error:
        raise PluginError(f"serial sensors need pyserial: {INSTALL}") from error
    return serial


class Port:
    """An open serial port.

    Args:
        path: device file; `/dev/serial/by-id/…` survives a reboot.
        baud: bits per second.
    """

    def __init__(self, path: str, baud: int) -> None:
        serial = library()
        self.path = path
        self._errors = (serial.SerialException, OSError)
        try:
            self._serial = serial.Serial(path, baud, timeout=0.2, write_timeout=1.0, exclusive=True)
        except (*self._errors, ValueError) as error:
            raise SensorUnavailable(explain(path, error)) from error

    @property
    def baud(self) -> int:
        """Bits per second."""
        return int(self._serial.baudrate)

    def fileno(self) -> int:
        """Returns the file descriptor, for an event loop."""
        return int(self._serial.fileno())

    def set_baud(self, baud: int) -> None:
        """Changes the speed and forgets what came at the old one."""
        try:
            self._serial.baudrate = baud
            self._serial.reset_input_buffer()
        except (*self._errors, ValueError) as error:
            raise SensorUnavailable(f"{self.path}: does not take {baud} baud: {error}") from error

    def drain(self, timeout_s: float) -> bytes:
        """Waits for a byte, then returns everything that is there: a reader that takes less falls behind for good."""
        try:
            if self._serial.timeout != timeout_s:
                self._serial.timeout = timeout_s
            first = self._serial.read(1)
            return bytes(first + self._serial.read(self._serial.in_waiting)) if first else b""
        except self._errors as error:
            raise SensorUnavailable(f"{self.path}: went away ({error}); is it plugged in?") from error

    def listen(self, seconds: float, enough: int = 4096) -> bytes:
        """Returns what comes within a time, at most a little more than `enough` bytes."""
        end_ns = monotonic_ns() + round(seconds * NS)
        data = b""
        while len(data) < enough and (left_ns := end_ns - monotonic_ns()) > 0:
            data += self.drain(left_ns / NS)
        return data

    def write(self, data: bytes) -> None:
        """Sends bytes and waits until they are on their way."""
        try:
            self._serial.write(data)
            self._serial.flush()
        except self._errors as error:
            raise SensorUnavailable(f"{self.path}: cannot be written to ({error})") from error

    def close(self) -> None:
        """Closes the port; a device that is gone does not object."""
        try:
            self._serial.close()
        except self._errors:
            return


def explain(path: str, error: Exception) -> str:
    """Returns why a device file cannot be opened, and what to do."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOENT or not Path(path).exists():
        there = ", ".join(p for p, _ in ports()) or "none"
        return f"{path}: no such port; is it plugged in? Ports here: {there}"
    if number in (errno.EACCES, errno.EPERM):
        group = group_of(path)
        return (
            f"{path}: permission denied; it belongs to group {group}: sudo usermod -aG {group} $USER, then log in again"
        )
    if number in (errno.EBUSY, errno.EAGAIN) or "lock" in str(error):
        return f"{path}: busy, held by {holders(path) or 'a process that cannot be seen from here'}"
    return f"{path}: cannot be opened: {error}"


def group_of(path: str) -> str:
    """Returns the name of the group that a device file belongs to."""
    number = Path(path).stat().st_gid
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def holders(path: str, proc: Path = Path("/proc")) -> str:
    """Returns the processes that have a file open, as "name (pid), …"; only what this user may see."""
    target = os.path.realpath(path)
    found = []
    for process in sorted(proc.glob("[0-9]*")):
        if any(link == target for link in _links(process / "fd")):
            name = (process / "comm").read_text(encoding="utf-8").strip()
            found.append(f"{name} (process {process.name})")
    return ", ".join(found)


def _links(folder: Path) -> Iterator[str]:
    try:
        for entry in folder.iterdir():
            yield os.readlink(entry)  # noqa: PTH115  Path.readlink would strip what /proc adds
    except OSError:  # somebody else's process, or one that has just ended
        return


def ports(root: Path = Path("/")) -> list[tuple[str, str]]:
    """Returns (path, description) of the serial ports with a stable name, then of the board's own UARTs."""
    by_id = sorted((root / "dev/serial/by-id").glob("*"))
    own = sorted((root / "dev").glob("ttyTHS[0-9]*"))
    return [(str(p), p.name.replace("_", " ")) for p in by_id] + [(str(p), "UART of the board") for p in own]


__all__ = ["INSTALL", "Port", "explain", "group_of", "holders", "library", "ports"]

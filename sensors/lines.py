"""Where lines of text come from: a file that grows, a named pipe, standard input."""

from __future__ import annotations

import os
import select
import stat
import threading
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edge_sdk.core.clock import NS
from edge_sdk.core.errors import SensorUnavailable

POLL_S = 0.05  # how often a file that has come to its end is looked at
PIPE_ERR_NS = 1_000_000  # a line's time, read from a pipe
MAX_LINE = 1 << 16  # bytes; what is longer is cut and flagged
_READ = 1 << 14


@dataclass(frozen=True, slots=True)
class Line:
    """One line, without its end."""

    data: bytes
    cut: bool = False  # it was longer
    after_lost: bool = False  # something before it was refused


class Lines(ABC):
    """A source of lines; one thread uses it."""

    err_ns: int  # how far the time at which a line is read may be from the one at which it was said

    @abstractmethod
    def open(self) -> None:
        """Opens the source; SensorUnavailable says what to do when it cannot."""

    @abstractmethod
    def next(self, timeout_s: float) -> Line | None:
        """Blocks for at most this long; None: nothing new. EOFError: there will be no more."""

    @abstractmethod
    def close(self) -> None:
        """Closes the source; may be called twice."""


class FileLines(Lines):
    """Lines of a file or pipe.

    Args:
        path: its name; "-": standard input.
        where: the configuration key, for messages.
        follow: at the end of a file wait for more.
        from_start: False: only lines that are written from now on.
    """

    _REGULAR: ClassVar[int] = stat.S_IFREG

    def __init__(self, path: str, where: str, *, follow: bool = True, from_start: bool = True) -> None:
        self._path, self._where, self._follow, self._from_start = path, where, follow, from_start
        self._closed = threading.Event()
        self._file = -1
        self._kind = 0  # file type bits of what is open
        self._rest = b""  # the beginning of a line that is not complete
        self._cutting = False  # the rest of the current line is thrown away
        self._lines: deque[Line] = deque()  # complete ones
        self._ended = False

    def open(self) -> None:
        self.close()
        self._closed.clear()
        self.take(self._opened())
        if self._kind == self._REGULAR and not self._from_start:
            os.lseek(self._file, 0, os.SEEK_END)

    def take(self, file: int) -> None:
        """Reads a file descriptor, and closes it in the end."""
        self._file, self._kind = file, stat.S_IFMT(os.fstat(file).st_mode)
        self.err_ns = round(POLL_S * NS) if self._kind == self._REGULAR else PIPE_ERR_NS
        self._rest, self._cutting, self._ended = b"", False, False
        self._lines.clear()

    def next(self, timeout_s: float) -> Line | None:
        if not self._lines:
            self._fill(timeout_s)
        if self._lines:
            return self._lines.popleft()
        if self._ended:
            raise EOFError(f"{self._path}: the text is over")
        return None

    def close(self) -> None:
        self._closed.set()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _opened(self) -> int:
        path = self._path
        if path == "-":
            return os.dup(0)
        try:
            # Reading and writing: a pipe opened so neither waits for its first writer nor ends with its last.
            mode = os.O_RDWR if stat.S_ISFIFO(Path(path).stat().st_mode) else os.O_RDONLY
            return os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise SensorUnavailable(
                f"{path}: no such file or pipe ({self._where}); make a pipe with: mkfifo {path}"
            ) from error
        except OSError as error:
            raise SensorUnavailable(f"{path}: cannot be opened for reading: {error.strerror}") from error

    def _fill(self, timeout_s: float) -> None:
        """Reads what is there; waits for it at most this long."""
        if self._ended or not select.select([self._file], [], [], timeout_s)[0]:
            return
        data = os.read(self._file, _READ)
        if data:
            self._split(data)
        elif self._kind == self._REGULAR and self._follow:
            self._closed.wait(min(timeout_s, POLL_S))
            self._start_over_if_replaced()
        else:
            self._ended = True
            self._split(b"\n")

    def _split(self, data: bytes) -> None:
        *complete, self._rest = (self._rest + data).split(b"\n")
        for line in complete:
            self._keep(line)
            self._cutting = False
        if len(self._rest) > MAX_LINE:
            self._keep(self._rest)
            self._rest, self._cutting = b"", True
        elif self._cutting:
            self._rest = b""

    def _keep(self, line: bytes) -> None:
        if line.strip() and not self._cutting:
            self._lines.append(Line(line[:MAX_LINE], cut=len(line) > MAX_LINE))

    def _start_over_if_replaced(self) -> None:
        """A file that was cut short or replaced under its name (log rotation) is read from its beginning."""
        at = os.lseek(self._file, 0, os.SEEK_CUR)
        here = os.fstat(self._file)
        try:
            there = Path(self._path).stat()
        except FileNotFoundError:
            return  # between two files
        if there.st_ino != here.st_ino:
            new = self._opened()  # first, so that a failure leaves the old one open
            os.close(self._file)
            self._file, self._rest = new, b""
        elif here.st_size < at:
            os.lseek(self._file, 0, os.SEEK_SET)
            self._rest = b""


__all__ = ["MAX_LINE", "POLL_S", "FileLines", "Line", "Lines"]

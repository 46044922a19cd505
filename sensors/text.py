"""Lines of text as a sensor: transcripts and notes from a file that grows, a named pipe, or standard input.

Each line is one sample of token numbers, (length,), 0 where the line is shorter. Its time is when the line was read: a
pipe tells at once, a file is looked at every POLL_S.
"""

from __future__ import annotations

import os
import select
import stat
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from edge_sdk.core.clock import NS
from edge_sdk.core.config import parse
from edge_sdk.core.errors import ConfigError, SensorUnavailable
from edge_sdk.core.interfaces import Driver
from edge_sdk.core.records import Array, Chunk
from edge_sdk.core.spec import Model
from edge_sdk.features import byte_tokens, load_tokenizer
from edge_sdk.features.words import Tokenizer

POLL_S = 0.05  # how often a file that has come to its end is looked at
PIPE_ERR_NS = 1_000_000  # a line's time, read from a pipe
MAX_LINE = 1 << 16  # bytes; what is longer is cut and flagged
CUT = 1  # Chunk.flags: the line was longer than MAX_LINE, or had more tokens than fit
_READ = 1 << 14


class Options(Model):
    """Keys of `[sensors.<modality>.options]`."""

    path: str = Field(min_length=1)  # file or named pipe; "-": standard input
    follow: bool = True  # at the end of a file wait for more; false: the sensor is exhausted
    from_start: bool = True  # false: only lines that are written from now on
    length: int = Field(default=256, ge=0)  # tokens per line; 0: as many as the line has, for the feature `text`
    tokenizer: str = Field(default="bytes", min_length=1)  # "bytes", or a folder with a tokenizer of transformers


class TextDriver(Driver):
    """Delivers one chunk per line that is not blank."""

    def __init__(self, stream: str, options: Mapping[str, Any]) -> None:
        super().__init__(stream, options)
        self._options = o = parse(options, Options, f"sensors.{stream}.options")
        self._tokens: Tokenizer = byte_tokens
        if o.tokenizer != "bytes":
            where = f"sensors.{stream}.options:tokenizer"
            if not Path(o.tokenizer).is_dir():
                raise ConfigError(f"{where}: {o.tokenizer!r} is neither 'bytes' nor a folder with a tokenizer")
            self._tokens = load_tokenizer(o.tokenizer, where)
        self._closed = threading.Event()
        self._file = -1
        self._kind = 0  # file type bits of what is open
        self._rest = b""  # the beginning of a line that is not complete
        self._cutting = False  # the rest of the current line is thrown away
        self._lines: deque[tuple[bytes, bool]] = deque()  # complete lines, and whether they were cut
        self._ended = False
        self._seq = 0
        self._last_ns = -(2**62)

    def open(self) -> None:
        self.close()
        self._closed.clear()
        self._file = self._opened()
        self._kind = stat.S_IFMT(os.fstat(self._file).st_mode)
        if self._kind == stat.S_IFREG and not self._options.from_start:
            os.lseek(self._file, 0, os.SEEK_END)
        self._rest, self._cutting, self._ended, self._seq = b"", False, False, 0
        self._lines.clear()

    def read(self, timeout_s: float) -> Chunk | None:
        if not self._lines:
            self._fill(timeout_s)
        if not self._lines:
            if self._ended:
                raise EOFError(f"{self._options.path}: the text is over")
            return None
        return self._chunk(*self._lines.popleft())

    def close(self) -> None:
        self._closed.set()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _opened(self) -> int:
        path = self._options.path
        if path == "-":
            return os.dup(0)
        try:
            # Reading and writing: a pipe opened so neither waits for its first writer nor ends with its last.
            mode = os.O_RDWR if stat.S_ISFIFO(Path(path).stat().st_mode) else os.O_RDONLY
            return os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise SensorUnavailable(
                f"{path}: no such file or pipe (sensors.{self.stream}.options.path); make a pipe with: mkfifo {path}"
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
        elif self._kind == stat.S_IFREG and self._options.follow:
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
            self._lines.append((line[:MAX_LINE], len(line) > MAX_LINE))

    def _start_over_if_replaced(self) -> None:
        """A file that was cut short or replaced under its name (log rotation) is read from its beginning."""
        at = os.lseek(self._file, 0, os.SEEK_CUR)
        here = os.fstat(self._file)
        try:
            there = Path(self._options.path).stat()
        except FileNotFoundError:
            return  # between two files
        if there.st_ino != here.st_ino:
            new = self._opened()  # first, so that a failure leaves the old one open
            os.close(self._file)
            self._file, self._rest = new, b""
        elif here.st_size < at:
            os.lseek(self._file, 0, os.SEEK_SET)
            self._rest = b""

    def _chunk(self, line: bytes, cut: bool) -> Chunk:  # noqa: FBT001 - the second half of a pair
        tokens = self._tokens(line.decode("utf-8", errors="replace").strip())
        length = self._options.length or len(tokens)
        data: Array = np.zeros((1, length), np.int32)
        kept = tokens[:length]
        data[0, : len(kept)] = kept
        self._last_ns = max(self.now_ns(), self._last_ns + 1)
        chunk = Chunk(
            stream=self.stream,
            seq=self._seq,
            t_ns=self._last_ns,
            data=data,
            t_err_ns=round(POLL_S * NS) if self._kind == stat.S_IFREG else PIPE_ERR_NS,
            flags=CUT if cut or len(tokens) > length else 0,
        )
        self._seq += 1
        return chunk


__all__ = ["CUT", "MAX_LINE", "POLL_S", "TextDriver"]

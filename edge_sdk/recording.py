"""Recorded chunks on disk: one folder per recording, readable without this library.

    meta.json        format, start_ns, start_utc_ns, utc_err_ns; duration_ns once it was closed
    <stream>.rec     the 8 bytes EDGEREC1, then frames
    labels.csv       start_s,end_s,label with a header line; seconds from the start of the recording

A frame is `FRM1`, header length u32, body length u32, CRC-32 u32 of header and body (all little-endian), a msgpack map,
and raw little-endian buffers. Files are only appended to: what a crash left half written is ignored by readers, who
count it. Nothing is ever unpickled, and every length is checked before memory is taken.
"""

from __future__ import annotations

import csv
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgpack  # type: ignore[import-untyped]  # ships no types
import numpy as np
from pydantic import Field

from edge_sdk.core.clock import NS
from edge_sdk.core.errors import ConfigError, DataError
from edge_sdk.core.records import Array, Chunk
from edge_sdk.core.spec import IDENTIFIER, Model

FORMAT = 1
FILE_MAGIC = b"EDGEREC1"
FRAME_MAGIC = b"FRM1"
_FRAME = struct.Struct("<4sIII")
_MAX_HEADER = 1 << 16


class FrameWriter:
    """Appends frames to a file; each is one write, so that a crash costs at most the last one."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self.size = self._file.tell()
        if self.size == 0:
            self.size += self._file.write(FILE_MAGIC) or 0

    def append(self, header: Mapping[str, Any], *buffers: memoryview) -> None:
        """Adds one frame."""
        head = msgpack.packb(dict(header), use_bin_type=True)
        crc = zlib.crc32(head)
        for buffer in buffers:
            crc = zlib.crc32(buffer, crc)
        length = sum(buffer.nbytes for buffer in buffers)
        self._file.write(b"".join((_FRAME.pack(FRAME_MAGIC, len(head), length, crc), head, *buffers)))
        self.size += _FRAME.size + len(head) + length

    def close(self) -> None:
        """Closes the file; may be called twice."""
        self._file.close()


class FrameReader:
    """Reads frames; stops quietly at a torn tail and leaves damaged frames out, both counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost_bytes = 0  # bytes at the end that are no whole frame
        self.damaged = 0  # frames whose checksum is wrong

    def __iter__(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        self.lost_bytes = self.damaged = 0
        with self.path.open("rb") as file:
            if file.read(len(FILE_MAGIC)) != FILE_MAGIC:
                raise DataError(f"{self.path}: not a recording: it does not begin with {FILE_MAGIC.decode()}")
            left = self.path.stat().st_size - len(FILE_MAGIC)
            while left > 0:
                frame = self._read(file, left)
                if frame is None:
                    self.lost_bytes = left
                    return
                size, header, body = frame
                left -= size
                if header is None:
                    self.damaged += 1
                else:
                    yield header, body

    @staticmethod
    def _read(file: BinaryIO, left: int) -> tuple[int, dict[str, Any] | None, bytes] | None:
        """Returns (bytes, header, body) of the next frame; header None: damaged; None: no whole frame follows."""
        start = file.read(_FRAME.size)
        if len(start) < _FRAME.size:
            return None
        magic, head_length, body_length, crc = _FRAME.unpack(start)
        size = _FRAME.size + head_length + body_length
        if magic != FRAME_MAGIC or head_length > _MAX_HEADER or size > left:
            return None
        head, body = file.read(head_length), file.read(body_length)
        if zlib.crc32(body, zlib.crc32(head)) != crc:
            return size, None, b""
        header = msgpack.unpackb(head, raw=False, strict_map_key=True)
        return (size, header, body) if isinstance(header, dict) else (size, None, b"")


def describe(array: Array) -> tuple[dict[str, Any], memoryview]:
    """Returns header fields and little-endian bytes of an array."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"dtype": array.dtype.str, "shape": list(array.shape)}, array.reshape(-1).view(np.uint8).data


def restore(header: Mapping[str, Any], body: bytes, offset: int = 0) -> Array:
    """Returns the array that `describe` took apart; DataError if header and bytes contradict each other."""
    dtype, shape = str(header["dtype"]), tuple(int(n) for n in header["shape"])
    if not re.fullmatch(r"[<|][biuf][1248]", dtype):
        raise DataError(f"recorded arrays are of numbers, found dtype {dtype!r}")
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if min(shape, default=1) < 0 or offset + count * np.dtype(dtype).itemsize > len(body):
        raise DataError(f"array of shape {shape} and dtype {dtype} does not fit {len(body) - offset} bytes")
    return np.frombuffer(body, dtype, count, offset).reshape(shape)


class Writer:
    """Writes a recording.

    Args:
        path: folder; made if it is not there, must hold no recording.
        start_ns: stream clock at the start of the recording.
        start_utc_ns: time of day then; 0: unknown.
        utc_err_ns: uncertainty of it.
    """

    def __init__(self, path: Path, *, start_ns: int, start_utc_ns: int = 0, utc_err_ns: int = 0) -> None:
        path.mkdir(parents=True, exist_ok=True)
        if (path / "meta.json").exists():
            raise DataError(f"{path}: holds a recording already; choose another folder")
        self._path = path
        self._meta = {
            "format": FORMAT, "start_ns": start_ns, "start_utc_ns": start_utc_ns, "utc_err_ns": utc_err_ns,
        }  # fmt: skip
        self._files: dict[str, FrameWriter] = {}
        self._end_ns = start_ns
        self._write_meta()

    def append(self, chunk: Chunk) -> None:
        """Adds a chunk to its stream."""
        file = self._files.get(chunk.stream) or self._open(chunk.stream)
        layout, data = describe(chunk.data)
        header = {
            "seq": chunk.seq, "t_ns": chunk.t_ns, "period_ns": chunk.period_ns, "t_err_ns": chunk.t_err_ns,
            "gap": chunk.gap_before, "flags": chunk.flags, "timed": chunk.times_ns is not None, **layout,
        }  # fmt: skip
        times = () if chunk.times_ns is None else (describe(chunk.times_ns)[1],)
        file.append(header, data, *times)
        self._end_ns = max(self._end_ns, chunk_end_ns(chunk))

    def label(self, start_s: float, end_s: float, name: str) -> None:
        """Adds a label; seconds from the start of the recording."""
        path = self._path / "labels.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            if new:
                rows.writerow(("start_s", "end_s", "label"))
            rows.writerow((repr(start_s), repr(end_s), name))

    def close(self) -> None:
        """Writes the duration and closes all files; may be called twice."""
        for file in self._files.values():
            file.close()
        self._meta["duration_ns"] = self._end_ns - self._meta["start_ns"]
        self._write_meta()

    def _open(self, stream: str) -> FrameWriter:
        if not re.match(IDENTIFIER, stream):
            raise DataError(f"stream name {stream!r} cannot be a file name; allowed: {IDENTIFIER}")
        self._files[stream] = FrameWriter(self._path / f"{stream}.rec")
        return self._files[stream]

    def _write_meta(self) -> None:
        new = self._path / "meta.json.new"
        new.write_text(json.dumps(self._meta, indent=1) + "\n", encoding="utf-8")
        new.replace(self._path / "meta.json")

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Reader:
    """Reads a recording; DataError when the folder holds none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: no recording: meta.json cannot be read: {error}") from error
        if self.meta.get("format") != FORMAT:
            raise DataError(f"{path}: format {self.meta.get('format')!r}, this version reads {FORMAT}")
        self.start_ns = int(self.meta["start_ns"])
        self.streams = tuple(sorted(p.stem for p in path.glob("*.rec")))
        self._duration_ns: int | None = self.meta.get("duration_ns")

    def chunks(self, stream: str, frames: FrameReader | None = None) -> Iterator[Chunk]:
        """Yields the chunks of a stream as they were recorded, with the times of the recording."""
        if stream not in self.streams:
            raise DataError(f"{self.path}: no stream {stream!r}; there are: {', '.join(self.streams) or 'none'}")
        for header, body in frames or FrameReader(self.path / f"{stream}.rec"):
            yield _chunk(stream, header, body)

    @property
    def duration_ns(self) -> int:
        """From the start to one period after the last sample; found by reading if the writer was not closed."""
        if self._duration_ns is None:
            ends = (chunk_end_ns(chunk) for stream in self.streams for chunk in self.chunks(stream))
            self._duration_ns = max(ends, default=self.start_ns) - self.start_ns
        return self._duration_ns

    def labels(self) -> list[tuple[int, int, str]]:
        """Returns (start_ns, end_ns, name) from the start of the recording, in order of time."""
        return read_labels(self.path / "labels.csv")


def read_labels(path: Path) -> list[tuple[int, int, str]]:
    """Returns (start_ns, end_ns, name) of a label file in order of time; [] if there is none."""
    if not path.exists():
        return []
    labels = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                start_s, end_s, name = float(row["start_s"]), float(row["end_s"]), row["label"]
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{path}:{number}: expected start_s,end_s,label, found {row}") from error
            if not start_s < end_s:
                raise DataError(f"{path}:{number}: a label must end after it starts, found {start_s} … {end_s}")
            labels.append((round(start_s * NS), round(end_s * NS), name))
    return sorted(labels)


def chunk_end_ns(chunk: Chunk) -> int:
    """Returns when the chunk's last sample is over: its time and one period."""
    if chunk.times_ns is not None and len(chunk.times_ns):
        return int(chunk.times_ns[-1]) + chunk.period_ns
    return chunk.t_ns + len(chunk.data) * chunk.period_ns


def _chunk(stream: str, header: Mapping[str, Any], body: bytes) -> Chunk:
    data = restore(header, body)
    times = None
    if header["timed"]:
        times = restore({"dtype": "<i8", "shape": [len(data)]}, body, data.nbytes)
    return Chunk(
        stream=stream,
        seq=int(header["seq"]),
        t_ns=int(header["t_ns"]),
        data=data,
        period_ns=int(header["period_ns"]),
        times_ns=times,
        t_err_ns=int(header["t_err_ns"]),
        gap_before=bool(header["gap"]),
        flags=int(header["flags"]),
    )


class ReplayOptions(Model):
    """How a recording is laid on the stream clock; the same for its streams and its labels."""

    path: Path  # folder of the recording
    loop: bool = False  # begin again when it is over, for ever, with continuing time
    align_s: float = Field(default=0.0, ge=0)  # every lap starts on a multiple of this on the stream clock; 0: anywhere
    start_s: float = Field(default=0.0, ge=0)  # leave out the beginning
    epoch_ns: int | None = None  # begin at this time of the stream clock or, aligned, after it; None: the device's


@dataclass(frozen=True, slots=True)
class ReplayTime:
    """Where the times of a recording lie on the stream clock."""

    base_ns: int  # stream clock of the first lap's start
    first_ns: int  # time in the recording that this is
    lap_ns: int  # from one lap to the next

    @staticmethod
    def of(options: ReplayOptions, recording: Reader, epoch_ns: int) -> ReplayTime:
        """Returns the time base; equal for everyone who gives equal arguments, which is how streams keep together."""
        skip_ns, align_ns = round(options.start_s * NS), max(1, round(options.align_s * NS))
        length_ns = recording.duration_ns - skip_ns
        if length_ns <= 0:
            raise ConfigError(f"{options.path}: start_s = {options.start_s:g} is not before its end")
        begin_ns = epoch_ns if options.epoch_ns is None else options.epoch_ns
        return ReplayTime(-(-begin_ns // align_ns) * align_ns, skip_ns, -(-length_ns // align_ns) * align_ns)

    def at(self, recorded_ns: int, lap: int) -> int:
        """Returns the stream clock of a time from the start of the recording, in a lap (0 = the first)."""
        return self.base_ns + lap * self.lap_ns + recorded_ns - self.first_ns


__all__ = [
    "FrameReader",
    "FrameWriter",
    "Reader",
    "ReplayOptions",
    "ReplayTime",
    "Writer",
    "chunk_end_ns",
    "describe",
    "read_labels",
    "restore",
]

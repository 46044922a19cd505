"""A recording as a live sensor: the same chunks at the same distances, on the device's stream clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field

from edge_sdk.core.clock import NS
from edge_sdk.core.config import parse
from edge_sdk.core.errors import DataError, SensorUnavailable
from edge_sdk.core.interfaces import Driver
from edge_sdk.core.records import Chunk
from edge_sdk.recording import Reader, ReplayOptions, ReplayTime

_NEVER = -(2**62)


class Options(ReplayOptions):
    """Keys of `[sensors.<modality>.options]`."""

    stream: str = ""  # stream of the recording; "": the modality's name
    delay_s: float = Field(default=0.0, ge=0)  # deliver so much later than a real sensor would


class ReplayDriver(Driver):
    """Delivers each chunk when its last sample is due.

    All streams of a device share a time base without talking to each other: it follows from the options and from the
    device's epoch alone. A replay that is opened again goes on where the recording would be by then.
    """

    def __init__(self, stream: str, options: Mapping[str, Any]) -> None:
        super().__init__(stream, options)
        self._options = parse(options, Options, f"sensors.{stream}.options")
        self._closed = threading.Event()
        self._chunks: Iterator[Chunk] = iter(())
        self._next: Chunk | None = None
        self._seq = 0
        self._resume_ns = _NEVER  # what begins before this was delivered before the driver was opened again

    def open(self) -> None:
        if not self._options.path.is_dir():
            raise SensorUnavailable(
                f"{self._options.path}: no such folder; sensors.{self.stream}.options.path names it"
            )
        recording = Reader(self._options.path)
        if self.epoch_ns is None:
            self.epoch_ns = self.now_ns()
        self._closed.clear()
        self._seq = 0
        self._next = None
        name = self._options.stream or self.stream
        if name not in recording.streams:
            raise DataError(
                f"{recording.path}: no stream {name!r}; there are: {', '.join(recording.streams) or 'none'}"
            )
        time = ReplayTime.of(self._options, recording, self.epoch_ns)
        self._chunks = self._play(recording, name, time=time, now_ns=self.now_ns())

    def read(self, timeout_s: float) -> Chunk | None:
        if self._next is None:
            self._next = next(self._chunks, None)
        if self._next is None:
            raise EOFError(f"{self._options.path}: the recording is over")
        wait_s = (self._due_ns(self._next) - self.now_ns()) / NS / self.speed
        if wait_s > 0:
            self._closed.wait(min(timeout_s, wait_s))
            if wait_s > timeout_s:
                return None
        chunk, self._next = replace(self._next, stream=self.stream, seq=self._seq), None
        self._seq += 1
        self._resume_ns = chunk.t_ns + 1
        return chunk

    def close(self) -> None:
        self._closed.set()
        self._chunks = iter(())

    def _due_ns(self, chunk: Chunk) -> int:
        last_ns = chunk.t_ns + max(0, len(chunk.data) - 1) * chunk.period_ns
        if chunk.times_ns is not None and len(chunk.times_ns):
            last_ns = int(chunk.times_ns[-1])
        return last_ns + round(self._options.delay_s * NS)

    def _play(self, recording: Reader, name: str, *, time: ReplayTime, now_ns: int) -> Iterator[Chunk]:
        """Yields the chunks on the stream clock that were not delivered before; an endless replay skips the past."""
        first = max(0, (now_ns - time.base_ns) // time.lap_ns) if self._options.loop else 0
        resume_ns, resumed = self._resume_ns, self._resume_ns != _NEVER
        lap, found = first, True
        while found or lap == first + 1:
            found = False
            for chunk in recording.chunks(name):
                fresh = not found and (resumed or lap > first)  # the very first chunk is as it was recorded
                shifted = _shifted(chunk, time.at(-recording.start_ns, lap), gap=fresh)
                behind = shifted.t_ns < max(time.at(time.first_ns, lap), resume_ns)
                if behind or (self._options.loop and self._due_ns(shifted) < now_ns):
                    continue
                yield shifted
                found = True
            if not self._options.loop:
                return
            lap += 1


def _shifted(chunk: Chunk, shift_ns: int, *, gap: bool) -> Chunk:
    times_ns = None if chunk.times_ns is None else chunk.times_ns + shift_ns
    return replace(chunk, t_ns=chunk.t_ns + shift_ns, times_ns=times_ns, gap_before=chunk.gap_before or gap)


__all__ = ["ReplayDriver"]

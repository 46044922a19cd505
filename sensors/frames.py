"""Bytes of inertial sensors to numbers: pure parsers, which keep what is incomplete and count what is broken.

Every parser takes bytes in pieces of any size and gives the same result however they were cut. On damage the search
goes on ONE byte further, never a frame's length: a frame start may lie inside what looked like a frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.records import Float32, Int64

Bool = NDArray[np.bool_]
UInt8 = NDArray[np.uint8]

G = 9.80665  # m/s² per g
DEG = math.pi / 180  # rad per degree

WIT_LENGTH = 11
LINE_MAX = 512  # bytes of a text line


@dataclass(slots=True)
class Damage:
    """What a parser had to throw away."""

    bad_checksum: int = 0  # frames that began well and whose sum was wrong
    skipped_bytes: int = 0  # bytes that belong to no frame
    regions: int = 0  # runs of such bytes
    incomplete: int = 0  # samples that lack a part


@dataclass(frozen=True, slots=True)
class Quantity:
    """Where one quantity stands in a protocol, and what makes SI units of it."""

    kind: int  # frame type, register or data id
    count: int  # components
    scale: float  # to m/s², rad/s, rad, µT


@dataclass(frozen=True, slots=True)
class WitFrames:
    """Frames of the WitMotion standard protocol in order."""

    kinds: UInt8  # (k,) 0x50 … 0x5F
    payload: UInt8  # (k, 8)
    damaged: Bool  # (k,) bytes were skipped just before this frame


WIT: Mapping[str, Quantity] = MappingProxyType({
    "acc": Quantity(0x51, 3, 16 / 32768 * G),
    "gyro": Quantity(0x52, 3, 2000 / 32768 * DEG),
    "angle": Quantity(0x53, 3, math.pi / 32768),  # roll, pitch, yaw
    "mag": Quantity(0x54, 3, 1.0),  # counts: the scale differs between models
    "quat": Quantity(0x59, 4, 1 / 32768),
})  # fmt: skip


class WitParser:
    """WitMotion standard protocol: `55 kind d0 … d7 sum`, sum of the ten bytes before it."""

    def __init__(self) -> None:
        self.damage = Damage()
        self._rest = b""
        self._dirty = False  # the bytes before `_rest` were skipped

    def feed(self, data: bytes) -> WitFrames:
        """Returns the frames that are complete with these bytes."""
        buffer = np.frombuffer(self._rest + data, np.uint8)
        tests = len(buffer) - WIT_LENGTH + 1  # positions at which a whole frame would fit
        if tests <= 0:
            self._rest += data
            return _wit_frames(buffer, np.zeros(0, np.intp), np.zeros(0, np.bool_))
        sums = np.cumsum(buffer, dtype=np.uint8)  # modulo 256, as the checksum
        kinds = buffer[1 : tests + 1]
        heads = (buffer[:tests] == 0x55) & (kinds >= 0x50) & (kinds <= 0x5F)
        want = sums[9 : tests + 9] - sums[:tests] + buffer[:tests]
        good = heads & (want == buffer[10 : tests + 10])
        starts = _apart(np.flatnonzero(good), WIT_LENGTH)
        stop = max(tests, int(starts[-1]) + WIT_LENGTH if len(starts) else 0)  # bytes that are dealt with
        damaged = self._account(starts, np.flatnonzero(heads), stop)
        self._rest = buffer[stop:].tobytes()
        return _wit_frames(buffer, starts, damaged)

    def _account(self, starts: NDArray[np.intp], heads: NDArray[np.intp], stop: int) -> Bool:
        """Counts what lies between the frames; says before which of them something does."""
        ends = starts + WIT_LENGTH
        gaps = np.diff(starts, prepend=0) - WIT_LENGTH
        if len(starts):
            gaps[0] += WIT_LENGTH
        tail = stop - (int(ends[-1]) if len(ends) else 0)
        damaged: Bool = gaps > 0
        self.damage.regions += int(damaged.sum()) + (tail > 0)
        if self._dirty:
            first = int(damaged[0]) if len(damaged) else int(tail > 0)
            self.damage.regions -= first  # the same run of skipped bytes as at the end of the piece before
            if len(damaged):
                damaged[0] = True
        self._dirty = tail > 0 or (self._dirty and not len(starts))
        self.damage.skipped_bytes += int(gaps.sum()) + tail
        inside = np.searchsorted(starts, heads, side="right") - 1
        covered = (inside >= 0) & (heads < ends[inside]) if len(starts) else np.zeros(len(heads), np.bool_)
        self.damage.bad_checksum += len(heads) - int(covered.sum())
        return damaged


def _apart(positions: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Returns the positions that a reader takes who goes on behind each one that it took."""
    if len(positions) < 2 or np.diff(positions).min() >= length:
        return positions
    taken, free = [], 0
    for position in positions.tolist():
        if position >= free:
            taken.append(position)
            free = position + length
    return np.array(taken, np.intp)


def _wit_frames(buffer: UInt8, starts: NDArray[np.intp], damaged: Bool) -> WitFrames:
    rows = buffer[starts[:, None] + np.arange(WIT_LENGTH)] if len(starts) else np.zeros((0, WIT_LENGTH), np.uint8)
    return WitFrames(rows[:, 1], rows[:, 2:10], damaged)


class WitGroups:
    """Puts the frames of one instant together: kinds rise within a group, and damage ends it.

    Args:
        quantities: names of `WIT` whose columns are wanted, in this order.
    """

    def __init__(self, quantities: tuple[str, ...]) -> None:
        self.incomplete = 0  # groups that lacked a part
        self._hurt = False  # something was lost since the last sample
        self._quantities = [WIT[name] for name in quantities]
        self._needed = sorted({q.kind for q in self._quantities})
        self._rest = WitFrames(np.zeros(0, np.uint8), np.zeros((0, 8), np.uint8), np.zeros(0, np.bool_))

    def feed(self, frames: WitFrames) -> tuple[Float32, Bool]:
        """Returns samples (n, C) in SI units and (n,) whether something was lost before each."""
        rest, needed, m = self._rest, self._needed, len(self._needed)
        wanted = np.isin(frames.kinds, np.array(needed, np.uint8))
        kinds = np.concatenate((rest.kinds, frames.kinds))
        payload = np.concatenate((rest.payload, frames.payload))
        damaged = np.concatenate((rest.damaged, frames.damaged))
        wanted = np.concatenate((np.ones(len(rest.kinds), np.bool_), wanted))
        falls = np.diff(kinds.astype(np.int16), prepend=np.int16(-1)) <= 0
        group: Int64 = np.cumsum(falls | damaged).astype(np.int64)
        at = np.flatnonzero(wanted)
        fits = max(0, len(at) - m + 1)
        complete = group[at[:fits]] == group[at[m - 1 :]]
        for i, kind in enumerate(needed):
            complete &= kinds[at[i : fits + i]] == kind
        first = np.flatnonzero(complete)
        rows = at[first[:, None] + np.arange(m)] if len(first) else np.zeros((0, m), np.intp)
        begun = len(np.unique(group[at])) - len(first)
        self._rest = self._unfinished(WitFrames(kinds, payload, damaged), group, at, rows)
        self.incomplete += begun - (len(self._rest.kinds) > 0)
        return self._columns(payload, rows), self._lost(damaged, rows[:, 0])

    def _lost(self, damaged: Bool, firsts: NDArray[np.intp]) -> Bool:
        hurt = np.concatenate(([0], np.cumsum(damaged)))
        lost: Bool = np.diff(hurt[firsts + 1], prepend=0) > 0
        if len(lost):
            lost[0] |= self._hurt
            self._hurt = bool(hurt[-1] > hurt[firsts[-1] + 1])
        else:
            self._hurt |= bool(hurt[-1])
        return lost

    @staticmethod
    def _unfinished(frames: WitFrames, group: Int64, at: NDArray[np.intp], rows: NDArray[np.intp]) -> WitFrames:
        """Returns the wanted frames of the last group, if it is still to be completed."""
        keep = at[group[at] == group[-1]] if len(at) else at
        if len(rows) and len(keep) and rows[-1, -1] == keep[-1]:
            keep = keep[:0]
        return WitFrames(frames.kinds[keep], frames.payload[keep], frames.damaged[keep])

    def _columns(self, payload: UInt8, rows: NDArray[np.intp]) -> Float32:
        parts = []
        for q in self._quantities:
            values = np.ascontiguousarray(payload[rows[:, self._needed.index(q.kind)]]).view("<i2")  # (n, 4)
            parts.append(values[:, : q.count] * np.float32(q.scale))
        return np.concatenate(parts, axis=1, dtype=np.float32)


BNO: Mapping[str, Quantity] = MappingProxyType({
    "acc": Quantity(0x08, 3, 1 / 100),
    "mag": Quantity(0x0E, 3, 1 / 16),
    "gyro": Quantity(0x14, 3, DEG / 16),
    "angle": Quantity(0x1A, 3, DEG / 16),  # heading, roll, pitch
    "quat": Quantity(0x20, 4, 1 / 16384),  # w, x, y, z
    "linear_acc": Quantity(0x28, 3, 1 / 100),
    "gravity": Quantity(0x2E, 3, 1 / 100),
})  # fmt: skip

BNO_STATUS: Mapping[int, str] = MappingProxyType({
    0x01: "write done", 0x02: "read failed", 0x03: "write failed", 0x04: "no such register",
    0x05: "register is write-protected", 0x06: "wrong start byte", 0x07: "bus overrun", 0x08: "too long",
    0x09: "too short", 0x0A: "receive time-out",
})  # fmt: skip


class BnoParser:
    """BNO055 replies: `BB length data…` or `EE status`; no checksum, so a length that was not asked for is damage."""

    def __init__(self) -> None:
        self.damage = Damage()
        self._rest = b""

    def feed(self, data: bytes, expected: int) -> list[bytes | int]:
        """Returns the complete replies: data, or a status number.

        Args:
            data: bytes as they came.
            expected: length that was asked for.
        """
        buffer, at = self._rest + data, 0
        replies: list[bytes | int] = []
        while len(buffer) - at >= 2:
            head, number = buffer[at], buffer[at + 1]
            if head == 0xEE and number in BNO_STATUS:
                replies.append(number)
                at += 2
            elif head == 0xBB and number == expected:
                if len(buffer) - at < 2 + expected:
                    break
                replies.append(buffer[at + 2 : at + 2 + expected])
                at += 2 + expected
            else:
                at += 1
                self.damage.skipped_bytes += 1
        self._rest = buffer[at:]
        return replies

    def reset(self) -> None:
        """Forgets a reply that was cut off, before the next question."""
        self._rest = b""


class LineParser:
    """Lines of numbers, as sketches on small boards print them. The first line is left out: it may be half of one.

    Args:
        columns: how many numbers a line has.
        separator: between them; "" is white space.
    """

    def __init__(self, columns: int, separator: str = ",") -> None:
        self.damage = Damage()
        self._columns = columns
        self._separator = separator.encode() or None
        self._rest = b""
        self._whole = False  # what comes now begins a line
        self._lost = False  # a line was lost since the last row

    def feed(self, data: bytes) -> tuple[list[list[float]], list[bool]]:
        """Returns the rows of the complete lines, and whether a line was lost before each."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        rows: list[list[float]] = []
        lost: list[bool] = []
        for line in lines:
            row = self._row(line) if self._whole else None
            if row is not None:
                rows.append(row)
                lost.append(self._lost)
                self._lost = False
            elif self._whole and line.strip():
                self.damage.incomplete += 1
                self.damage.skipped_bytes += len(line) + 1
                self.damage.regions += not self._lost
                self._lost = True
            elif not self._whole and self._lost:  # the end of a line that was too long to keep
                self.damage.skipped_bytes += len(line) + 1
            self._whole = True
        if len(self._rest) > LINE_MAX:
            self.damage.skipped_bytes += len(self._rest)
            self._rest, self._whole, self._lost = b"", False, True
        return rows, lost

    def _row(self, line: bytes) -> list[float] | None:
        cells = line.strip().split(self._separator)
        if len(line) > LINE_MAX or len(cells) != self._columns or b"_" in line:
            return None
        try:
            row = [float(cell) for cell in cells]
        except ValueError:
            return None
        return row if all(map(math.isfinite, row)) else None


__all__ = [
    "BNO",
    "BNO_STATUS",
    "DEG",
    "WIT",
    "BnoParser",
    "Damage",
    "G",
    "LineParser",
    "Quantity",
    "WitFrames",
    "WitGroups",
    "WitParser",
]

"""Xsens messages (Xbus, MTData2) to numbers; pure, in the manner of `sensors.frames`.

A sensor says the same things in every message, so that messages of one layout stand one behind the other: such a run is
checked and decoded at once, as the rows of one numpy record array. What is different begins another run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.records import Array, Int64
from sensors.frames import DEG, Damage, Quantity, UInt8

XBUS_MAX = 2048  # longest message that is believed; a broken length must not swallow a second of data


@dataclass(frozen=True, slots=True)
class Messages:
    """Messages of one kind and length, one directly behind the other."""

    mid: int
    rows: UInt8  # (n, bytes), each from the preamble to the checksum
    head: int  # bytes before the data of each
    lost: bool  # something was lost before the first

    def bodies(self) -> list[bytes]:
        """Returns the data of each."""
        return [row[self.head : -1].tobytes() for row in self.rows]


class XbusParser:
    """Xsens messages: `FA FF MID LEN data… CS`; FF + MID + LEN + data + CS = 0 modulo 256."""

    def __init__(self) -> None:
        self.damage = Damage()
        self._rest = b""
        self._lost = False  # something was skipped since the last message

    def feed(self, data: bytes) -> list[Messages]:
        """Returns the complete messages, in order."""
        buffer, at = self._rest + data, 0
        # Sum of the bytes before each position, modulo 256.
        sums = np.zeros(len(buffer) + 1, np.uint8)
        np.cumsum(np.frombuffer(buffer, np.uint8), dtype=np.uint8, out=sums[1:])
        found: list[Messages] = []
        while True:
            start = buffer.find(b"\xfa\xff", at)
            if start < 0:
                start = len(buffer) - buffer.endswith(b"\xfa")
            self._lost |= start > at
            self.damage.skipped_bytes += start - at
            at = start
            head, size = _xbus_size(buffer, at)
            if size < 0:  # not known yet, or not all there
                break
            end = at + head + size + 1
            if size > XBUS_MAX or (end <= len(buffer) and sums[end] != sums[at + 1]):
                self.damage.bad_checksum += 1
                self.damage.skipped_bytes += 1
                at, self._lost = at + 1, True
            elif end > len(buffer):
                break
            else:
                rows = _run(buffer, sums, at, head, end - at)
                found.append(Messages(buffer[at + 2], rows, head, self._lost))
                self.damage.regions += self._lost
                at, self._lost = at + rows.size, False
        self._rest = buffer[at:]
        return found


def _xbus_size(buffer: bytes, at: int) -> tuple[int, int]:
    """Returns the lengths of head and data of the message at a position; data −1: not known yet."""
    if len(buffer) - at < 4:
        return 4, -1
    if buffer[at + 3] != 0xFF:
        return 4, buffer[at + 3]
    if len(buffer) - at < 6:
        return 6, -1
    return 6, int.from_bytes(buffer[at + 4 : at + 6], "big")


def _run(buffer: bytes, sums: UInt8, at: int, head: int, length: int) -> UInt8:
    """Returns the good message at a position and the good ones behind it with the same head: (n, length)."""
    if buffer[at + length : at + length + head] != buffer[at : at + head]:
        return np.frombuffer(buffer, np.uint8, length, at).reshape(1, length)
    count = (len(buffer) - at) // length
    rows = np.frombuffer(buffer, np.uint8, count * length, at).reshape(count, length)
    stop = at + count * length + 1
    good = (rows[:, :head] == rows[0, :head]).all(axis=1)
    good &= sums[at + length : stop : length] == sums[at + 1 : stop : length]
    return rows if good.all() else rows[: int(good.argmin())]


def xbus(mid: int, data: bytes = b"") -> bytes:
    """Returns a message of at most 254 bytes for an Xsens sensor."""
    body = bytes((0xFF, mid, len(data))) + data
    return b"\xfa" + body + bytes((-sum(body) & 0xFF,))


MT: Mapping[str, Quantity] = MappingProxyType({
    "acc": Quantity(0x4020, 3, 1.0),
    "gyro": Quantity(0x8020, 3, 1.0),
    "mag": Quantity(0xC020, 3, 1.0),  # arbitrary units: normalised to the field where it was calibrated
    "quat": Quantity(0x2010, 4, 1.0),
    "angle": Quantity(0x2030, 3, DEG),
})  # fmt: skip
_MT_KINDS = {q.kind: (name, q) for name, q in MT.items()}
MT_COUNTER, MT_TIME_FINE, MTDATA2 = 0x1020, 0x1060, 0x36
_MT_CLOCKS = {MT_COUNTER: ("counter", ">u2"), MT_TIME_FINE: ("ticks", ">u4")}

# Bytes, numpy type of one number, divisor. 16.32 is written as 32 bits of fraction, then 16 bits of whole.
_FP1632 = [("fraction", ">u4"), ("whole", ">i2")]
_MT_FORMATS: tuple[tuple[int, Any, float], ...] = ((4, ">f4", 1.0), (4, ">i4", 2.0**20), (6, _FP1632, 1.0),
                                                   (8, ">f8", 1.0))  # fmt: skip


@dataclass(frozen=True, slots=True)
class MtSamples:
    """What MTData2 messages of one layout hold."""

    count: int
    values: Mapping[str, Array]  # quantity → (n, components), as `MT` names them
    counter: Int64 | None = None  # (n,) packet counter, 16 bit
    ticks: Int64 | None = None  # (n,) 100 µs each, 32 bit


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the parts of an MTData2 message stand."""

    fixed: NDArray[np.intp]  # positions of ids and lengths, which make the layout
    fields: tuple[tuple[str, Any, int], ...] | None  # name, type, position; None: the message contradicts itself


def mtdata2(messages: Messages) -> list[MtSamples | int]:
    """Returns the content of MTData2 messages, in order: samples of one layout, or how many contradict themselves."""
    found: list[MtSamples | int] = []
    rows = messages.rows
    while len(rows):
        layout = _layout(rows[0], messages.head)
        same = (rows[:, layout.fixed] == rows[0, layout.fixed]).all(axis=1)
        n = len(rows) if same.all() else int(same.argmin())
        found.append(n if layout.fields is None else _samples(rows[:n], layout.fields))
        rows = rows[n:]
    return found


def _layout(row: UInt8, head: int) -> _Layout:
    """Walks through one message."""
    data, at, end = row.tobytes(), head, len(row) - 1
    fixed, fields, wrong = list[int](), dict[str, tuple[str, Any, int]](), False
    while at + 3 <= end:
        kind, form, size = data[at] << 8 | data[at + 1] & 0xF0, data[at + 1] & 3, data[at + 2]
        fixed += (at, at + 1, at + 2)
        field, width = _field(kind, form, at + 3)
        if field is not None:
            wrong |= size != width
            fields[field[0]] = field
        at += 3 + size
    wrong |= at != end
    return _Layout(np.array(fixed, np.intp), None if wrong else tuple(fields.values()))


def _field(kind: int, form: int, at: int) -> tuple[tuple[str, Any, int] | None, int]:
    """Returns name, type and position of what stands there, and its bytes; None: something that nobody wants."""
    if kind in _MT_KINDS:
        name, quantity = _MT_KINDS[kind]
        return (name, form, at), _MT_FORMATS[form][0] * quantity.count
    if kind in _MT_CLOCKS:
        name, code = _MT_CLOCKS[kind]
        return (name, code, at), int(code[2])
    return None, 0


@lru_cache(maxsize=64)
def _record(fields: tuple[tuple[str, Any, int], ...], length: int) -> np.dtype[Any]:
    """Returns the record of one message."""
    types = [(_MT_FORMATS[code][1], (MT[name].count,)) if name in MT else code for name, code, _ in fields]
    names, offsets = [name for name, _, _ in fields], [at for _, _, at in fields]
    return np.dtype({"names": names, "formats": types, "offsets": offsets, "itemsize": length})


def _samples(rows: UInt8, fields: tuple[tuple[str, Any, int], ...]) -> MtSamples:
    records = rows.view(_record(fields, rows.shape[1]))[:, 0]
    values = {name: _decoded(records[name], code) * MT[name].scale for name, code, _ in fields if name in MT}
    clocks = {name: records[name].astype(np.int64) for name, _, _ in fields if name not in MT}
    return MtSamples(len(rows), values, clocks.get("counter"), clocks.get("ticks"))


def _decoded(raw: Array, form: int) -> Array:
    """(n, components) as they stand in the messages → float64."""
    if form == 2:
        numbers: Array = raw["whole"] + raw["fraction"] / 2.0**32
        return numbers
    with np.errstate(invalid="ignore"):  # what is not a number stays so; the windows count it
        return raw.astype(np.float64) / _MT_FORMATS[form][2]


__all__ = ["MT", "MTDATA2", "MT_COUNTER", "MT_TIME_FINE", "Messages", "MtSamples", "XbusParser", "mtdata2", "xbus"]

"""Xsens messages (Xbus, MTData2) to numbers; pure, in the manner of `sensors.frames`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from edge_sdk.core.records import Array
from sensors.frames import DEG, Damage, Quantity

XBUS_MAX = 2048  # longest message that is believed; a broken length must not swallow a second of data


class XbusParser:
    """Xsens messages: `FA FF MID LEN data… CS`; FF + MID + LEN + data + CS = 0 modulo 256."""

    def __init__(self) -> None:
        self.damage = Damage()
        self._rest = b""
        self._lost = False  # something was skipped since the last message

    def feed(self, data: bytes) -> list[tuple[int, bytes, bool]]:
        """Returns (message id, data, something was lost before it) of the complete messages."""
        buffer, at = self._rest + data, 0
        # Sum of the bytes before each position, modulo 256.
        sums = b"\0" + np.cumsum(np.frombuffer(buffer, np.uint8), dtype=np.uint8).tobytes()
        messages: list[tuple[int, bytes, bool]] = []
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
                messages.append((buffer[at + 2], buffer[at + head : end - 1], self._lost))
                self.damage.regions += self._lost
                at, self._lost = end, False
        self._rest = buffer[at:]
        return messages


def _xbus_size(buffer: bytes, at: int) -> tuple[int, int]:
    """Returns the lengths of head and data of the message at a position; data −1: not known yet."""
    if len(buffer) - at < 4:
        return 4, -1
    if buffer[at + 3] != 0xFF:
        return 4, buffer[at + 3]
    if len(buffer) - at < 6:
        return 6, -1
    return 6, int.from_bytes(buffer[at + 4 : at + 6], "big")


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


def _f32(data: bytes) -> Array:
    return np.frombuffer(data, ">f4")


def _fp1220(data: bytes) -> Array:
    return np.frombuffer(data, ">i4") / 2.0**20


def _fp1632(data: bytes) -> Array:
    """48-bit numbers: 32 bits of fraction first, then 16 bits of whole."""
    parts = np.frombuffer(data, np.dtype([("fraction", ">u4"), ("whole", ">i2")]))
    return parts["whole"] + parts["fraction"] / 2.0**32


def _f64(data: bytes) -> Array:
    return np.frombuffer(data, ">f8")


_MT_FORMATS: tuple[tuple[int, Callable[[bytes], Array]], ...] = ((4, _f32), (4, _fp1220), (6, _fp1632), (8, _f64))


@dataclass(frozen=True, slots=True)
class MtSample:
    """What one MTData2 message holds."""

    values: Mapping[str, Array]  # quantity → its components, as `MT` names them
    counter: int | None = None  # packet counter, 16 bit
    ticks: int | None = None  # 100 µs each, 32 bit


def _scaled(values: Array, scale: float) -> Array:
    with np.errstate(invalid="ignore"):  # what is not a number stays so; the windows count it
        return values * scale


def mtdata2(data: bytes) -> MtSample | None:
    """Returns the content of an MTData2 message; None: it contradicts itself."""
    values: dict[str, Array] = {}
    counter = ticks = None
    at, end = 0, len(data)
    while at + 3 <= end:
        kind, form, size = data[at] << 8 | data[at + 1] & 0xF0, data[at + 1] & 3, data[at + 2]
        body = data[at + 3 : at + 3 + size]
        at += 3 + size
        known = _MT_KINDS.get(kind)
        if at > end:
            return None
        if known is not None:
            name, quantity = known
            width, decode = _MT_FORMATS[form]
            if size != width * quantity.count:
                return None
            values[name] = decode(body) if quantity.scale == 1.0 else _scaled(decode(body), quantity.scale)
        elif kind == MT_COUNTER:
            counter = int.from_bytes(body, "big")
        elif kind == MT_TIME_FINE:
            ticks = int.from_bytes(body, "big")
    return MtSample(values, counter, ticks) if at == end else None


__all__ = ["MT", "MTDATA2", "MT_COUNTER", "MT_TIME_FINE", "MtSample", "XbusParser", "mtdata2", "xbus"]

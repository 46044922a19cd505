"""Throws damaged bytes at every parser of the sensors, and checks what must hold whatever comes.

python -m tests.helpers.fuzz_frames 1000000     so many inputs for each parser
"""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections.abc import Callable

import numpy as np

from edge_sdk.core.errors import ConfigError
from sensors.buttons import LINE_MAX, ButtonLines
from sensors.frames import BnoParser, LineParser, WitGroups, WitParser
from sensors.imu_iio import Element
from sensors.protocols import PROTOCOLS, Plan
from sensors.xbus import XbusParser, mtdata2, xbus
from tests.helpers.virtual_imu import bno_reply, csv_sample, wit_sample, xsens_sample

LONG = 10_000  # from so many inputs on each parser is reported
KEPT = 8192  # bytes a parser may keep: more means that it waits for something that never comes


def _wit(rng: random.Random) -> Callable[[bytes], None]:
    parser, groups = WitParser(), WitGroups(("gyro", "acc"))

    def feed(data: bytes) -> None:
        samples, lost = groups.feed(parser.feed(data))
        assert samples.shape == (len(lost), 6)
        assert np.isfinite(samples).all()
        assert len(parser._rest) <= 10

    return feed


def _xbus(rng: random.Random) -> Callable[[bytes], None]:
    parser = XbusParser()

    def feed(data: bytes) -> None:
        for messages in parser.feed(data):
            contents = mtdata2(messages)
            assert sum(c if isinstance(c, int) else c.count for c in contents) == len(messages.rows)
        assert len(parser._rest) < KEPT

    return feed


def _mtdata2(rng: random.Random) -> Callable[[bytes], None]:
    def feed(data: bytes) -> None:
        body = data[4:-1]
        (messages,) = XbusParser().feed((1 + len(body) % 3) * xbus(0x36, body))
        assert mtdata2(messages)

    return feed


def _bno(rng: random.Random) -> Callable[[bytes], None]:
    parser = BnoParser()

    def feed(data: bytes) -> None:
        for reply in parser.feed(data, 18):
            assert isinstance(reply, int) or len(reply) == 18
        assert len(parser._rest) <= 20

    return feed


def _line(rng: random.Random) -> Callable[[bytes], None]:
    parser = LineParser(7)

    def feed(data: bytes) -> None:
        rows, lost = parser.feed(data)
        assert len(rows) == len(lost)
        assert all(math.isfinite(v) for row in rows for v in row)
        assert len(parser._rest) < KEPT

    return feed


def _bno_reply(number: int) -> bytes:
    return b"\xee\x07" if number % 5 == 0 else bno_reply(number)


def _protocol(name: str, channels: tuple[str, ...], columns: int) -> Callable[[random.Random], Callable[[bytes], None]]:
    """The whole way from bytes to samples, and the search for the baud."""

    def make(rng: random.Random) -> Callable[[bytes], None]:
        protocol = PROTOCOLS[name](Plan(channels, 100.0))

        def feed(data: bytes) -> None:
            samples = protocol.feed(data)
            assert samples.data.shape == (len(samples.lost), columns)
            assert samples.data.dtype == np.float32
            assert samples.ticks is None or len(samples.ticks) == len(samples.lost)
            if rng.random() < 0.05:
                assert protocol.heard(data) >= 0

        return feed

    return make


def _buttons(rng: random.Random) -> Callable[[bytes], None]:
    lines = ButtonLines()

    def feed(data: bytes) -> None:
        for press in lines.feed(data):
            assert press.button
            assert press.button[0] not in "+-"
        assert len(lines._rest) <= LINE_MAX

    return feed


def _button_line(number: int) -> bytes:
    return f"{'+-'[number % 2]}{number % 7}\r\n".encode()


def _element(rng: random.Random) -> Callable[[bytes], None]:
    def feed(data: bytes) -> None:
        try:
            element = Element.parse("in_accel_x", 0, data.decode(errors="replace"))
        except ConfigError:
            return
        word = np.array([rng.getrandbits(8 * element.storage)], f"u{element.storage}")
        assert -(2**63) <= int(element.decode(word)[0]) < 2**63

    return feed


def _element_type(number: int) -> bytes:
    return (b"le:s12/16>>4", b"be:u24/32>>8", b"le:s64/64>>0", b"le:u16/16X1>>0", b"le:s16/16X3>>0")[number % 5]


# Parser and its good input.
TARGETS: dict[str, tuple[Callable[[random.Random], Callable[[bytes], None]], Callable[[int], bytes]]] = {
    "wit": (_wit, wit_sample),
    "xbus": (_xbus, xsens_sample),
    "mtdata2": (_mtdata2, xsens_sample),
    "bno": (_bno, _bno_reply),
    "line": (_line, csv_sample),
    "protocol witmotion": (_protocol("witmotion", ("acc", "gyro"), 6), wit_sample),
    "protocol bno055": (_protocol("bno055", ("acc", "quat"), 7), _bno_reply),
    "protocol xsens": (_protocol("xsens", ("gyro", "acc"), 6), xsens_sample),
    "protocol csv": (_protocol("csv", ("t_ms", "ax", "-", "ay", "az", "-", "-"), 3), csv_sample),
    "iio element": (_element, _element_type),
    "buttons": (_buttons, _button_line),
}


def damaged(good: list[bytes], rng: random.Random) -> bytes:
    """Returns a good input, one with flipped, missing or doubled bytes, or noise."""
    data = good[int(rng.random() * len(good))]
    what = int(rng.random() * 6)
    if what == 0:
        return rng.randbytes(rng.randrange(60))
    if what == 1:
        return data
    at = int(rng.random() * len(data))
    if what == 2:
        return data[:at]
    if what == 3:
        return data[at:] + data[:at]
    if what == 4:
        return data[:at] + data[at // 2 :]
    return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]


def fuzz(inputs: int, seed: int) -> dict[str, int]:
    """Feeds so many inputs to each parser; returns how many each got."""
    counts = {}
    for name, (make, sample) in TARGETS.items():
        rng = random.Random(f"{seed} {name}")
        feed, good = make(rng), [sample(i * 37) for i in range(100)]
        for i in range(inputs):
            data = damaged(good, rng)
            try:
                feed(data)
            except Exception as error:
                raise AssertionError(f"{name}, input {i} of seed {seed}: {data.hex()}") from error
        counts[name] = inputs
        if inputs >= LONG:
            print(f"{name}: {inputs} inputs without a crash", flush=True)
    return counts


if __name__ == "__main__":
    warnings.simplefilter("error")
    fuzz(max(LONG, int(sys.argv[1])), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)

"""Throws damaged bytes at every parser of `sensors.frames`, and checks what must hold whatever comes.

python -m tests.helpers.fuzz_frames 1000000
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np

from sensors.frames import BnoParser, LineParser, WitGroups, WitParser
from sensors.xbus import XbusParser, mtdata2
from tests.helpers.virtual_imu import csv_sample, wit_sample, xsens_sample

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
        for _, body, _ in parser.feed(data):
            mtdata2(body)
        assert len(parser._rest) < KEPT

    return feed


def _mtdata2(rng: random.Random) -> Callable[[bytes], None]:
    def feed(data: bytes) -> None:
        mtdata2(data[4:-1])

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
    return b"\xee\x07" if number % 5 == 0 else b"\xbb\x12" + bytes((number + i) & 0xFF for i in range(18))


# Parser, good input, share of all inputs (the slow one gets fewer).
TARGETS: dict[str, tuple[Callable[[random.Random], Callable[[bytes], None]], Callable[[int], bytes], int]] = {
    "wit": (_wit, wit_sample, 1),
    "xbus": (_xbus, xsens_sample, 3),
    "mtdata2": (_mtdata2, xsens_sample, 2),
    "bno": (_bno, _bno_reply, 3),
    "line": (_line, csv_sample, 2),
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
    """Feeds so many inputs in all; returns how many each parser got."""
    rng = random.Random(seed)
    shares = [name for name, target in TARGETS.items() for _ in range(target[2])]
    feeds = {name: target[0](rng) for name, target in TARGETS.items()}
    good = {name: [target[1](i * 37) for i in range(100)] for name, target in TARGETS.items()}
    counts: Counter[str] = Counter()
    for i in range(inputs):
        name = shares[i % len(shares)]
        data = damaged(good[name], rng)
        try:
            feeds[name](data)
        except Exception as error:
            raise AssertionError(f"{name}, input {i} of seed {seed}: {data.hex()}") from error
        counts[name] += 1
    return dict(counts)


if __name__ == "__main__":
    print(fuzz(int(sys.argv[1]), seed=0))

"""Parsers of inertial sensors: what they find in good bytes, in damaged bytes, and in bytes cut anywhere."""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensors.frames import DEG, BnoParser, Damage, G, LineParser, WitGroups, WitParser
from sensors.xbus import Messages, MtSamples, XbusParser, mtdata2, xbus
from tests.helpers.fuzz_frames import fuzz
from tests.helpers.virtual_imu import wit_frame, wit_sample, xsens_sample

NOISE = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 300).map(wit_sample),
    st.integers(0, 300).map(lambda i: wit_sample(i)[: i % 44]),
    st.lists(st.sampled_from([0x55, 0x51, 0x52, 0]), max_size=30).map(bytes),
)
STREAM = st.lists(NOISE, max_size=12).map(b"".join)


def plain_wit(data: bytes) -> tuple[list[tuple[int, bytes]], int, int]:
    """The protocol byte by byte, as one would write it down: frames, bad sums, skipped bytes."""
    frames, bad, skipped, i = [], 0, 0, 0
    while len(data) - i >= 11:
        head = data[i] == 0x55 and 0x50 <= data[i + 1] <= 0x5F
        if head and sum(data[i : i + 10]) & 0xFF == data[i + 10]:
            frames.append((data[i + 1], data[i + 2 : i + 10]))
            i += 11
        else:
            bad += head
            skipped += 1
            i += 1
    return frames, bad, skipped


def plain_xbus(data: bytes) -> tuple[list[tuple[int, bytes, bool]], Damage]:
    """The protocol message by message: number, data, whether something was lost before."""
    found, damage, i, lost = [], Damage(), 0, False
    while len(data) - i >= 2:
        if data[i : i + 2] != b"\xfa\xff":
            i, lost = i + 1, True
            damage.skipped_bytes += 1
            continue
        long = data[i + 3 : i + 4] == b"\xff"
        head = 6 if long else 4
        if len(data) - i < head:
            break
        size = int.from_bytes(data[i + 4 : i + 6], "big") if long else data[i + 3]
        end = i + head + size + 1
        if size <= 2048 and end > len(data):
            break
        if size > 2048 or sum(data[i + 1 : end]) & 0xFF:
            damage.bad_checksum += 1
            damage.skipped_bytes += 1
            i, lost = i + 1, True
            continue
        found.append((data[i + 2], data[i + head : end - 1], lost))
        damage.regions += lost
        i, lost = end, False
    if len(data) - i == 1 and data[i:] != b"\xfa":
        damage.skipped_bytes += 1
    return found, damage


def plain_mtdata2(data: bytes) -> dict[str, list[float] | int] | None:
    """A message as the manual describes it: names to numbers."""
    known = {0x4020: ("acc", 3, 1.0), 0x8020: ("gyro", 3, 1.0), 0x2010: ("quat", 4, 1.0), 0x2030: ("angle", 3, DEG)}
    clocks = {0x1020: ("counter", 2), 0x1060: ("ticks", 4)}
    found: dict[str, list[float] | int] = {}
    while len(data) >= 3:
        kind, form, size = int.from_bytes(data[:2], "big") & 0xFFF0, data[1] & 3, data[2]
        body, data = data[3 : 3 + size], data[3 + size :]
        if kind in clocks:
            if size != clocks[kind][1]:
                return None
            found[clocks[kind][0]] = int.from_bytes(body, "big")
        if kind in known:
            name, count, scale = known[kind]
            if size != count * (4, 4, 6, 8)[form]:
                return None
            words = [body[i : i + size // count] for i in range(0, size, size // count)]
            found[name] = [number(word, form) * scale for word in words]
    return None if data else found


def number(word: bytes, form: int) -> float:
    if form == 2:
        return int.from_bytes(word[4:], "big", signed=True) + int.from_bytes(word[:4], "big") / 2.0**32
    value: float = struct.unpack(">" + "fi d"[form], word)[0]
    return value / 2.0**20 if form == 1 else value


def plain(samples: MtSamples) -> list[dict[str, list[float] | int]]:
    rows: list[dict[str, list[float] | int]] = [{} for _ in range(samples.count)]
    for name, values in {**samples.values, "counter": samples.counter, "ticks": samples.ticks}.items():
        for row, value in zip(rows, [] if values is None else values.tolist(), strict=values is not None):
            row[name] = value
    return rows


def messages(runs: list[Messages]) -> list[tuple[int, bytes, bool]]:
    return [(r.mid, body, r.lost and not i) for r in runs for i, body in enumerate(r.bodies())]


def run(*bodies: bytes) -> Messages:
    (found,) = XbusParser().feed(b"".join(xbus(0x36, body) for body in bodies))
    return found


MESSAGES = st.lists(st.integers(0, 99).map(xsens_sample), max_size=5).map(b"".join)
SHORT = (xbus(0x31), xbus(0x36), xbus(0x36, b"\xfa\xff\x36"))


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    marks = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(marks)]


@settings(max_examples=400, deadline=None)
@given(data=STREAM, cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_witmotion_equals_the_plain_reader_however_the_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    parser, whole = WitParser(), WitParser()
    found = []
    for piece in cut(data, cuts):
        frames = parser.feed(piece)
        found += [(int(k), bytes(p)) for k, p in zip(frames.kinds, frames.payload, strict=True)]
    frames, bad, skipped = plain_wit(data)
    assert found == frames
    assert (parser.damage.bad_checksum, parser.damage.skipped_bytes) == (bad, skipped)
    whole.feed(data)
    assert parser.damage.regions == whole.damage.regions


@settings(max_examples=100, deadline=None)
@given(data=STREAM, cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_groups_are_the_same_however_the_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    def samples(pieces: list[bytes]) -> tuple[list[list[float]], int]:
        parser, groups, rows = WitParser(), WitGroups(("acc", "gyro")), []
        for piece in pieces:
            rows += groups.feed(parser.feed(piece))[0].tolist()
        return rows, len(rows)

    assert samples(cut(data, cuts)) == samples([data])


def test_witmotion_in_si_units() -> None:
    samples, lost = WitGroups(("acc", "gyro", "angle")).feed(WitParser().feed(wit_sample(1024)))
    acc, gyro, angle = np.split(samples[0], 3)
    assert acc == pytest.approx([G / 2, -G / 2, G])
    assert gyro == pytest.approx([1000 * DEG, -1000 * DEG, 0])
    assert angle == pytest.approx([45 * DEG, 0, -45 * DEG])
    assert not lost.any()


@pytest.mark.parametrize(("byte", "kept"), [(2, True), (11 + 5, False), (22 + 5, False), (33 + 10, True)])
def test_one_flipped_bit_costs_at_most_its_own_group(byte: int, kept: bool) -> None:
    """Frames 0 and 3 (time, angle) are not asked for: damage there costs nothing."""
    stream = bytearray(b"".join(map(wit_sample, range(5))))
    stream[2 * 44 + byte] ^= 0x10
    parser, groups = WitParser(), WitGroups(("acc", "gyro"))
    samples, lost = groups.feed(parser.feed(bytes(stream)))
    numbers = np.rint(samples[:, 0] / (16 / 32768 * G)).astype(int).tolist()
    assert numbers == ([0, 1, 2, 3, 4] if kept else [0, 1, 3, 4])
    assert parser.damage.regions == 1
    assert groups.incomplete == (not kept)
    assert lost.sum() == 1


def test_a_frame_inside_a_broken_frame_is_found() -> None:
    inner = wit_frame(0x51, bytes(8))
    parser = WitParser()
    frames = parser.feed(b"\x55\x52\x00" + inner + wit_frame(0x52, bytes(8)))
    assert frames.kinds.tolist() == [0x51, 0x52]
    assert parser.damage.skipped_bytes == 3


def test_frames_of_two_instants_are_never_put_together() -> None:
    first, second = wit_sample(1), wit_sample(2)
    stream = first[:22] + second[22:]  # time and acceleration of one, rotation and angle of the next …
    stream = stream[:22] + b"\x00" + stream[22:]  # … and something lost between them
    samples, _ = WitGroups(("acc", "gyro")).feed(WitParser().feed(stream))
    assert len(samples) == 0


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.one_of(st.binary(max_size=20), MESSAGES, st.sampled_from(SHORT)), max_size=8),
    cuts=st.lists(st.integers(0, 500), max_size=8),
)
def test_xbus_equals_the_plain_reader_however_the_bytes_are_cut(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    parser = XbusParser()
    found = [m for piece in cut(data, cuts) for m in messages(parser.feed(piece))]
    expected, damage = plain_xbus(data)
    assert found == expected
    assert parser.damage == damage


def test_xbus_finds_what_follows_garbage_and_says_so() -> None:
    parser = XbusParser()
    found = messages(parser.feed(b"\xfa\xff\x36\x04junk" + xsens_sample(7) + b"\xfa" + xsens_sample(8)))
    assert [(mid, lost) for mid, _, lost in found] == [(0x36, True), (0x36, True)]
    assert parser.damage.regions == 2


def test_xbus_with_an_extended_length() -> None:
    body = bytes(300)
    head = b"\xff\x36\xff" + struct.pack(">H", len(body)) + body
    message = b"\xfa" + head + bytes((-sum(head) & 0xFF,))
    (found,) = XbusParser().feed(2 * message)
    assert messages([found]) == 2 * [(0x36, body, False)]


def test_xbus_sum_includes_the_bus_id() -> None:
    assert xbus(0x30) == b"\xfa\xff\x30\x00\xd1"  # GoToConfig, as the manual prints it


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (0, struct.pack(">3f", 1.5, -2.25, 0)),
        (1, struct.pack(">3i", 3 << 19, -9 << 18, 0)),
        (2, struct.pack(">IhIhIh", 1 << 31, 1, 3 << 30, -3, 0, 0)),
        (3, struct.pack(">3d", 1.5, -2.25, 0)),
    ],
)
def test_mtdata2_number_formats(code: int, body: bytes) -> None:
    data = struct.pack(">HB", 0x4020 | code, len(body)) + body
    (sample,) = mtdata2(run(data, data))
    assert not isinstance(sample, int)
    assert sample.values["acc"].tolist() == 2 * [[1.5, -2.25, 0.0]]


@pytest.mark.parametrize("data", [b"\x40\x20\x0c123", b"\x40\x20\x04\0\0\0\0", b"\x40", xsens_sample(1)[4:-3]])
def test_mtdata2_that_contradicts_itself(data: bytes) -> None:
    assert mtdata2(run(data, data)) == [2]


FIELDS = st.lists(
    st.sampled_from(
        [(0x1020, 2), (0x1060, 4), (0x4020, 12), (0x4021, 12), (0x8022, 18), (0x2013, 32), (0x2030, 12), (0x0810, 4),
         (0x4020, 11), (0x1060, 3)]
    ),
    max_size=5,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(layouts=st.lists(FIELDS, min_size=1, max_size=3), order=st.lists(st.integers(0, 2), max_size=12), data=st.data())
def test_mtdata2_equals_the_plain_reader_whatever_the_order_of_layouts(
    layouts: list[list[tuple[int, int]]], order: list[int], data: st.DataObject
) -> None:
    bodies = [
        b"".join(struct.pack(">HB", kind, size) + data.draw(st.binary(min_size=size, max_size=size))
                 for kind, size in layouts[i % len(layouts)])
        for i in order
    ]  # fmt: skip
    found = []
    for many in XbusParser().feed(b"".join(xbus(0x36, body) for body in bodies)):
        for samples in mtdata2(many):
            found += samples * [None] if isinstance(samples, int) else plain(samples)
    expected = [plain_mtdata2(body) for body in bodies]
    assert repr([m and sorted(m.items()) for m in found]) == repr(
        [m and sorted(m.items()) for m in expected]
    )  # which tells a NaN from a number and equals it to itself


def test_bno055_replies_and_errors() -> None:
    parser = BnoParser()
    assert parser.feed(b"\xee\x07\x00\xbb\x03a", 3) == [7]
    assert parser.feed(b"bc\xee\x01", 3) == [b"abc", 1]
    assert parser.damage.skipped_bytes == 1
    assert parser.feed(b"\xbb\x02xy", 3) == []  # a length that nobody asked for


def test_lines_of_numbers() -> None:
    parser = LineParser(3)
    rows, lost = parser.feed(b"5,6\n1,2,3\r\nhello\n4,nan,6\n4,5,6\n7,8")
    assert rows == [[1, 2, 3], [4, 5, 6]]
    assert lost == [False, True]
    assert parser.feed(b",9\n")[0] == [[7, 8, 9]]
    assert parser.damage == Damage(skipped_bytes=14, regions=1, incomplete=2)


def test_a_line_that_never_ends_takes_no_memory() -> None:
    parser = LineParser(2)
    for _ in range(100):
        parser.feed(b"1" * 100)
    assert parser.feed(b"1,2\n3,4\n")[0] == [[3, 4]]


def test_fuzz() -> None:
    """The quick form; a million inputs for each parser: python -m tests.helpers.fuzz_frames 1000000."""
    assert set(fuzz(3000, seed=1).values()) == {3000}

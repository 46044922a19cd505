from __future__ import annotations

import random
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.codecs import chunks, wire
from edge_sdk.codecs.chunks import Assembled, Assembler, Preamble
from edge_sdk.core.errors import WireFormatError
from tests.helpers.codec_examples import BASE, KEY

OBJECT_KEY = chunks.update_key(KEY, "aa" * 16)
SMALLEST = chunks.PREAMBLE_BYTES + chunks.MIN_PAYLOAD
DATA = random.Random(1).randbytes(5 * chunks.MIN_PAYLOAD + 100)  # six chunks of the smallest size
CUT = chunks.split(DATA, "update", OBJECT_KEY, chunk_bytes=SMALLEST)
PIECES = [bytes(chunk) for chunk in CUT]  # as a network brings them
MEGA = 1 << 20


def forge(chunk: bytes, offset: int, layout: str, value: int) -> bytes:
    """Returns a chunk with one number of its preamble changed and the CRC made right again."""
    raw = bytearray(chunk)
    struct.pack_into("<" + layout, raw, offset, value)
    struct.pack_into("<I", raw, 60, zlib.crc32(raw[64:], zlib.crc32(raw[:60])))
    return bytes(raw)


def feed(assembler: Assembler, pieces: list[bytes], source: str = "d") -> Assembled | None:
    done = None
    for piece in pieces:
        done = assembler.add(source, piece, 0) or done
    return done


def test_the_preamble_says_where_a_chunk_belongs() -> None:
    parsed = Preamble.parse(PIECES[5])
    assert parsed == Preamble("update", OBJECT_KEY, 5, 6, len(DATA), wire.object_digest(DATA), chunks.MIN_PAYLOAD)
    assert parsed.payload_bytes == 100
    assert chunks.is_chunk(PIECES[0])
    assert not chunks.is_chunk(b"\x81\xa4want\xa4task")


def test_chunks_have_at_most_96_kib() -> None:
    data = bytes(300_000)
    pieces = chunks.split(data, "model", bytes(16))
    assert [len(p) for p in pieces] == [98_304, 98_304, 98_304, 300_000 - 3 * 98_240 + 64]
    assert chunks.join(pieces) == data


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(6)), st.lists(st.integers(0, 5), max_size=6))
def test_any_order_and_duplicates(order: list[int], again: list[int]) -> None:
    assembler = Assembler(MEGA, MEGA)
    for n in order[:-1]:
        assert assembler.add("d", PIECES[n], 0) is None
    for n in again:
        if n != order[-1]:
            assert assembler.add("d", PIECES[n], 0) is None
    assert assembler.missing("d", OBJECT_KEY) == (order[-1],)
    done = assembler.add("d", PIECES[order[-1]], 0)
    assert done == Assembled("d", "update", OBJECT_KEY, wire.object_digest(DATA), DATA)
    assert assembler.used_bytes == 0


def test_missing_names_what_a_sender_has_to_repeat() -> None:
    assembler = Assembler(MEGA, MEGA)
    assert assembler.missing("d", OBJECT_KEY) == ()
    feed(assembler, [PIECES[4], PIECES[0]])
    assert assembler.missing("d", OBJECT_KEY) == (1, 2, 3, 5)
    assert assembler.missing("d", OBJECT_KEY, limit=2) == (1, 2)
    assert assembler.missing("somebody else", OBJECT_KEY) == ()


def test_sources_do_not_mix() -> None:
    assembler = Assembler(MEGA, MEGA)
    assert feed(assembler, PIECES[:3], "a") is None
    assert feed(assembler, PIECES[3:], "b") is None
    assert assembler.missing("a", OBJECT_KEY) == (3, 4, 5)


def test_chunks_handed_over_in_the_process_give_the_object_itself_back() -> None:
    assembler = Assembler(MEGA, MEGA)
    for order in (CUT, CUT[::-1], [*CUT[:3], *CUT[:3], *CUT[3:]]):
        done = feed(assembler, list(order))
        assert done == Assembled("d", "update", OBJECT_KEY, wire.object_digest(DATA), DATA)
        assert done.data is DATA
    assert assembler.used_bytes == 0


@pytest.mark.parametrize("cut", [(0,), (5,), (0, 1, 2, 3, 4), (1, 2, 3, 4, 5)])
def test_a_single_chunk_from_elsewhere_has_the_whole_object_checked(cut: tuple[int, ...]) -> None:
    mixed = [CUT[n] if n in cut else PIECES[n] for n in range(6)]
    done = feed(Assembler(MEGA, MEGA), mixed)
    assert done is not None
    assert done.data == DATA
    assert done.data is not DATA
    other = next(n for n in range(6) if n not in cut)
    bad = bytearray(PIECES[other])
    bad[70] ^= 1
    mixed[other] = forge(bytes(bad), 6, "H", 0)
    with pytest.raises(WireFormatError, match="wrong digest"):
        feed(Assembler(MEGA, MEGA), mixed)


def test_chunks_of_two_objects_under_one_name_are_checked() -> None:
    other = chunks.split(DATA[::-1], "update", OBJECT_KEY, chunk_bytes=SMALLEST, digest=wire.object_digest(DATA))
    with pytest.raises(WireFormatError, match="wrong digest"):
        feed(Assembler(MEGA, MEGA), [*CUT[:3], *other[3:]])


def test_what_does_not_grow_expires_and_gives_its_memory_back() -> None:
    assembler = Assembler(MEGA, MEGA)
    assembler.add("d", PIECES[0], 0)
    assembler.add("d", PIECES[2], 50)
    assert assembler.expire(100, 60) == []
    (dropped,) = assembler.expire(110, 60)
    assert (dropped.source, dropped.key, dropped.missing) == ("d", OBJECT_KEY, (1, 3, 4, 5))
    assert assembler.used_bytes == 0
    assert feed(assembler, PIECES) is not None


def test_forget_drops_one_source() -> None:
    assembler = Assembler(MEGA, MEGA)
    feed(assembler, PIECES[:1], "a")
    feed(assembler, PIECES[:1], "b")
    assembler.forget("a")
    assembler.forget("nobody")
    assert assembler.missing("a", OBJECT_KEY) == ()
    assert assembler.missing("b", OBJECT_KEY) != ()


def test_an_object_that_can_never_fit_is_refused_before_memory_is_taken() -> None:
    assembler = Assembler(4000, MEGA)
    with pytest.raises(WireFormatError, match="at most 4000"):
        assembler.add("d", PIECES[0], 0)
    assert assembler.used_bytes == 0


def test_a_newer_object_of_a_source_takes_the_place_of_its_oldest() -> None:
    assembler = Assembler(2 * len(DATA), MEGA)
    other = [bytes(c) for c in chunks.split(DATA[::-1], "update", bytes(16), chunk_bytes=SMALLEST)]
    assembler.add("d", PIECES[0], 0)
    assert feed(assembler, other) is not None
    assert assembler.evicted == 1
    assert assembler.missing("d", OBJECT_KEY) == ()


def test_when_all_memory_is_used_a_chunk_counts_as_lost() -> None:
    assembler = Assembler(2 * len(DATA), 2 * len(DATA))
    assembler.add("a", PIECES[0], 0)
    assert feed(assembler, PIECES, "b") is None
    assert assembler.refused == 6
    assert feed(assembler, PIECES, "a") is not None
    assert feed(assembler, PIECES, "b") is not None


def test_many_tiny_objects_are_charged_for_their_bookkeeping() -> None:
    assembler = Assembler(64 * 1024, MEGA)
    for n in range(2000):
        key = n.to_bytes(16, "little")
        assembler.add("d", forge(PIECES[0], 8, "16s", key), 0)  # type: ignore[arg-type]  # bytes, not a number
    assert assembler.used_bytes <= 64 * 1024
    assert assembler.evicted > 1900


def test_a_wrong_digest_drops_the_whole_object() -> None:
    assembler = Assembler(MEGA, MEGA)
    bad = [bytearray(p) for p in PIECES]
    bad[3][70] ^= 1
    bad[3] = bytearray(forge(bytes(bad[3]), 6, "H", 0))
    with pytest.raises(WireFormatError, match="wrong digest"):
        feed(assembler, [bytes(b) for b in bad])
    assert assembler.used_bytes == 0
    assert feed(assembler, PIECES) is not None


def test_a_chunk_that_comes_twice_with_other_contents_is_refused() -> None:
    assembler = Assembler(MEGA, MEGA)
    assembler.add("d", PIECES[1], 0)
    other = bytearray(PIECES[1])
    other[100] ^= 255
    with pytest.raises(WireFormatError, match="different contents"):
        assembler.add("d", forge(bytes(other), 6, "H", 0), 0)
    assert feed(assembler, PIECES) is not None


@pytest.mark.parametrize(("offset", "layout", "value"), [(40, "Q", 7), (5, "B", 2), (32, "Q", len(DATA) - 1)])
def test_a_chunk_that_contradicts_its_object_is_refused(offset: int, layout: str, value: int) -> None:
    assembler = Assembler(MEGA, MEGA)
    assembler.add("d", PIECES[1], 0)
    with pytest.raises(WireFormatError, match="contradicts"):
        assembler.add("d", forge(PIECES[2], offset, layout, value), 0)
    assert feed(assembler, PIECES) is not None


LIES = [
    (0, "I", 0, "magic"),
    (4, "B", 2, "protocol 2"),
    (5, "B", 0, "kind"),
    (5, "B", 4, "kind"),
    (6, "H", 1, "flags"),
    (24, "I", 6, "expected 0 to 5"),
    (24, "I", 2**32 - 1, "expected 0 to 5"),
    (28, "I", 0, "chunks of"),
    (28, "I", 5, "chunks of"),
    (28, "I", 2**32 - 1, "chunks of"),
    (32, "Q", 0, "chunks of"),
    (32, "Q", 2**64 - 1, "chunks of"),
    (32, "Q", 2**40, "chunks of"),
    (56, "I", 0, "bytes per chunk"),
    (56, "I", 1023, "bytes per chunk"),
    (56, "I", 98_241, "bytes per chunk"),
    (56, "I", 1030, "expected 1030"),
]


@pytest.mark.parametrize(("offset", "layout", "value", "named"), LIES)
def test_a_preamble_that_lies_is_refused(offset: int, layout: str, value: int, named: str) -> None:
    with pytest.raises(WireFormatError, match=named):
        Preamble.parse(forge(PIECES[0], offset, layout, value))


def test_an_enormous_but_consistent_object_takes_no_memory() -> None:
    lie = forge(forge(PIECES[0], 28, "I", 65_536), 32, "Q", 65_536 * 1024)
    tracemalloc.start()
    assembler = Assembler(MEGA, 16 * MEGA)
    with pytest.raises(WireFormatError, match="at most"):
        assembler.add("d", lie, 0)
    for source in range(100):  # within its quota each, together far beyond the total
        assembler.add(f"d{source}", forge(forge(PIECES[0], 28, "I", 700), 32, "Q", 700 * 1024), 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert assembler.used_bytes <= 16 * MEGA
    assert assembler.refused > 80
    assert peak < 20 * MEGA


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_every_single_change_is_noticed(data: st.DataObject) -> None:
    raw = bytearray(PIECES[2])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireFormatError):
        Preamble.parse(bytes(raw))


@settings(deadline=None, max_examples=100)
@given(st.integers(0, len(PIECES[0]) - 1))
def test_truncated_chunks_are_refused(length: int) -> None:
    with pytest.raises(WireFormatError):
        Assembler(MEGA, MEGA).add("d", PIECES[0][:length], 0)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    for chunk in (data, PIECES[0][:4] + data):
        with pytest.raises(WireFormatError):
            Assembler(MEGA, MEGA).add("d", chunk, 0)


def test_split_refuses_what_no_receiver_takes() -> None:
    for args in ((b"", "update", bytes(16)), (b"x", "update", bytes(15)), (b"x", "photo", bytes(16))):
        with pytest.raises(WireFormatError):
            chunks.split(*args)
    with pytest.raises(WireFormatError, match="are allowed"):
        chunks.split(DATA, "update", bytes(16), chunk_bytes=1000)
    with pytest.raises(WireFormatError, match="are allowed"):
        chunks.split(DATA, "update", bytes(16), chunk_bytes=100_000)


def test_an_incomplete_set_is_no_object() -> None:
    with pytest.raises(WireFormatError, match="whole"):
        chunks.join(PIECES[:-1])


def test_object_keys_depend_on_everything_they_name() -> None:
    other = BASE.__class__(BASE.lineage, BASE.number + 1, BASE.digest)
    keys = {chunks.model_key(BASE, 0), chunks.model_key(BASE, 1), chunks.model_key(other, 0)}
    keys |= {chunks.update_key(KEY, "aa" * 16), chunks.update_key(KEY, "ab" * 16)}
    assert len(keys) == 5
    assert all(len(k) == 16 for k in keys)

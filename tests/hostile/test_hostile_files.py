from __future__ import annotations

import contextlib
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.codecs import chunks, wire
from edge_sdk.codecs.chain import Chain, peek_update
from edge_sdk.core.errors import CodecError, ShapeMismatch, WireFormatError
from edge_sdk.core.messages import Fetch
from tests.helpers.codec_examples import LAYOUT
from tests.hostile import make_hostile
from tests.hostile.make_hostile import DOWN, UP

FILES = sorted(Path(__file__).parent.glob("*.bin"))
PARSERS: dict[str, Callable[[bytes], Any]] = {
    "update": Chain(UP, LAYOUT).decode_update,
    "model": Chain(DOWN, LAYOUT).decode_model,
    "chunk": lambda data: chunks.Assembler(1 << 20, 1 << 20).add("d", data, 0),
    "message": lambda data: wire.decode(Fetch, data),
}
SAID = {
    "chunk_count_lie": "4000000000 chunks of 1024 bytes do not make 5000",
    "chunk_number_beyond": "number 5, expected 0 to 4",
    "chunk_protocol_2": "protocol 2, this program speaks 1",
    "chunk_total_lie": "5 chunks of 1024 bytes do not make",
    "message_deep": "nested too deep",
    "message_extension": "Fetch.want: expected text, found ExtType",
    "message_field_twice": "a map names a field twice",
    "message_negative_incarnation": "Fetch.key.incarnation: expected 0 to",
    "message_nested_wide": "nested too deep",
    "message_not_text": "utf-8",
    "message_wide": "exceeds max_array_len",
    "model_lacks_a_module": "does not hold exactly the modules",
    "model_unexpected_base": "ModelHeader.base",
    "model_wrong_digest": "wrong digest",
    "update_extra_field": "unknown field '__reduce__'",
    "update_header_length": "header of 4294967295 bytes",
    "update_huge_module": "module encoder.acc: params, stats, counters (4611686018427387904",
    "update_huge_payload": "arrays: 79228162514264337593543950344 bytes",
    "update_infinite_time": "UpdateHeader.train_s: expected a finite number",
    "update_lying_compressed_size": "after the header, which says",
    "update_lying_size": "sizes: expected 2 sizes",
    "update_module_twice": "sorted and different",
    "update_nan_scale": "int8: a scale is negative or not finite",
    "update_negative_samples": "UpdateHeader.num_samples: expected 0 to",
    "update_negative_scale": "int8: a scale is negative or not finite",
    "update_other_chain": "made by chain 'fp32'",
    "update_trailing_byte": "after the header, which says",
    "update_traversal_device": "UpdateHeader.key.device",
    "update_truncated": "after the header, which says",
    "update_unknown_module": "module head.acc: not part of this model",
    "update_unknown_type": "unknown type code 99",
    "update_wrong_shape": "module fusion: params, stats, counters (101, 0, 0), expected (102, 0, 0)",
    "update_zstd_bomb": "the frame states 268435456 bytes of content, expected 479",
}


def test_there_is_a_file_for_every_lie() -> None:
    assert {p.stem for p in FILES} == set(make_hostile.files())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_hostile_file_is_refused_in_little_memory(path: Path) -> None:
    data = path.read_bytes()
    tracemalloc.start()
    try:
        with pytest.raises((WireFormatError, ShapeMismatch), match=re.escape(SAID[path.stem])):
            PARSERS[path.stem.split("_")[0]](data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000


def test_the_objects_that_the_lies_are_made_from_are_accepted() -> None:
    assert PARSERS["update"](make_hostile.update_object()).num_samples == 512
    assert PARSERS["model"](make_hostile.model_object()).id.number == 41
    assert PARSERS["update"](make_hostile.reheaded(make_hostile.update_object(), lambda header: None))
    assert PARSERS["chunk"](make_hostile.chunk(6, "H", 0)) is None
    assert PARSERS["message"](make_hostile.message()).want == "update"


def refused_or_sound(kind: str, data: bytes) -> None:
    tracemalloc.start()
    with contextlib.suppress(WireFormatError, ShapeMismatch):
        PARSERS[kind](data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["update", "model"]), st.data())
def test_changed_bytes_of_an_object_are_refused_or_sound(kind: str, data: st.DataObject) -> None:
    raw = bytearray(make_hostile.update_object() if kind == "update" else make_hostile.model_object())
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    refused_or_sound(kind, bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2, 9, 8, 7, 0]))]))


values = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**62]),
    st.floats(), st.text(max_size=4), st.binary(max_size=4), st.lists(st.integers(-1, 2**40), max_size=3),
    st.just({}),
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(["update", "model"]), st.data())
def test_any_value_in_a_header_is_refused_or_sound(kind: str, data: st.DataObject) -> None:
    good = make_hostile.update_object() if kind == "update" else make_hostile.model_object()

    def change(header: Any) -> None:
        while True:
            keys = sorted(header) if isinstance(header, dict) else range(len(header))
            key = data.draw(st.sampled_from(list(keys)))
            if not isinstance(header[key], dict | list) or not header[key] or data.draw(st.booleans()):
                header[key] = data.draw(values)
                return
            header = header[key]

    refused_or_sound(kind, make_hostile.reheaded(good, change))


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300), st.sampled_from([b"", b"EDSU", b"EDSM"]), st.booleans())
def test_random_bytes_are_refused(body: bytes, magic: bytes, length_right: bool) -> None:
    data = magic + (struct.pack("<I", len(body)) if length_right else b"") + body
    for kind in ("update", "model"):
        with pytest.raises(CodecError):
            PARSERS[kind](data)
    with pytest.raises(WireFormatError):
        peek_update(data)


@settings(deadline=None, max_examples=100)
@given(st.recursive(values, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3)))
def test_any_msgpack_as_header_is_refused(plain: Any) -> None:
    packed = msgpack.packb(plain)
    for magic, kind in ((b"EDSU", "update"), (b"EDSM", "model")):
        with pytest.raises(WireFormatError):
            PARSERS[kind](magic + struct.pack("<I", len(packed)) + packed)

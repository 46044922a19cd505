from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sdk.codecs import fp16, int8, steps, zstd
from edge_sdk.codecs.steps import Rows
from edge_sdk.core.errors import CodecError, WireFormatError
from edge_sdk.core.records import Float32, ModuleLayout, TensorSpec
from tests.helpers.codec_examples import module

VECTOR = Rows.of(module({"w": (4,)}))


def quantise(x: list[float], rows: Rows) -> tuple[list[int], list[float], Float32]:
    packed, scales = int8.STEP.encode(np.array(x, np.float32), rows)
    q = np.frombuffer(packed, np.int8)
    return q.tolist(), scales.tolist(), int8.STEP.decode(q.tobytes(), scales, rows)


def test_rows_are_output_channels_and_whole_vectors() -> None:
    rows = Rows.of(module({"a": (2, 3, 4), "b": (5,), "c": (), "d": (3, 1), "e": (0, 4), "f": (4, 0)}))
    assert rows.lengths.tolist() == [12, 12, 5, 1, 1, 1, 1]
    assert rows.starts.tolist() == [0, 12, 24, 29, 30, 31, 32]
    assert rows.size == 33


def test_blocks_cover_all_rows_once() -> None:
    rows = Rows.of(module({"a": (1000, 700), "b": (400_000,), "c": (3,)}))
    assert rows.blocks[0][0] == 0
    assert rows.blocks[-1][1] == rows.count
    assert all(a[1] == b[0] for a, b in zip(rows.blocks, rows.blocks[1:], strict=False))
    assert max(b - a for a, b in rows.blocks) < 200


def test_a_layout_with_gaps_is_refused() -> None:
    gap = ModuleLayout((TensorSpec("a", (2,), "params", 1),), 3, 0, 0)
    with pytest.raises(CodecError, match="starts at 1"):
        Rows.of(gap)
    with pytest.raises(CodecError, match="layout says 3"):
        Rows.of(ModuleLayout((TensorSpec("a", (2,), "params", 0),), 3, 0, 0))


def test_int8_by_hand() -> None:
    q, scales, back = quantise([127.0, -63.5, 62.5, 0.4], VECTOR)
    assert q == [127, -64, 62, 0]  # halves go to the even neighbour
    assert scales == [1.0]
    assert back.tolist() == [127.0, -64.0, 62.0, 0.0]


def test_int8_of_zeros_and_of_subnormals_is_zero() -> None:
    for x in ([0.0] * 4, [1e-45, -1e-44, 0.0, 1e-40]):
        q, scales, back = quantise(x, VECTOR)
        assert (q, scales, back.tolist()) == ([0] * 4, [0.0], [0.0] * 4)


def test_int8_of_the_largest_and_smallest_values_does_not_wrap() -> None:
    top = float(np.finfo(np.float32).max)
    assert quantise([top, -top, 0, 0.6 * top], VECTOR)[0] == [127, -127, 0, 76]
    small = 1.6e-36
    assert quantise([small, -small, 0, 0.6 * small], VECTOR)[0] == [127, -127, 0, 76]


@settings(deadline=None, max_examples=200)
@given(hnp.arrays(np.float32, 24, elements=st.floats(-1.5 * 2.0**127, 1.5 * 2.0**127, width=32)))
def test_int8_error_is_at_most_half_a_step(x: Float32) -> None:
    rows = Rows.of(module({"w": (4, 6)}))
    packed, scales = int8.STEP.encode(x, rows)
    q = np.frombuffer(packed, np.int8)
    back = int8.STEP.decode(q.tobytes(), scales, rows)
    error = np.abs(back.astype(np.float64) - x).reshape(4, 6)
    largest = np.abs(x.astype(np.float64)).reshape(4, 6).max(axis=1, keepdims=True)
    assert q.min() >= -127
    assert (error <= 0.50002 * largest / 127 + 1.5e-36).all()


def test_int8_refuses_what_it_cannot_have_written() -> None:
    good = np.ones(1, np.float32)
    for scale in (np.nan, np.inf, -1.0):
        with pytest.raises(WireFormatError, match="scale"):
            int8.STEP.decode(bytes(4), np.array([scale], np.float32), VECTOR)
    with pytest.raises(WireFormatError, match="-128"):
        int8.STEP.decode(b"\x00\x80\x00\x00", good, VECTOR)


def test_an_enormous_scale_decodes_to_infinity_which_admission_refuses() -> None:
    x = int8.STEP.decode(b"\x7f\x00\x00\x00", np.array([3e38], np.float32), VECTOR)
    assert not steps.finite(x)


def test_fp16_refuses_what_it_would_turn_into_infinity() -> None:
    with pytest.raises(CodecError, match="65504"):
        fp16.STEP.encode(np.array([1e5, 0, 0, 0], np.float32), VECTOR)
    packed, _ = fp16.STEP.encode(np.array([65504, -1e-8, 0.1, 1], np.float32), VECTOR)
    assert np.frombuffer(packed, "<f2").tolist() == [65504, 0, np.float16(0.1), 1]


def test_zstd_gives_exactly_what_was_promised() -> None:
    data = bytes(range(256)) * 10
    packed = zstd.STEP.encode(data)
    assert zstd.STEP.decode(packed, len(data)) == data
    for size in (0, len(data) - 1, len(data) + 1, 2**40):
        with pytest.raises(WireFormatError, match="expected"):
            zstd.STEP.decode(packed, size)
    for broken in (b"", packed[:3], packed[:-1], packed + b"x", packed + packed, b"\x50\x2a\x4d\x18\x04\0\0\0abcd"):
        with pytest.raises(WireFormatError):
            zstd.STEP.decode(broken, len(data))


def test_zstd_takes_no_frame_without_a_size() -> None:
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
    with pytest.raises(WireFormatError, match="expected 100"):
        zstd.STEP.decode(silent, 100)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_finite(dtype: type[np.floating[np.float32]]) -> None:
    x = np.full((3, 5), np.finfo(dtype).max, dtype)
    assert steps.finite(x)
    assert steps.finite(x[:0])
    x[1, 2] = np.nan
    assert not steps.finite(x)

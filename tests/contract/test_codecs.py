"""What every registered codec step must do, ours or a user's."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.codecs.chain import Chain
from edge_sdk.codecs.steps import ByteStep, ReferenceStep, Rows, TensorStep
from edge_sdk.core import registry
from edge_sdk.core.errors import CodecError, WireFormatError
from edge_sdk.core.records import Float32
from tests.helpers.codec_examples import LAYOUT, make_update, module, norm

STEPS = {name: registry.load("codecs", name) for name in registry.names("codecs")}
REFERENCE = [s for s in STEPS.values() if isinstance(s, ReferenceStep)]
TENSOR = [s for s in STEPS.values() if isinstance(s, TensorStep)]
BYTES = [s for s in STEPS.values() if isinstance(s, ByteStep)]
SHAPES = [
    {"w": (8, 6, 5), "b": (8,)},
    {"a": (3, 1), "z": ()},
    {"b": (7,)},
    {"w": (300, 700)},  # more than one block
    {},
]
ROWS = [Rows.of(module(shapes)) for shapes in SHAPES]
BLOBS = [b"", b"x", bytes(10_000), np.random.default_rng(0).bytes(70_000)]


def values(rows: Rows, seed: int = 0) -> Float32:
    return (np.random.default_rng(seed).standard_normal(rows.size) * 1e-2).astype(np.float32)


def by_name(step: TensorStep | ByteStep | ReferenceStep) -> str:
    return step.name


def test_every_registered_step_is_of_one_kind_and_goes_by_its_name() -> None:
    assert len(REFERENCE) + len(TENSOR) + len(BYTES) == len(STEPS)
    assert all(step.name == name for name, step in STEPS.items())
    assert {"delta", "int8", "fp16", "fp32", "zstd"} <= set(STEPS)


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("step", TENSOR, ids=by_name)
def test_a_tensor_step_comes_back_close_in_the_bytes_it_promised(step: TensorStep, rows: Rows) -> None:
    x = values(rows)
    before = x.copy()
    packed, side = step.encode(x, rows)
    data = bytes(packed)
    least, most = step.packed_bytes(rows)
    assert least <= len(data) <= most
    assert side.dtype == np.float32
    assert side.shape == (step.side_count(rows),)
    back = step.decode(data, side, rows)
    assert back.dtype == np.float32
    assert back.shape == x.shape
    assert norm(back - x) <= norm(x)
    assert np.array_equal(x, before)
    if step.lossless:
        assert back.tobytes() == x.tobytes()


@pytest.mark.parametrize("step", TENSOR, ids=by_name)
def test_a_tensor_step_gives_the_same_bytes_twice(step: TensorStep) -> None:
    x = values(ROWS[0])
    assert bytes(step.encode(x, ROWS[0])[0]) == bytes(step.encode(x.copy(), ROWS[0])[0])


@pytest.mark.parametrize("step", TENSOR, ids=by_name)
def test_a_tensor_step_refuses_what_is_not_finite(step: TensorStep) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        x = values(ROWS[0])
        x[-1] = bad
        with pytest.raises(CodecError):
            step.encode(x, ROWS[0])


@pytest.mark.parametrize("step", TENSOR, ids=by_name)
def test_zeros_stay_zeros(step: TensorStep) -> None:
    x = np.zeros(ROWS[0].size, np.float32)
    packed, side = step.encode(x, ROWS[0])
    assert not step.decode(bytes(packed), side, ROWS[0]).any()


@pytest.mark.parametrize("blob", BLOBS, ids=len)
@pytest.mark.parametrize("step", BYTES, ids=by_name)
def test_a_byte_step_is_exact_and_bounded(step: ByteStep, blob: bytes) -> None:
    packed = step.encode(blob)
    assert len(packed) <= 2 * len(blob) + 64 * 1024
    assert step.decode(memoryview(packed), len(blob)) == blob
    for size in {max(0, len(blob) - 1), len(blob) + 1, 2**40} - {len(blob)}:
        with pytest.raises(WireFormatError):
            step.decode(packed, size)
    for broken in (packed[:-1], packed[1:]):
        with pytest.raises(WireFormatError):
            step.decode(broken, len(blob))


@pytest.mark.parametrize("step", REFERENCE, ids=by_name)
def test_a_reference_step_finds_back(step: ReferenceStep) -> None:
    x, base = values(ROWS[0], 1), values(ROWS[0], 2)
    back = step.decode(step.encode(x, base), base)
    assert back.dtype == np.float32
    assert np.allclose(back, x, atol=1e-8)


@pytest.mark.parametrize("reference", [None, *REFERENCE], ids=lambda s: s.name if s else "whole")
@pytest.mark.parametrize("tensor", TENSOR, ids=by_name)
@pytest.mark.parametrize("compress", [None, *BYTES], ids=lambda s: s.name if s else "raw")
def test_every_chain_of_registered_steps_carries_an_update(
    reference: ReferenceStep | None, tensor: TensorStep, compress: ByteStep | None
) -> None:
    chain = Chain("|".join(s.name for s in (reference, tensor, compress) if s is not None), LAYOUT)
    encoded = chain.encode_update(make_update())
    found = chain.decode_update(encoded.data)
    for name, segments in found.tensors.items():
        assert np.array_equal(segments.params, encoded.decoded[name])

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.learn import quantise


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_error_is_at_most_half_a_step(bits: int) -> None:
    """Invariant 13."""
    table = np.random.default_rng(bits).normal(size=(7, 13)) * np.logspace(-3, 3, 7)[:, None]
    codes, ranges = quantise.pack(table, bits)
    back = quantise.unpack(codes, ranges, values=13, bits=bits)
    step = np.ptp(table, axis=1) / (2**bits - 1)
    assert codes.shape == (7, quantise.packed_bytes(13, bits))
    assert (np.abs(back - table) <= 0.5 * step[:, None] * (1 + 1e-5)).all()


def test_two_bits_by_hand() -> None:
    codes, ranges = quantise.pack(np.array([[0.0, 1.0, 2.0, 3.0, 1.4]]), 2)
    assert ranges.tolist() == [[0.0, 3.0]]
    assert [f"{byte:08b}" for byte in codes[0]] == ["00011011", "01000000"]
    assert quantise.unpack(codes, ranges, values=5, bits=2).tolist() == [[0.0, 1.0, 2.0, 3.0, 1.0]]


def test_a_constant_row_stays_what_it_is() -> None:
    codes, ranges = quantise.pack(np.full((2, 3), 0.25), 4)
    assert (quantise.unpack(codes, ranges, values=3, bits=4) == 0.25).all()


def test_the_ends_of_the_range_are_exact() -> None:
    table = np.array([[-1.5, 0.3, 2.5]])
    codes, ranges = quantise.pack(table, 4)
    back = quantise.unpack(codes, ranges, values=3, bits=4)
    assert back[0, 0] == -1.5
    assert back[0, 2] == 2.5

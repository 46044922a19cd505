"""The ring holds the newest samples of a run, exactly, in memory that never grows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.streams.ring import Ring


def put(ring: Ring, start: int, n: int) -> None:
    positions = np.arange(start, start + n)
    ring.append(np.stack([positions, -positions]).astype(np.float32), positions % 3 != 0, positions + 1)


@given(capacity=st.integers(1, 40), origin=st.integers(0, 1000), sizes=st.lists(st.integers(0, 60), max_size=12))
def test_holds_exactly_the_newest(capacity: int, origin: int, sizes: list[int]) -> None:
    ring = Ring(2, capacity)
    taken = ring.nbytes
    ring.restart(origin, origin)
    position = origin
    for size in sizes:
        put(ring, position, size)
        position += size
        held = np.arange(ring.start, ring.stop)
        assert ring.stop == position
        assert len(held) == min(capacity, position - origin)
        if len(held):
            assert np.array_equal(ring.values(ring.start, ring.stop), np.stack([held, -held]))
            assert ring.quality(ring.start, ring.stop) == pytest.approx(np.mean(held % 3 != 0))
            assert ring.total(position - 1) == position
    assert ring.nbytes == taken


def test_slice_is_a_copy() -> None:
    ring = Ring(2, 4)
    put(ring, 0, 4)
    values = ring.values(0, 4)
    put(ring, 4, 4)
    assert np.array_equal(values[0], [0, 1, 2, 3])


def test_what_was_overwritten_or_not_written_is_refused() -> None:
    ring = Ring(2, 4)
    put(ring, 0, 6)
    for start, stop in ((1, 4), (4, 7), (5, 5)):
        with pytest.raises(IndexError, match="held"):
            ring.values(start, stop)


def test_restart_forgets() -> None:
    ring = Ring(2, 4)
    put(ring, 0, 4)
    ring.restart(10, 4)
    assert (ring.start, ring.stop) == (10, 10)
    assert ring.total(9) == 4  # source samples before the run
    with pytest.raises(IndexError):
        ring.values(0, 4)


def test_capacity_is_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Ring(1, 0)

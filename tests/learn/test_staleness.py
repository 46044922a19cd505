from __future__ import annotations

import pytest

from edge_sdk.learn import staleness


def test_by_hand() -> None:
    assert staleness.constant(7) == 1.0
    assert staleness.polynomial(0, 0.5) == 1.0
    assert staleness.polynomial(3, 0.5) == 0.5
    assert staleness.hinge(4, 10, 4) == 1.0
    assert staleness.hinge(5, 10, 4) == pytest.approx(1 / 11)

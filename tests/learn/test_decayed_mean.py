from __future__ import annotations

import math

import numpy as np
import pytest

from edge_sdk.learn import decayed_mean


def test_two_clients_by_hand() -> None:
    """λ = ln 2: a report that is one version old counts half."""
    total = decayed_mean.fold(np.zeros(3), None, value=0.2, t=0, lam=math.log(2))
    assert decayed_mean.mean(total) == 0.2
    total = decayed_mean.fold(total, None, value=0.8, t=1, lam=math.log(2))
    assert total.tolist() == pytest.approx([1.5, 0.9, 1.0])
    assert decayed_mean.mean(total) == pytest.approx((0.5 * 0.2 + 0.8) / 1.5)


def test_a_new_report_replaces_the_old_one() -> None:
    total = decayed_mean.fold(np.zeros(3), None, value=0.2, t=0, lam=0.5)
    total = decayed_mean.fold(total, np.array([0.2, 0.0]), value=0.7, t=4, lam=0.5)
    assert total.tolist() == pytest.approx([1.0, 0.7, 4.0])


def test_a_long_silence_does_not_underflow() -> None:
    total = decayed_mean.fold(np.zeros(3), None, value=0.2, t=0, lam=5.0)
    total = decayed_mean.fold(total, None, value=0.4, t=10**9, lam=5.0)
    assert decayed_mean.mean(total) == 0.4

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.learn import scores
from edge_sdk.models import build
from tests.helpers import learning


def test_unimodal_logits_of_a_linear_fusion_sum_to_the_fused_ones() -> None:
    """Invariant 5."""
    model = build.build(learning.spec(3), seed=3)
    x = {m: torch.from_numpy(a) for m, a in learning.round_data(modalities=3).x.items()}
    features = model.encode(x)
    alone = scores.unimodal_logits(model, features)
    assert set(alone) == set(learning.NAMES)
    torch.testing.assert_close(torch.stack(list(alone.values())).sum(0), model.fuse(features, torch.ones(40, 3)))


def test_true_class_score_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    assert scores.true_class_score(logits, torch.tensor([0, 1])) == pytest.approx((0.5 + 0.1) / 2, rel=1e-6)
    assert scores.true_class_score(torch.zeros(1, 2), torch.tensor([1])) == pytest.approx(0.5)
    assert scores.true_class_score(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)) == scores.FLOOR
    assert scores.true_class_score(torch.tensor([[1e30, -1e30]]), torch.tensor([1])) == scores.FLOOR


def test_ratios_by_hand() -> None:
    assert scores.ratios(np.array([0.6, 0.3])) == pytest.approx([2.0, 0.5])
    assert scores.ratios(np.array([0.6, 0.3, 0.1])) == pytest.approx([3.0, 0.3 / 0.35, 0.1 / 0.45])
    assert scores.ratios(np.array([0.6])).tolist() == [1.0]
    assert scores.ratios(np.array([])).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_ratios_are_finite_and_never_all_above_one(values: list[float]) -> None:
    r = scores.ratios(np.array(values))
    assert np.isfinite(r).all()
    assert (r > 0).all()
    assert (r > 1 + 1e-9).sum() < len(values)


def test_present_reads_the_columns_of_the_spec() -> None:
    from edge_sdk.learn.records import Batch

    batch = Batch({}, torch.zeros(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.arange(2))
    found = scores.present(batch, ("acc", "gyro"))
    assert {m: r.tolist() for m, r in found.items()} == {"acc": [True, True], "gyro": [False, True]}

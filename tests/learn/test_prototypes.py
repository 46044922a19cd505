from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_sdk.learn import prototypes


def test_local_prototypes_by_hand() -> None:
    h = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]])
    table, counts = prototypes.local(h, torch.tensor([2, 2, 0]), 3)
    assert table.tolist() == [[10.0, 0.0], [0.0, 0.0], [2.0, 3.0]]
    assert (counts.tolist(), counts.dtype) == ([1, 0, 2], np.int64)
    nothing, none = prototypes.local(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 3)
    assert (nothing.tolist(), none.tolist()) == ([[0.0, 0.0]] * 3, [0, 0, 0])


def test_merge_is_weighted_by_counts_and_keeps_what_nobody_has() -> None:
    """Invariant 12."""
    tables = np.array([[[1.0], [5.0], [7.0]], [[4.0], [6.0], [9.0]]])
    counts = np.array([[2.0, 0.0, 0.0], [1.0, 3.0, 0.0]])
    merged = prototypes.merge(tables, counts, previous=np.array([[0.0], [0.0], [-1.0]]))
    assert merged.tolist() == [[2.0], [6.0], [-1.0]]  # class 1 belongs to one client alone
    assert prototypes.merge(tables, counts)[2].tolist() == [0.0]


def test_merge_does_not_ask_for_the_order_of_clients() -> None:
    rng = np.random.default_rng(0)
    tables, counts = rng.normal(size=(6, 4, 3)), rng.integers(0, 5, (6, 4)).astype(float)
    order = rng.permutation(6)
    assert prototypes.merge(tables, counts) == pytest.approx(prototypes.merge(tables[order], counts[order]), abs=1e-12)


def test_follow_by_hand() -> None:
    table, seen = np.array([[1.0], [0.0], [3.0]]), np.array([4.0, 0.0, 2.0])
    new, counts = np.array([[2.0], [8.0], [99.0]]), np.array([1.0, 5.0, 0.0])
    after, total = prototypes.follow(table, seen, new, counts=counts, kappa=0.4)
    assert after.ravel().tolist() == pytest.approx([0.6 * 1 + 0.4 * 2, 8.0, 3.0])
    assert total.tolist() == [5.0, 5.0, 2.0]
    assert table.ravel().tolist() == [1.0, 0.0, 3.0]


def test_logits_by_hand_and_masked() -> None:
    h, table = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 3.0]])
    z = prototypes.logits(h, table, torch.tensor([True, True, False]))
    assert z[0, 0] == pytest.approx(-5.0)
    assert z[0, 1] == pytest.approx(-1e-6, rel=1e-3)
    assert z[0, 2] == -torch.inf


def test_the_gradient_is_finite_at_a_prototype_and_beside_masked_classes() -> None:
    h = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    table = torch.tensor([[1.0, 2.0], [0.0, 0.0], [5.0, 5.0]])
    known = torch.tensor([True, False, True])
    loss = torch.nn.functional.cross_entropy(prototypes.logits(h, table, known), torch.tensor([0, 2]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(h.grad).all()

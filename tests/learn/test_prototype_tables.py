from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.learn import prototype_tables
from edge_sdk.learn.records import Batch


def report(rows: list[float], counts: list[int], m: str = "acc") -> dict[str, np.ndarray]:
    """A table of C classes with D = 1."""
    return {f"prototypes.{m}": np.array(rows, np.float32)[:, None], f"counts.{m}": np.array(counts, np.int64)}


def test_merging_by_hand() -> None:
    reports = [report([1, 5, 0], [2, 1, 0]), report([4, 0, 0], [1, 0, 0]), report([9, 9, 9], [1, 1, 1], "mic")]
    patch = prototype_tables.merged({}, reports, ("acc", "gyro"))
    assert patch.keys() == {"prototypes/acc", "counts/acc"}
    assert patch["prototypes/acc"][:, 0].tolist() == [2.0, 5.0, 0.0]
    assert patch["counts/acc"].tolist() == [3.0, 1.0, 0.0]
    alike = prototype_tables.merged({}, reports, ("acc",), alike=True)
    assert alike["prototypes/acc"][:, 0].tolist() == [2.5, 5.0, 0.0]
    later = prototype_tables.merged(patch, [report([7, 0, 8], [1, 0, 2])], ("acc",))
    assert later["prototypes/acc"][:, 0].tolist() == [7.0, 5.0, 8.0]  # nobody had the second class: it stays
    assert later["counts/acc"].tolist() == [1.0, 1.0, 2.0]


@settings(deadline=None)
@given(st.permutations([0, 1, 2]))
def test_the_order_of_clients_does_not_matter_and_a_class_of_one_is_that_ones(order: list[int]) -> None:
    """Invariant 12."""
    reports = [report([0.5, 2, 0], [3, 1, 0]), report([1.5, 0, 0], [5, 0, 0]), report([0.25, 0, -3], [2, 0, 4])]
    straight = prototype_tables.merged({}, reports, ("acc",))["prototypes/acc"]
    mixed = prototype_tables.merged({}, [reports[i] for i in order], ("acc",))["prototypes/acc"]
    assert mixed[:, 0] == pytest.approx(straight[:, 0], abs=1e-12)
    assert mixed[1:, 0].tolist() == [2.0, -3.0]


def test_what_is_sent_is_what_is_received() -> None:
    state = dict(prototype_tables.merged({}, [report([1, 5, 0], [2, 1, 0])], ("acc", "gyro")))
    extras = prototype_tables.sent(state, ("acc", "gyro"))
    assert {name: a.dtype for name, a in extras.items()} == {"prototypes.acc": np.float32, "counts.acc": np.int64}
    tables = prototype_tables.received(extras, ("gyro", "acc"))
    assert tables.keys() == {"acc"}
    assert tables["acc"].rows[:, 0].tolist() == [1.0, 5.0, 0.0]
    assert tables["acc"].known.tolist() == [True, True, False]


def test_logits_count_rows_with_the_modality_and_a_known_class() -> None:
    tables = prototype_tables.received(
        report([1, 5, 0], [2, 1, 0]) | report([0, 0, 0], [0, 0, 0], "mic"), ("acc", "mic")
    )
    h = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    mask = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    batch = Batch({}, torch.tensor([1, 0, 2, 0]), mask, torch.arange(4))
    found = prototype_tables.batch_logits(tables, {"acc": h, "mic": h}, batch, ("acc", "mic"))
    assert found.keys() == {"acc"}  # no class of mic is known
    z, y = found["acc"]
    assert y.tolist() == [1, 0]
    assert z.tolist() == [[-1.0, -5.0, -np.inf], [-2.0, -2.0, -np.inf]]
    (only,) = prototype_tables.terms({"acc": (z, y), "mic": (z, y)}, {"acc": 0.25}, strength=2.0)
    assert only[0] == 0.5
    assert float(only[1]) == pytest.approx((np.log(1 + np.exp(4)) + np.log(2)) / 2, rel=1e-6)

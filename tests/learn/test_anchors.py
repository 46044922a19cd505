from __future__ import annotations

import numpy as np
import torch

from edge_sdk.core.records import RoundData
from edge_sdk.learn import anchors


def test_values_are_found_by_window_number() -> None:
    values = torch.tensor([[1.0], [2.0], [3.0]])
    carry = anchors.pack("a", values, np.array([30, 10, 20]), "float16")
    assert carry["a"].dtype == np.float16
    data = RoundData(np.array([10, 99, 30, 5, 20]), np.zeros(5, np.int64), {}, {})
    found, known = anchors.match(carry, "a", data, np.array([True, True, True, True, False]))
    assert known.tolist() == [True, False, True, False, False]
    assert found.dtype == torch.float32
    assert found[known].tolist() == [[2.0], [1.0]]

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.core.errors import PluginError
from edge_sdk.learn import params, probes
from edge_sdk.methods import fedasync, g_blend
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import guards, learning


def test_growth_by_hand() -> None:
    before = np.array([2.0, 1.0]), np.array([2.5, 1.5])
    after = np.array([1.0, 0.8]), np.array([2.0, 1.6])
    gain, overfit = probes.growth(before, after)
    assert gain.tolist() == pytest.approx([0.5, -0.1])
    assert overfit.tolist() == pytest.approx([(2.0 - 1.0) - 0.5, (1.6 - 0.8) - 0.5])


def test_weights_by_hand() -> None:
    # 0.5/0.25 = 2, 0.1/0.01 = 10, 0.4/1 = 0.4
    weights = g_blend.blend_weights(np.array([0.5, 0.1, 0.4]), np.array([0.5, -0.1, 1.0]))
    assert weights.tolist() == pytest.approx([2 / 12.4, 10 / 12.4, 0.4 / 12.4])


def test_weights_are_guarded() -> None:
    assert g_blend.blend_weights(np.array([-0.5, 0.1]), np.array([0.5, 0.1])).tolist() == [0.0, 1.0]
    assert g_blend.blend_weights(np.array([-0.5, 0.0]), np.array([0.5, 0.1])).tolist() == [0.5, 0.5]
    floored = g_blend.blend_weights(np.array([1e-6, 1.0]), np.array([0.0, 1.0]))
    assert floored.tolist() == pytest.approx([0.5, 0.5])
    unmeasured = g_blend.blend_weights(np.array([np.nan, 0.3]), np.array([np.nan, 0.3]))
    assert unmeasured.tolist() == [0.0, 1.0]
    least = g_blend.blend_weights(np.array([-1.0, 1.0]), np.array([1.0, 1.0]), least=0.25)
    assert least.tolist() == pytest.approx([0.2, 0.8])


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=5), st.floats(0.01, 100)
)  # fmt: skip
def test_weights_sum_to_one_and_do_not_depend_on_the_unit_of_the_losses(pairs: list, unit: float) -> None:
    gain, overfit = np.array(pairs).T
    weights = g_blend.blend_weights(gain, overfit, floor=1e-30)
    assert weights.sum() == pytest.approx(1.0)
    assert ((weights >= 0) & (weights <= 1 + 1e-12)).all()
    if (np.abs(overfit) > 1e-3).all() and (np.abs(gain[gain != 0]) > 1e-200).all():
        assert g_blend.blend_weights(unit * gain, unit * overfit, floor=1e-30) == pytest.approx(weights, rel=1e-6)


def losses_of(tensors: dict, rows: np.ndarray, data: object) -> np.ndarray:
    """Returns mean losses of the heads acc, gyro and fused, computed here with numpy."""
    model = build.build(learning.spec(method="g_blend"), find("g_blend").needs)
    params.load(model.named(), tensors)
    model.eval()
    y = data.y[rows]
    with torch.no_grad():
        h = model.encode({m: torch.from_numpy(data.x[m][rows]) for m in ("acc", "gyro")})
        logits = [model.module(f"head.{m}")(h[m]).numpy() for m in h] + [model.fuse(h, torch.ones(len(y), 2)).numpy()]
    return np.array(
        [
            np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y])
            for z in (raw.astype(np.float64) for raw in logits)
        ]
    )


def test_a_round_measures_the_weights_of_the_next_one() -> None:
    spec, data = learning.spec(method="g_blend"), learning.round_data(40)
    start = build.initial_tensors(spec, find("g_blend").needs)
    first = learning.train_round(spec, ("acc", "gyro"), data=data, start=start)[0]
    held = probes.held_out(data.indices, 0.2, 0)
    assert 0 < held.sum() < 40
    rows = np.arange(40)
    before, after = (
        (losses_of(t, rows[~held], data), losses_of(t, rows[held], data)) for t in (start, first.tensors)
    )  # fmt: skip
    gain = before[1] - after[1]
    overfit = (after[1] - after[0]) - (before[1] - before[0])
    quotient = np.maximum(gain, 0) / np.maximum(overfit**2, 1e-6)
    names = ("head.acc", "head.gyro", "fusion")
    found = [float(first.memory[f"g_blend/weight/{n}"][0]) for n in names]
    assert found == pytest.approx((quotient / quotient.sum()).tolist(), rel=1e-2)
    assert first.payload == {}
    assert set(first.tensors) == {"encoder.acc", "encoder.gyro", "fusion", "head.acc", "head.gyro"}

    again = learning.train_round(spec, ("acc", "gyro"), data=data, start=start, memory=first.memory)[0]
    assert not learning.equal(again.tensors, first.tensors)  # other weights now


def test_a_head_without_weight_stays_where_it_is() -> None:
    spec, data = learning.spec(method="g_blend"), learning.round_data(40)
    start = build.initial_tensors(spec, find("g_blend").needs)
    memory = {f"g_blend/weight/{n}": np.array([w]) for n, w in (("head.acc", 0.0), ("head.gyro", 0.3), ("fusion", 0.7))}
    result = learning.train_round(spec, ("acc", "gyro"), data=data, start=start, memory=memory)[0]
    assert np.array_equal(result.tensors["head.acc"].params, start["head.acc"].params)
    assert not np.array_equal(result.tensors["head.gyro"].params, start["head.gyro"].params)


def test_held_out_rows_are_never_trained_on() -> None:
    spec, data = learning.spec(method="g_blend"), learning.round_data(40)
    start = build.initial_tensors(spec, find("g_blend").needs)
    plain = learning.train_round(spec, ("acc", "gyro"), data=data, start=start)[0]
    held = probes.held_out(data.indices, 0.2, 0)
    for m in data.x:
        data.x[m][held] = 100.0
    other = learning.train_round(spec, ("acc", "gyro"), data=data, start=start)[0]
    assert learning.equal(plain.tensors, other.tensors)
    assert not all(np.array_equal(plain.memory[k], other.memory[k]) for k in plain.memory)


def test_an_absent_modality_leaves_its_weight_to_the_others() -> None:
    memory = {
        f"g_blend/weight/{n}": np.array([w])
        for n, w in (("head.acc", 0.5), ("head.gyro", 0.1), ("head.mic", 0.1), ("fusion", 0.3))
    }
    result = guards.play("g_blend", learning.round_data(40, 3), here=("gyro",), memory=memory)
    assert guards.finite(result)
    assert set(result.tensors) == {"encoder.gyro", "fusion", "head.gyro"}
    assert result.memory["g_blend/weight/head.acc"].tolist() == [0.5]
    kept = [float(result.memory[f"g_blend/weight/{n}"][0]) for n in ("head.gyro", "fusion")]
    assert sum(kept) == pytest.approx(1.0)


def test_names() -> None:
    method = find("fed_g_blend_async")
    assert (method.client, method.server, method.needs.heads) == (g_blend.Client, fedasync.Server, True)
    assert find("g_blend+fedasync").needs.heads
    with pytest.raises(PluginError):
        find("g_blend+nothing")

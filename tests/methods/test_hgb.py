from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.records import Segments
from edge_sdk.learn import params, probes
from edge_sdk.learn.records import Assignment, Cohort, Member
from edge_sdk.methods import fedavg, g_blend, hgb
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import guards, learning

# The worked example: two modalities A and B, [train, held-out] losses before and after.
BEFORE = np.array([1.5, 1.5]), np.array([1.6, 1.6])
AFTER = np.array([1.1, 1.2]), np.array([1.5, 1.35])


def test_the_worked_example() -> None:
    gain, overfit = probes.growth(BEFORE, AFTER)
    assert gain.tolist() == pytest.approx([0.10, 0.25])
    assert overfit.tolist() == pytest.approx([0.30, 0.05])
    assert probes.quotients(gain, overfit, 1e-6).tolist() == pytest.approx([1.111, 100.0], rel=1e-3)
    z = hgb.head_weights(gain, overfit)
    assert z.tolist() == pytest.approx([0.022, 1.978], abs=5e-4)
    assert (z / z.sum()).tolist() == pytest.approx([0.011, 0.989], abs=5e-4)


def test_blended_losses_by_hand() -> None:
    z = np.array([0.5, 1.5])
    # train: 0.5·1.5 + 1.5·1.5 = 3 -> 0.55 + 1.8 = 2.35;  held out: 3.2 -> 0.75 + 2.025 = 2.775
    gain, overfit = hgb.blended_growth(BEFORE, AFTER, z)
    assert gain == pytest.approx(0.425)
    assert overfit == pytest.approx((2.775 - 2.35) - 0.2)
    lost = (np.array([np.nan, 1.5]), np.array([1.6, 1.6])), (np.array([np.nan, 1.2]), np.array([1.5, 1.35]))
    assert np.isfinite(hgb.blended_growth(*lost, z)).all()


@given(
    st.lists(st.tuples(st.floats(-10, 10), st.floats(0.01, 10)), min_size=1, max_size=5), st.floats(0.1, 10)
)  # fmt: skip
def test_weights_sum_to_two_and_forget_the_unit_of_losses(pairs: list, unit: float) -> None:
    """Invariant 8."""
    gain, overfit = np.array(pairs).T
    z = hgb.head_weights(gain, overfit)
    assert z.sum() == pytest.approx(2.0)
    assert (z >= 0).all()
    if (overfit * unit > 1e-2).all():
        assert hgb.head_weights(unit * gain, unit * overfit) == pytest.approx(z, rel=1e-6)


def test_weights_are_guarded() -> None:
    assert hgb.head_weights(np.array([-1.0, 0.2]), np.array([0.1, 0.0])).tolist() == [0.0, 2.0]
    assert hgb.head_weights(np.array([-1.0, 0.0]), np.array([0.1, 0.1])).tolist() == [1.0, 1.0]
    assert hgb.head_weights(np.array([np.nan, 0.2]), np.array([np.nan, 0.1])).tolist() == [0.0, 2.0]
    assert hgb.head_weights(np.array([0.0, 0.2]), np.array([0.1, 0.1]), least=0.25).tolist() == [0.4, 1.6]


def server(name: str = "hgb", modalities: int = 2, **config: object) -> hgb.Server:
    rule = find(name).server_rule(config, learning.spec(modalities, method=name))
    assert isinstance(rule, hgb.Server)
    return rule


def member(device: str, z: tuple[float, ...], gain: float, overfit: float, *, n: int = 1, gyro: bool = True) -> Member:
    payload = {"z": np.float32(z), "gain": np.float32([gain]), "overfit": np.float32([overfit])}
    modules = ("encoder.acc", "fusion", *(("encoder.gyro",) if gyro else ()))
    return Member(device, (), n, 1, payload, {name: Segments(np.zeros(1, np.float32)) for name in modules})


def cohort(*members: Member) -> Cohort:
    return Cohort(0, {}, members)


TWO = cohort(member("p", (0.5, 0.5, 1.0), 0.2, 0.1), member("q", (2.0, 0.0, 0.0), 0.1, -0.5, gyro=False, n=3))


def test_a_round_by_hand() -> None:
    weights, patch = server().weights({}, TWO)
    p = 20.0 / 20.4  # 0.2 / 0.01 against 0.1 / 0.25
    assert weights.by_block["fusion"] == pytest.approx({"p": p, "q": 1 - p}, rel=1e-4)
    assert weights.by_block["encoder.gyro"] == {"p": 1.0}  # q did not train it
    assert patch["z"].tolist() == pytest.approx([2.5 / 4, 0.5 / 4, 1.0 / 4])
    assert patch["effective_clients"][0] == pytest.approx(1 / (p**2 + (1 - p) ** 2), rel=1e-4)
    said = server().extras(patch, Assignment("p", ("acc",)))
    assert said["z"].tolist() == pytest.approx([0.625, 0.125, 0.25])
    assert server().figures(patch)["z.fused"] == pytest.approx(0.25)


def test_everybody_alike_is_weighed_alike() -> None:
    """Invariant 8."""
    alike = cohort(*(member(d, (0.5, 0.5, 1.0), 0.2, 0.1, n=n) for n, d in enumerate("pqr", start=1)))
    assert server().weights({}, alike)[0].by_block["fusion"] == pytest.approx(dict.fromkeys("pqr", 1 / 3))


@pytest.mark.parametrize("unit", [0.5, 4.0])
def test_the_unit_of_losses_does_not_matter_to_the_server(unit: float) -> None:
    """Invariant 8."""
    scaled = tuple(
        replace(m, payload={**m.payload, "gain": unit * m.payload["gain"], "overfit": unit * m.payload["overfit"]})
        for m in TWO.members
    )
    one, other = server().weights({}, TWO)[0].by_block["fusion"], server().weights({}, cohort(*scaled))[0]
    assert other.by_block["fusion"] == pytest.approx(one, rel=1e-5)


def test_where_nobody_improved_weights_are_equal_or_by_samples() -> None:
    worse = cohort(member("p", (1.0, 1.0, 0.0), -0.2, 0.1), member("q", (0.0, 0.0, 0.0), 0.0, 0.0, n=3))
    assert server().weights({}, worse)[0].by_block["fusion"] == {"p": 0.5, "q": 0.5}
    by_samples = server(fallback="samples").weights({}, worse)[0].by_block
    assert by_samples["fusion"] == {"p": 0.25, "q": 0.75}
    nobody = cohort(member("p", (0.0, 0.0, 0.0), 0.0, 0.0))
    z = np.array([0.7, 0.2, 0.1])
    assert server().weights({"z": z}, nobody)[1]["z"].tolist() == z.tolist()  # nobody voted


def test_ablations() -> None:
    weights, patch = server("m_gb").weights({}, TWO)
    assert weights.by_block["fusion"] == {"p": 0.5, "q": 0.5}
    assert patch["z"].tolist() == pytest.approx([0.625, 0.125, 0.25])
    weights, patch = server("c_gb").weights({}, TWO)
    assert weights.by_block["fusion"]["p"] == pytest.approx(20 / 20.4, rel=1e-4)
    assert patch["z"].tolist() == pytest.approx([1 / 3] * 3)
    assert find("fedhgb").client_rule({}).config == hgb.Config()
    with pytest.raises(ConfigError):
        find("m_gb").client_rule({"nothing": 1})


def test_local_training_is_counted_in_steps() -> None:
    data = learning.round_data(50, 3)  # 40 rows to train on, three batches of 16
    assert guards.play("hgb", data, config={"local_steps": 7}).num_steps == 7
    assert guards.play("hgb", data).num_steps == 2 * 3
    fed = learning.federation("hgb", config={"local_steps": 5})
    steps = {m.num_steps for m in learning.sync_round(fed).members}  # whatever a client's number of rows
    assert steps == {5}


def losses_of(tensors: dict, rows: np.ndarray, data: object) -> np.ndarray:
    """Returns mean losses of the heads acc, gyro and fused, computed here with numpy."""
    model = build.build(learning.spec(method="hgb"), find("hgb").needs)
    params.load(model.named(), tensors)
    model.eval()
    y = data.y[rows]
    with torch.no_grad():
        h = model.encode({m: torch.from_numpy(data.x[m][rows]) for m in ("acc", "gyro")})
        logits = [model.module(f"head.{m}")(h[m]) for m in h] + [model.fuse(h, torch.ones(len(y), 2))]
    raw = [z.numpy().astype(np.float64) for z in logits]
    return np.array([np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]) for z in raw])


def test_what_a_client_reports_is_what_its_losses_did() -> None:
    spec, data = learning.spec(method="hgb", config={"share": 1.0}), learning.round_data(40)
    start = build.initial_tensors(spec, find("hgb").needs)
    result = learning.train_round(spec, ("acc", "gyro"), data=data, start=start)[0]
    held = probes.held_out(data.indices, 0.2, 0)
    rows = np.arange(40)
    before, after = (
        (losses_of(t, rows[~held], data), losses_of(t, rows[held], data)) for t in (start, result.tensors)
    )  # fmt: skip
    gain = before[1] - after[1]
    quotient = np.maximum(gain, 0) / np.maximum(((after[1] - after[0]) - (before[1] - before[0])) ** 2, 1e-6)
    z = 2 * quotient / quotient.sum()
    assert result.payload["z"].tolist() == pytest.approx(z.tolist(), rel=1e-2)
    blended = [sum(z * losses) for losses in (*before, *after)]
    assert result.payload["gain"][0] == pytest.approx(blended[1] - blended[3], rel=1e-2)
    expected = (blended[3] - blended[2]) - (blended[1] - blended[0])
    assert result.payload["overfit"][0] == pytest.approx(expected, rel=1e-2, abs=1e-4)
    assert set(result.tensors) == {"encoder.acc", "encoder.gyro", "fusion", "head.acc", "head.gyro"}


def test_the_weights_of_the_server_decide_what_is_trained() -> None:
    extras = {"z": np.float32([0.0, 0.7, 0.0, 0.3])}  # nothing for acc and mic
    result = guards.play("hgb", learning.round_data(40, 3), extras=extras)
    start = build.initial_tensors(learning.spec(3, method="hgb"), find("hgb").needs)
    same = {name: np.array_equal(result.tensors[name].params, start[name].params) for name in result.tensors}
    assert [name for name, equal in same.items() if equal] == ["head.acc", "head.mic"]
    without = guards.play("hgb", learning.round_data(40, 3), extras={"z": np.float32([1.0, 0.0, 0.0, 0.0])})
    assert np.array_equal(without.tensors["fusion"].params, start["fusion"].params)
    fixed = guards.play("hgb", learning.round_data(40, 3), extras=extras, config={"blend_fused": False})
    assert not np.array_equal(fixed.tensors["fusion"].params, start["fusion"].params)
    assert fixed.payload["z"][3] == 0.0


def test_votes_are_cast_for_what_is_there() -> None:
    result = guards.play("hgb", learning.round_data(40, 3), here=("gyro",))
    assert result.payload["z"][[0, 2]].tolist() == [0.0, 0.0]
    assert result.payload["z"].sum() == pytest.approx(2.0)
    lonely = guards.play("hgb", guards.one_sample())
    assert not lonely.payload["z"].any()  # nothing held out: no vote
    assert not lonely.payload["gain"].any()


def test_the_model_has_a_hidden_layer_in_every_head() -> None:
    spec = learning.spec(method="hgb")
    layout = build.layout(spec, find("hgb").needs)
    assert layout["head.acc"].params == 6 * 512 + 512 + 512 * 3 + 3
    assert layout["fusion"].params == 12 * 512 + 512 + 512 * 3 + 3


def test_rounds_of_the_federation() -> None:
    for name in ("hgb", "m_gb", "c_gb"):
        fed = learning.federation(name)
        for _ in range(2):
            learning.sync_round(fed)
        assert params.finite(fed.theta)
        assert fed.state["z"].sum() == pytest.approx(1.0)


def test_other_clients_are_refused_and_g_blending_is_a_composition() -> None:
    with pytest.raises(ConfigError, match="lives on gain, overfit, z"):
        find("g_blend+hgb")
    with pytest.raises(ConfigError, match="need the server's z"):
        find("hgb+fedavg")
    method = find("g_blending")
    assert (method.client, method.server, method.mode) == (g_blend.Client, fedavg.Server, "sync")

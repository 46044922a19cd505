from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.records import ModuleLayout, Segments, TensorSpec
from edge_sdk.learn import aggregation, params
from edge_sdk.learn.records import Cohort, Member
from edge_sdk.methods import fedattn
from edge_sdk.methods.base import find
from tests.helpers import learning

LAYOUT = {
    "encoder.acc": ModuleLayout((TensorSpec("var", (1,), "stats", 0), TensorSpec("w", (1,), "params", 0)), 1, 1, 0),
    "fusion": ModuleLayout((TensorSpec("b", (1,), "params", 0), TensorSpec("w", (1, 2), "params", 1)), 3, 0, 0),
}
START = {
    "encoder.acc": Segments(np.array([5.0], np.float32), np.array([4.0], np.float32)),
    "fusion": Segments(np.array([1.0, 0.0, 0.0], np.float32)),
}


def member(device: str, n: int, fusion: tuple[float, float, float], acc: tuple[float, float] | None = None) -> Member:
    tensors = {"fusion": Segments(np.array(fusion, np.float32))}
    if acc:
        tensors["encoder.acc"] = Segments(np.array(acc[:1], np.float32), np.array(acc[1:], np.float32))
    return Member(device, (), n, 1, {}, tensors)


COHORT = Cohort(
    0, START, (member("p", 1, (1.0, 3.0, 4.0), (6.0, 1.0)), member("q", 3, (3.0, 0.0, 0.0), (3.0, 0.2))), LAYOUT
)


def server(**config: object) -> fedattn.Server:
    rule = find("fedattn").server_rule(config, learning.spec(method="fedattn"))
    assert isinstance(rule, fedattn.Server)
    return rule


def applied(rule: fedattn.Server, cohort: Cohort) -> dict[str, Segments]:
    theta = params.copy(START)
    weights = aggregation.checked(rule.weights({}, cohort)[0])
    aggregation.combine(theta, LAYOUT, {m.device: m.tensors for m in cohort.members}, weights)
    return theta


def test_attention_by_hand_and_for_far_values() -> None:
    assert fedattn.attention(np.array([0.0, np.log(3.0)])).tolist() == pytest.approx([0.25, 0.75])
    assert fedattn.attention(np.array([1e6, 0.0])).tolist() == [1.0, 0.0]
    assert fedattn.distance(np.zeros((1, 2), np.float32), np.array([[3.0, 4.0]], np.float32)) == 5.0


def test_the_spectral_norm_by_hand() -> None:
    w = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    zeros = np.zeros((2, 2), np.float32)
    assert fedattn.distance(zeros, w) == pytest.approx(5.0)
    assert fedattn.distance(zeros, w, spectral=True) == pytest.approx(4.0)
    assert fedattn.distance(zeros[0], w[1], spectral=True) == pytest.approx(4.0)  # a vector has one norm
    assert fedattn.distance(zeros[None], w[None], spectral=True) == pytest.approx(5.0)  # a kernel is no matrix
    rows = ModuleLayout((TensorSpec("w", (2, 2), "params", 0),), 4, 0, 0)
    members = tuple(
        Member(d, (), 1, 1, {}, {"fusion": Segments(np.array(v, np.float32))})
        for d, v in (("p", (3.0, 0.0, 0.0, 4.0)), ("q", (0.0, 0.0, 0.0, 0.0)))
    )
    cohort = Cohort(0, {"fusion": Segments(np.zeros(4, np.float32))}, members, {"fusion": rows})
    for norm, far in (("frobenius", 5.0), ("spectral", 4.0)):
        shares = server(norm=norm).weights({}, cohort)[0].by_block["fusion:w"]
        assert shares["p"] == pytest.approx(1.2 * np.exp(far) / (np.exp(far) + 1.0))


def test_a_round_by_hand_every_tensor_has_weights_of_its_own() -> None:
    theta = applied(server(), COHORT)
    far = np.e**2 / (1 + np.e**2)  # fusion.b: distances 0 and 2
    assert theta["fusion"].params[0] == pytest.approx(1.0 + 1.2 * far * 2.0)
    a = np.e**5 / (np.e**5 + 1)  # fusion.w: distances 5 and 0
    assert theta["fusion"].params[1:].tolist() == pytest.approx([1.2 * a * 3.0, 1.2 * a * 4.0], rel=1e-6)
    p, q = np.e / (np.e + np.e**2), np.e**2 / (np.e + np.e**2)  # encoder.acc.w: distances 1 and 2
    assert theta["encoder.acc"].params[0] == pytest.approx(5.0 + 1.2 * (p * 1.0 - q * 2.0))
    assert theta["encoder.acc"].stats[0] == pytest.approx(0.25 * 1.0 + 0.75 * 0.2)  # by samples


def test_one_client_moves_the_model_by_epsilon_times_its_change() -> None:
    """Invariant 7."""
    fed = learning.Federation(learning.spec(method="fedattn"), {"p": learning.round_data(30)})
    cohort = learning.sync_round(fed)
    for name, start in cohort.start.items():
        change = cohort.members[0].tensors[name].params - start.params
        np.testing.assert_allclose(fed.theta[name].params, start.params + 1.2 * change, atol=1e-6)


def test_a_module_that_nobody_trained_stays() -> None:
    theta = applied(server(), Cohort(0, START, (member("p", 1, (1.0, 3.0, 4.0)),), LAYOUT))
    assert learning.equal({"encoder.acc": theta["encoder.acc"]}, {"encoder.acc": START["encoder.acc"]})


def test_noise_is_added_to_every_value_and_has_the_size_asked_for() -> None:
    spec = learning.spec(method="fedattn", config={"noise": 0.5})
    fed = learning.Federation(spec, {"p": learning.round_data(30)})
    cohort = learning.sync_round(fed)
    silent = server().weights({}, cohort)[0]
    theta = params.copy(cohort.start)
    aggregation.combine(theta, cohort.layout, {m.device: m.tensors for m in cohort.members}, silent)
    noise = np.concatenate([fed.theta[m].params - theta[m].params for m in theta])
    assert 0.4 < noise.std() < 0.6
    assert server().replaced({}, COHORT) == {}


def test_a_cohort_without_a_layout_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'fusion' tensor by tensor"):
        server().weights({}, Cohort(0, START, (member("p", 1, (1.0, 3.0, 4.0)),)))


def test_rounds_learn_with_a_modality_missing_somewhere() -> None:
    whole = learning.round_data(40, 2)
    part = learning.round_data(40, 1, seed=2)
    fed = learning.Federation(learning.spec(method="fedatt"), {"p": whole, "q": part})
    for _ in range(3):
        learning.sync_round(fed)
    assert params.finite(fed.theta)

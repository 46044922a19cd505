"""The server of MBA: eq. 7 to 12."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn.records import Rates, State
from edge_sdk.methods import fedasync, mba
from edge_sdk.methods.base import AsyncServerRule
from tests.helpers import learning

SPEC = learning.spec()


def server(spec: FederationSpec = SPEC, **options: object) -> AsyncServerRule:
    return mba.METHOD.server_rule(options, spec)


class Direct:
    """Eq. 7 as it is written: a table of all cells, weights of all of them at every update."""

    def __init__(self, modalities: tuple[str, ...], lam: float) -> None:
        self.cells: dict[str, dict[str, tuple[float, int]]] = {m: {} for m in modalities}
        self.lam = lam

    def report(self, device: str, version: int, distances: dict[str, float]) -> None:
        for m, d in distances.items():
            self.cells[m][device] = (float(np.float32(d)), version)

    def distances(self, version: int) -> dict[str, float]:
        out = {}
        for m, cells in self.cells.items():
            if cells:
                ages = np.array([version - v for _, v in cells.values()], np.float64)
                weights = np.exp(-self.lam * (ages - ages.min()))
                values = np.array([d for d, _ in cells.values()])
                out[m] = float((weights * values).sum() / weights.sum())
        return out


def apply(rule: AsyncServerRule, state: dict, *args: object, **kwargs: object) -> Rates:
    rates, patch = rule.rates(state, learning.update_view(*args, **kwargs))  # type: ignore[arg-type]
    state.update(patch)
    return rates


def test_worked_example() -> None:
    """Appendix B: three clients, two modalities, λ = ln 2, ε = 0, α0 = 0.9, a = 0.5, γ = 0.1."""
    rule, state = server(lam=math.log(2), eps=0.0), {}
    names = ("encoder.acc", "encoder.gyro", "fusion")

    first = apply(rule, state, "0", 0, distances={"acc": 0.2})
    assert [first.by_module[n] for n in names] == pytest.approx([0.9, 0.9, 0.9], abs=1e-12)

    second = apply(rule, state, "1", 1, staleness=1, distances={"gyro": 0.4})
    assert [second.by_module[n] for n in names] == pytest.approx([0.6046, 0.6523, 0.6364], abs=5e-5)
    assert mba.imbalance_rates(state, ("acc", "gyro"), eps=0.0) == pytest.approx({"acc": 0.5, "gyro": -0.25}, abs=1e-6)

    third = apply(rule, state, "2", 2, distances={"acc": 0.5})
    assert [third.by_module[n] for n in names] == pytest.approx([0.9041, 0.8955, 0.9], abs=5e-5)
    rho = mba.imbalance_rates(state, ("acc", "gyro"), eps=0.0)
    assert rho == pytest.approx({"acc": -0.0455, "gyro": 0.05}, abs=5e-5)


REPORTS = st.lists(
    st.tuples(
        st.integers(0, 5),  # device
        st.sampled_from([(), ("acc",), ("gyro",), ("mic",), ("acc", "gyro"), ("acc", "gyro", "mic")]),
        st.floats(0, 2, width=32),
        st.one_of(st.integers(1, 4), st.sampled_from([1000, 10**6])),  # versions since the last update
    ),
    min_size=1,
    max_size=60,
)


@given(reports=REPORTS, lam=st.sampled_from([0.0, 1e-3, 0.1, math.log(2), 1.0, 5.0]))
def test_incremental_equals_direct(reports: list, lam: float) -> None:
    spec = learning.spec(3)
    rule, state, direct = server(spec, lam=lam), {}, Direct(spec.modality_names, lam)
    version = 0
    for device, modalities, d, step in reports:
        version += step
        distances = dict.fromkeys(modalities, d)
        apply(rule, state, f"d{device}", version, modalities=spec.modality_names, distances=distances)
        direct.report(f"d{device}", version, distances)
        expected = direct.distances(version)
        found = {m: state[f"sum/{m}"][1] / state[f"sum/{m}"][0] for m in expected}
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_no_drift_in_a_long_run() -> None:
    rng = np.random.default_rng(0)
    for lam in (0.0, 0.1):
        rule, state, direct = server(lam=lam), {}, Direct(SPEC.modality_names, lam)
        for version in range(20_000):
            device, m, d = f"d{rng.integers(50)}", SPEC.modality_names[rng.integers(2)], float(rng.uniform(0, 2))
            apply(rule, state, device, version, distances={m: d})
            direct.report(device, version, {m: d})
        expected = direct.distances(19_999)
        assert {m: state[f"sum/{m}"][1] / state[f"sum/{m}"][0] for m in expected} == pytest.approx(expected, rel=1e-10)


@given(reports=REPORTS, lam=st.floats(0, 5), gamma=st.floats(0, 2), staleness=st.integers(0, 10**6))
def test_rates_are_always_rates(reports: list, lam: float, gamma: float, staleness: int) -> None:
    """Invariant 2."""
    spec = learning.spec(3)
    rule, state, version = server(spec, lam=lam, gamma=gamma, eps=0.0), {}, 0
    for device, modalities, d, step in reports:
        version += step
        rates = apply(
            rule, state, f"d{device}", version, staleness=staleness, modalities=spec.modality_names,
            distances=dict.fromkeys(modalities, d),
        )  # fmt: skip
        s = rates.by_module["fusion"]
        for m in spec.modality_names:
            alpha = rates.by_module[f"encoder.{m}"]
            assert 0.0 <= alpha <= 1.0  # NaN fails
            assert alpha <= s * (1 + gamma * (1 - 1 / 3)) * (1 + 1e-12)


@given(d=st.lists(st.floats(0, 2), min_size=2, max_size=5), gamma=st.floats(0, 1))
def test_a_smaller_distance_never_gives_a_larger_rate(d: list[float], gamma: float) -> None:
    """Invariant 2."""
    rates = mba.mixing_rates(0.9, gamma, mba.imbalance(np.array(d)))
    order = np.argsort(d)
    assert bool((np.diff(rates[order]) >= -1e-12).all())


def test_equal_distances_are_balanced() -> None:
    """Invariant 2."""
    assert mba.imbalance(np.array([0.3, 0.3, 0.3])).tolist() == [0.0, 0.0, 0.0]
    assert mba.imbalance(np.array([0.0, 0.0])).tolist() == [0.0, 0.0]
    assert mba.imbalance(np.array([0.7])).tolist() == [0.0]
    assert mba.imbalance(np.array([])).tolist() == []


def test_imbalance_by_hand_and_clipped() -> None:
    assert mba.imbalance(np.array([0.2, 0.6]), eps=0.0) == pytest.approx([1.0, -1 / 3])
    assert mba.imbalance(np.array([0.2, 0.6]), eps=0.2) == pytest.approx([0.5, -0.25])
    assert mba.imbalance(np.array([0.2, 0.6]), eps=0.0, clip=0.4) == pytest.approx([0.4, -1 / 3])
    frozen = mba.mixing_rates(0.9, 0.1, mba.imbalance(np.array([0.0, 1.0]), eps=0.0))
    assert frozen.tolist() == [0.0, pytest.approx(0.9 * 1.05)]


def test_lambda_zero_is_the_plain_mean_and_a_large_one_the_freshest_report() -> None:
    """Invariant 3."""
    for lam, expected in ((0.0, 0.5), (50.0, 0.9)):
        rule, state = server(lam=lam), {}
        for version, (device, d) in enumerate([("a", 0.1), ("b", 0.5), ("c", 0.9)]):
            apply(rule, state, device, version, distances={"acc": d})
        assert state["sum/acc"][1] / state["sum/acc"][0] == pytest.approx(expected, rel=1e-6)


def test_rho_is_zero_until_two_modalities_are_known() -> None:
    rule, state = server(), {}
    assert set(apply(rule, state, "a", 0, distances={"acc": 0.2}).by_module.values()) == {0.9}
    assert mba.imbalance_rates(state, ("acc", "gyro")) == {"acc": 0.0, "gyro": 0.0}
    assert mba.imbalance_rates({}, ("acc", "gyro")) == {"acc": 0.0, "gyro": 0.0}
    rates = apply(rule, state, "b", 1, distances={"gyro": 0.4})
    assert rates.by_module["encoder.acc"] < 0.9 < rates.by_module["encoder.gyro"]


def test_a_modality_nobody_reported_gets_the_base_rate() -> None:
    spec = learning.spec(3)
    rates = apply(server(spec), {}, "a", 0, modalities=spec.modality_names, distances={"acc": 0.2, "gyro": 0.4})
    assert rates.by_module["encoder.mic"] == rates.by_module["fusion"] == 0.9


def test_only_modules_of_the_update_get_rates_and_only_touched_cells_change() -> None:
    rule, state = server(), {}
    apply(rule, state, "a", 0, distances={"acc": 0.2})
    rates, patch = rule.rates(state, learning.update_view("b", 1, modalities=("gyro",), distances={"gyro": 0.1}))
    assert set(rates.by_module) == {"encoder.gyro", "fusion"}
    assert set(patch) == {"sum/gyro", "cell/gyro/b"}
    assert {k: v.shape for k, v in patch.items()} == {"sum/gyro": (3,), "cell/gyro/b": (2,)}


def test_rates_leave_the_state_alone() -> None:
    rule, state = server(), {}
    apply(rule, state, "a", 0, distances={"acc": 0.2, "gyro": 0.1})
    before: State = {k: v.copy() for k, v in state.items()}
    rule.rates(state, learning.update_view("a", 5, distances={"acc": 0.9}))
    assert state.keys() == before.keys()
    assert all(np.array_equal(state[k], before[k]) for k in before)


def test_gamma_zero_has_the_rates_of_fedasync_to_the_last_bit() -> None:
    """Invariant 1."""
    rng = np.random.default_rng(0)
    ours, theirs, state = server(gamma=0.0, eps=0.0), fedasync.METHOD.server_rule({}, SPEC), {}
    for version in range(200):
        view = learning.update_view(
            f"d{rng.integers(5)}", version, staleness=int(rng.integers(9)),
            distances={m: float(rng.choice([0.0, 0.3, 2.0])) for m in SPEC.modality_names if rng.random() < 0.7},
        )  # fmt: skip
        rates, patch = ours.rates(state, view)
        state.update(patch)
        assert rates == theirs.rates({}, view)[0]

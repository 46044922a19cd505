from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.core.errors import ConfigError, ShapeMismatch
from edge_sdk.core.records import ModuleLayout, Segments, TensorSpec
from edge_sdk.learn import aggregation, params
from edge_sdk.learn.aggregation import checked, combine, modality_wise, normalised
from edge_sdk.learn.records import Cohort, Member, Weights

LAYOUT = {
    name: ModuleLayout((TensorSpec("bias", (1,), "params", 0), TensorSpec("weight", (1,), "params", 1)), 2, 0, 0)
    for name in ("encoder.a", "encoder.b", "fusion")
}


def values(a: float, b: float) -> Segments:
    return Segments(np.array([a, b], np.float32))


def member(device: str, n: int, tensors: dict[str, Segments], steps: int = 1) -> Member:
    return Member(device, (), n, steps, {}, tensors)


def cohort(*members: Member) -> Cohort:
    return Cohort(0, {name: values(10.0, 20.0) for name in LAYOUT}, members)


def test_fedavg_by_hand() -> None:
    """Invariant 6."""
    whole = cohort(member("p", 1, {"fusion": values(1.0, 2.0)}), member("q", 3, {"fusion": values(5.0, 6.0)}))
    weights = modality_wise(whole)
    assert weights.by_block == {"fusion": {"p": 0.25, "q": 0.75}}
    theta = {"fusion": values(10.0, 20.0)}
    combine(theta, LAYOUT, {m.device: m.tensors for m in whole.members}, weights)
    assert theta["fusion"].params.tolist() == [4.0, 5.0]


def test_a_module_is_averaged_over_those_who_trained_it_and_stays_where_nobody_did() -> None:
    """Invariant 6."""
    whole = cohort(
        member("p", 1, {"encoder.a": values(1.0, 1.0), "fusion": values(0.0, 0.0)}),
        member("q", 3, {"fusion": values(4.0, 8.0)}),
    )
    theta = {name: values(10.0, 20.0) for name in LAYOUT}
    combine(theta, LAYOUT, {m.device: m.tensors for m in whole.members}, modality_wise(whole))
    assert theta["encoder.a"].params.tolist() == [1.0, 1.0]
    assert theta["encoder.b"].params.tolist() == [10.0, 20.0]
    assert theta["fusion"].params.tolist() == [3.0, 6.0]


def test_keep_holds_on_to_the_present_value_and_one_tensor_may_be_weighed_alone() -> None:
    theta = {"fusion": values(10.0, 20.0)}
    combine(
        theta,
        LAYOUT,
        {"p": {"fusion": values(2.0, 4.0)}},
        Weights({"fusion:weight": {"p": 0.5}}, {"fusion:weight": 0.5}),
    )
    assert theta["fusion"].params.tolist() == [10.0, 12.0]


def test_statistics_follow_the_weights_and_the_newest_counter_wins() -> None:
    layout = {
        "m": ModuleLayout(
            tuple(TensorSpec(s, (1,), s, 0) for s in ("params", "stats", "counters")), 1, 1, 1,
        )
    }  # fmt: skip

    def one(x: float, count: int) -> Segments:
        return Segments(np.array([x], np.float32), np.array([x], np.float32), np.array([count]))

    theta = {"m": one(0.0, 1)}
    combine(theta, layout, {"p": {"m": one(2.0, 7)}, "q": {"m": one(4.0, 5)}}, Weights({"m": {"p": 0.5, "q": 0.5}}))
    assert (theta["m"].params[0], theta["m"].stats[0], theta["m"].counters[0]) == (3.0, 3.0, 7)


def test_the_order_of_the_devices_does_not_change_a_bit() -> None:
    rng = np.random.default_rng(0)
    tensors = {f"d{i}": {"fusion": Segments(rng.standard_normal(2, dtype=np.float32))} for i in range(7)}
    shares = dict.fromkeys(tensors, 1 / 7)
    results = []
    for order in (list(tensors), list(reversed(tensors))):
        theta = {"fusion": values(1.0, 1.0)}
        combine(theta, LAYOUT, {d: tensors[d] for d in order}, Weights({"fusion": {d: shares[d] for d in order}}))
        results.append(theta["fusion"].params.tobytes())
    assert results[0] == results[1]


def test_what_does_not_fit_changes_nothing() -> None:
    theta = {"fusion": values(10.0, 20.0)}
    members = {"p": {"fusion": values(0.0, 0.0)}}
    for block, match in (("gate", "does not have"), ("fusion:no", "does not have"), ("encoder.a", "does not carry")):
        with pytest.raises(ShapeMismatch, match=match):
            combine(theta, LAYOUT, members, Weights({"fusion": {"p": 1.0}, block: {"p": 1.0}}))
    assert theta["fusion"].params.tolist() == [10.0, 20.0]


def test_shares_sum_to_one_and_are_equal_where_nothing_counts() -> None:
    assert normalised({"a": 1.0, "b": 3.0}) == {"a": 0.25, "b": 0.75}
    assert normalised({"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}
    assert normalised({}) == {}


def test_a_weight_that_is_not_finite_is_named() -> None:
    with pytest.raises(ConfigError, match=r"fusion"):
        checked(Weights({"fusion": {"p": float("nan")}}))
    weights = Weights({"fusion": {"p": 1.0}})
    assert checked(weights) is weights


def test_owners_lists_only_what_was_trained() -> None:
    whole = cohort(member("p", 1, {"fusion": values(0.0, 0.0)}), member("q", 2, {"encoder.a": values(0.0, 0.0)}))
    assert {name: [m.device for m in own] for name, own in aggregation.owners(whole).items()} == {
        "encoder.a": ["q"], "fusion": ["p"],
    }  # fmt: skip


def running(value: float, mean: float, count: int) -> Segments:
    """A module of one weight, one running statistic and one counter."""
    return Segments(np.array([value], np.float32), np.array([mean], np.float32), np.array([count]))


RUNNING = {
    "m": ModuleLayout(
        (
            TensorSpec("mean", (1,), "stats", 0),
            TensorSpec("steps", (1,), "counters", 0),
            TensorSpec("w", (1,), "params", 0),
        ),
        1,
        1,
        1,
    ),
    "n": ModuleLayout((TensorSpec("w", (1,), "params", 0),), 1, 0, 0),
}


def with_statistics(layout: dict | None = None) -> Cohort:
    start = {"m": running(0.0, 0.0, 4), "n": Segments(np.zeros(1, np.float32))}
    p = member("p", 1, {"m": running(1.0, 2.0, 3), "n": Segments(np.ones(1, np.float32))})
    q = member("q", 3, {"m": running(5.0, 6.0, 9)})
    return Cohort(0, start, (p, q), RUNNING if layout is None else layout)


def test_blocks_of_a_segment() -> None:
    cohort = with_statistics()
    assert aggregation.blocks(cohort, "m", "params") == ("m:w",)
    assert aggregation.blocks(cohort, "m", "stats") == ("m:mean",)
    assert aggregation.blocks(cohort, "n", "stats") == ()
    with pytest.raises(ConfigError, match="'x' tensor by tensor"):
        aggregation.blocks(cohort, "x", "params")


def test_statistics_alone_are_averaged_by_samples() -> None:
    weights = aggregation.averaged_statistics(with_statistics())
    assert weights.by_block == {"m:mean": {"p": 0.25, "q": 0.75}}
    theta = params.copy(with_statistics().start)
    combine(theta, RUNNING, {m.device: m.tensors for m in with_statistics().members}, weights)
    assert (theta["m"].params[0], theta["m"].stats[0], theta["m"].counters[0]) == (0.0, 5.0, 9)


def test_a_module_that_a_rule_made_takes_statistics_and_counters_from_the_cohort() -> None:
    made = aggregation.made(with_statistics(), "m", np.array([7.5]))
    assert (made.params.tolist(), made.stats.tolist(), made.counters.tolist()) == ([7.5], [5.0], [9])
    assert [a.dtype.name for a in (made.params, made.stats, made.counters)] == ["float32", "float32", "int64"]
    plain = aggregation.made(with_statistics(), "n", np.array([2.0]))
    assert (plain.params.tolist(), plain.stats.size, plain.counters.size) == ([2.0], 0, 0)

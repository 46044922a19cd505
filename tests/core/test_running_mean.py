from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.core.records import ModelTensors, Segments, VersionId
from edge_sdk.core.running_mean import RunningMean

RNG = np.random.default_rng(0)
THETAS = [RNG.normal(size=5).astype(np.float32) for _ in range(30)]


def version(number: int, lineage: str = "ab" * 16) -> VersionId:
    return VersionId(lineage, number, f"{number:032x}")


def model(values: np.ndarray, counter: int = 0) -> ModelTensors:
    return {"fusion": Segments(values, values[:2] ** 2, np.array([counter]))}


@pytest.mark.parametrize("weight", [0.1, 0.3, 1.0])
def test_it_is_the_recurrence(weight: float) -> None:
    mean, expected = RunningMean(weight), np.zeros(5)
    for t, theta in enumerate(THETAS):
        w = max(weight, 1 / (t + 1))
        expected = (1 - w) * expected + w * theta
        got = mean.take(version(t), model(theta, t))["fusion"]
        assert np.allclose(got.params, expected, atol=1e-6)
        assert got.counters.tolist() == [t]
        assert got.params.dtype == np.float32


def test_the_first_ones_count_equally() -> None:
    mean = RunningMean(0.1)
    for t in range(9):
        got = mean.take(version(t), model(THETAS[t]))["fusion"]
    assert np.allclose(got.params, np.mean(THETAS[:9], axis=0), atol=1e-6)
    assert np.allclose(got.stats, np.mean([theta[:2] ** 2 for theta in THETAS[:9]], axis=0), atol=1e-6)
    assert (got.stats > 0).all()


def test_unseen_versions_are_like_the_next_one_seen() -> None:
    some, every = RunningMean(0.1), RunningMean(0.1)
    for t in (0, 3, 7, 20):
        got = some.take(version(t), model(THETAS[t]))["fusion"].params
    for t in range(21):
        seen = next(s for s in (0, 3, 7, 20) if s >= t)
        expected = every.take(version(t), model(THETAS[seen]))["fusion"].params
    assert np.allclose(got, expected, atol=1e-6)


def test_what_was_given_out_stays_as_it_is_and_the_same_version_again_changes_nothing() -> None:
    mean = RunningMean(0.5)
    theta = THETAS[0].copy()
    first = mean.take(version(0), model(theta))
    theta += 1
    second = mean.take(version(1), model(THETAS[1]))
    assert np.array_equal(first["fusion"].params, THETAS[0])
    again = mean.take(version(1), model(THETAS[2]))
    assert np.array_equal(again["fusion"].params, second["fusion"].params)


@pytest.mark.parametrize("other", [version(2, "cd" * 16), version(0)])
def test_it_begins_anew_where_the_line_of_versions_does(other: VersionId) -> None:
    mean = RunningMean(0.1)
    for t in range(2):
        mean.take(version(t), model(THETAS[t]))
    assert np.array_equal(mean.take(other, model(THETAS[5]))["fusion"].params, THETAS[5])


def test_it_begins_anew_with_a_model_of_other_modules() -> None:
    mean = RunningMean(0.1)
    mean.take(version(0), model(THETAS[0]))
    got = mean.take(version(1), {"encoder.acc": Segments(THETAS[1])})
    assert np.array_equal(got["encoder.acc"].params, THETAS[1])

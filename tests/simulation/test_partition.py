"""Partitions: every row has one owner, whatever the rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.simulation.partition import partition
from edge_sdk.core.errors import ConfigError, DataError
from edge_sdk.core.records import Dataset


def world(rows: int, subjects: int | None = None, classes: int = 3) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(
        name="world",
        x={"a": rng.normal(size=(rows, 2)).astype(np.float32)},
        y=np.arange(rows) % classes,
        classes=tuple("xyz"[:classes]),
        has={"a": np.ones(rows, bool)},
        subject=None if subjects is None else np.arange(rows) % subjects,
    )


@given(
    rows=st.integers(12, 200),
    devices=st.integers(1, 12),
    how=st.sampled_from(["iid", "dirichlet:0.05", "dirichlet:10", None]),
    seed=st.integers(0, 5),
)
def test_every_row_has_exactly_one_owner_and_every_device_a_row(
    rows: int, devices: int, how: str | None, seed: int
) -> None:
    parts = partition(world(rows), devices, how, seed)
    assert len(parts) == devices
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
    assert all(len(part) > 0 for part in parts)


def test_subjects_are_dealt_round_robin_and_never_shared() -> None:
    data = world(60, subjects=6)
    parts = partition(data, 4, None, seed=1)
    assert data.subject is not None
    owned = [set(data.subject[part].tolist()) for part in parts]
    assert owned == [{0, 4}, {1, 5}, {2}, {3}]


def test_fewer_subjects_than_devices_falls_back_to_iid_only_when_nothing_was_asked_for() -> None:
    data = world(60, subjects=3)
    assert len(partition(data, 4, None, seed=1)) == 4
    with pytest.raises(DataError, match="4 devices but only 3 training subjects"):
        partition(data, 4, "subject", seed=1)


def test_small_concentration_is_skewed_and_large_is_not() -> None:
    data = world(3000)

    def skew(how: str) -> float:
        shares = [np.bincount(data.y[p], minlength=3).max() / max(1, len(p)) for p in partition(data, 5, how, seed=3)]
        return float(np.median(shares))

    assert skew("dirichlet:0.05") > 0.6 > 0.45 > skew("dirichlet:100")


@given(devices=st.integers(2, 12), concentration=st.sampled_from([0.001, 0.05, 0.5, 3.0, 1e8]), seed=st.integers(0, 50))
def test_a_full_device_gets_nothing_of_the_next_classes(devices: int, concentration: float, seed: int) -> None:
    data = world(600, classes=3)
    parts = partition(data, devices, f"dirichlet:{concentration}", seed)
    counts = np.array([np.bincount(data.y[part], minlength=3) for part in parts])  # (devices, classes)
    before = np.cumsum(counts, axis=1) - counts
    # A device without rows takes one from the largest, so that a count may be one off.
    assert (counts[before >= 1.1 * 600 / devices + 1] <= 1).all()
    if concentration == 1e8:
        assert (np.abs(counts - 200 / devices) <= 1).all()


@pytest.mark.parametrize("how", ["dirichlet", "dirichlet:0", "dirichlet:x", "iid:3", "by_phase_of_moon"])
def test_a_wrong_rule_is_named(how: str) -> None:
    with pytest.raises(ConfigError, match="partition"):
        partition(world(30), 3, how, seed=0)


def test_more_devices_than_rows_is_refused() -> None:
    with pytest.raises(DataError, match="9 devices but only 5"):
        partition(world(5), 9, None, seed=0)

"""Incongruity: who has which modalities in every case, drawn by seed and device alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from coordinator.simulation import ownership
from edge_sdk.core.errors import ConfigError, DataError
from edge_sdk.core.records import Dataset

NAMES = ("a", "b", "c")
ROWS = 50


def clients(count: int, modalities: tuple[str, ...] = NAMES) -> list[Dataset]:
    return [
        Dataset(
            name="world",
            x={m: np.full((ROWS, 2), device + 1, np.float32) for m in modalities},
            y=np.arange(ROWS) % 3,
            classes=("x", "y", "z"),
            has={m: np.ones(ROWS, bool) for m in modalities},
        )
        for device in range(count)
    ]


def owned(data: Dataset) -> tuple[str, ...]:
    return tuple(m for m in data.modalities if data.has[m].any())


def test_half_keep_everything_and_the_others_one() -> None:
    left = ownership.apply(clients(60), "half", seed=1)
    sizes = Counter(len(owned(data)) for data in left)
    assert sizes == {3: 30, 1: 30}
    singles = Counter(owned(data)[0] for data in left if len(owned(data)) == 1)
    assert set(singles) == set(NAMES)
    assert min(singles.values()) >= 4  # ten each on average


@pytest.mark.parametrize(("case", "sizes"), [("1m", {1}), ("2m", {2}), ("mixed", {1, 2, 3}), ("all", {3})])
def test_how_many_modalities_a_client_has(case: str, sizes: set[int]) -> None:
    left = ownership.apply(clients(90), case, seed=2)
    found = Counter(len(owned(data)) for data in left)
    assert set(found) == sizes
    assert min(found.values()) >= 90 / len(sizes) / 2
    subsets = Counter(owned(data) for data in left if len(owned(data)) < 3)
    assert case == "all" or len(subsets) == {"1m": 3, "2m": 3, "mixed": 6}[case]  # every subset comes up


def test_what_is_not_owned_is_gone_and_nothing_else_changes() -> None:
    before = clients(20)
    left = ownership.apply(before, "1m", seed=3)
    for device, data in enumerate(left):
        for m in NAMES:
            assert data.has[m].all() == (m in owned(data))
            assert (data.x[m] == (device + 1 if m in owned(data) else 0)).all()
        np.testing.assert_array_equal(data.y, before[device].y)
    assert all(has.all() for data in before for has in data.has.values())


def test_skewed_keeps_a_share_of_every_modality() -> None:
    left = ownership.apply(clients(200), "skewed", seed=4)
    shares = np.array([data.has[m].mean() for data in left for m in owned(data)])
    assert shares.min() >= 0.3
    assert shares.max() <= 1.0
    assert shares.mean() == pytest.approx(0.65, abs=0.03)
    assert shares.std() == pytest.approx(0.7 / np.sqrt(12), abs=0.03)  # uniform
    several = next(data for data in left if len(owned(data)) == 3)
    assert not np.array_equal(several.has["a"], several.has["b"])  # each modality on its own
    for m in owned(several):
        assert (several.x[m].any(axis=1) == several.has[m]).all()
    assert ownership.case_of("skewed").incomplete == "mask"


def test_draws_depend_on_seed_and_device_alone() -> None:
    few, many = (ownership.apply(clients(n), "mixed", seed=5) for n in (20, 40))
    assert [owned(data) for data in few] == [owned(data) for data in many[:20]]
    other = ownership.apply(clients(20), "mixed", seed=6)
    assert [owned(data) for data in few] != [owned(data) for data in other]


def test_a_client_that_lacks_a_modality_keeps_one_that_it_has() -> None:
    poor = clients(30)
    for data in poor[:15]:
        data.has["a"][:] = False
        data.has["b"][:10] = False
    left = ownership.apply(poor, "1m", seed=7)
    for data in left[:15]:
        assert owned(data) in {("b",), ("c",)}
        assert not data.has["b"][:10].any()


def test_mistakes_are_named_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match="ownership 'quarter': expected one of all, half, mixed, 2m, 1m, skewed"):
        ownership.apply(clients(4), "quarter", seed=1)
    with pytest.raises(DataError, match="world: ownership half needs at least two modalities, there is only a"):
        ownership.apply(clients(4, ("a",)), "half", seed=1)
    with pytest.raises(DataError, match="ownership 1m: none of 2 devices has"):
        ownership.apply(clients(2), "1m", seed=1)

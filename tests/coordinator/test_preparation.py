"""From a data set to a federation."""

from dataclasses import replace

import numpy as np
import pytest

from coordinator.preparation import only, spec_of, split
from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Dataset


def people(rows: int = 100, subjects: int = 10) -> Dataset:
    rng = np.random.default_rng(1)
    return Dataset(
        name="people",
        x={"acc": rng.normal(3.0, 2.0, (rows, 3, 8)).astype(np.float32), "f": np.zeros((rows, 5), np.float32)},
        y=np.arange(rows) % 4,
        classes=("a", "b", "c", "d"),
        has={"acc": np.ones(rows, bool), "f": np.arange(rows) % 2 == 0},
        rate_hz={"acc": 50.0},
        subject=np.arange(rows) % subjects,
    )


def test_every_fifth_subject_is_test_when_there_is_no_split() -> None:
    cut = split(people(), seed=0)
    assert cut.test.subject is not None
    assert set(cut.test.subject.tolist()) == {4, 9}
    assert len(cut.train.y) + len(cut.test.y) == 100


def test_a_split_of_its_own_wins_over_subjects() -> None:
    data = replace(people(), split=np.array(["test"] * 10 + ["train"] * 90))
    assert len(split(data, seed=0).test.y) == 10


def test_without_subjects_the_split_is_stratified_and_seeded() -> None:
    data = replace(people(), subject=None)
    first, again, other = split(data, seed=1), split(data, seed=1), split(data, seed=2)
    assert np.bincount(first.test.y).tolist() == [5, 5, 5, 5]
    assert np.array_equal(first.test.x["acc"], again.test.x["acc"])
    assert not np.array_equal(first.test.x["acc"], other.test.x["acc"])


def test_a_split_without_test_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no test rows"):
        split(replace(people(), split=np.array(["train"] * 100)), seed=0)


def test_a_class_that_only_the_test_has_is_refused() -> None:
    test = np.arange(100) < 40
    y = np.where(test, np.arange(100) % 4, np.arange(100) % 2)
    unlabelled = np.where(np.arange(100) == 0, -1, y)
    with pytest.raises(DataError, match="people: no training row of class 'c', 'd', which the test has"):
        split(replace(people(), y=unlabelled, split=np.where(test, "test", "train")), seed=0)
    assert len(split(replace(people(), y=unlabelled, split=np.where(test, "train", "test")), seed=0).test.y) == 60


def test_the_spec_carries_shapes_rates_and_standardisation() -> None:
    spec = spec_of(people(), name="p", method="mba")
    acc = spec.modality("acc")
    assert acc.shape == (3, 8)
    assert acc.rate_hz == 50.0
    assert np.allclose(acc.mean, 3.0, atol=0.3)
    assert np.allclose(acc.std, 2.0, atol=0.3)
    assert spec.modality("f").std == (1.0,) * 5  # constant in training: what differs later must not be blown up


def test_images_are_standardised_per_channel_over_all_pixels() -> None:
    rng = np.random.default_rng(3)
    means, deviations = np.array([10.0, 0.5, -2.0]), np.array([4.0, 0.1, 1.0])
    images = rng.normal(means[:, None, None], deviations[:, None, None], (60, 3, 12, 10)).astype(np.float32)
    images[::2, 0] += 6.0  # differences between images count as well as those between pixels
    spec = spec_of(replace(people(60), x={"cam": images}, has={"cam": np.ones(60, bool)}), name="p", method="mba")
    cam = spec.modality("cam")
    assert cam.shape == (3, 12, 10)
    assert np.allclose(cam.mean, (13.0, 0.5, -2.0), atol=0.2)
    assert np.allclose(cam.std, (5.0, 0.1, 1.0), atol=0.1)


def test_only_drops_rows_that_have_none_of_the_kept_modalities() -> None:
    kept = only(people(), ("f",))
    assert kept.modalities == ("f",)
    assert len(kept.y) == 50
    with pytest.raises(DataError, match="no modality 'lidar'"):
        spec_of(kept, name="p", method="mba", modalities=("lidar",))

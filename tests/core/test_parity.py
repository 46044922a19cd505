"""Comparison of engines: masks, noise, and when two engines agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core import parity
from edge_sdk.core.errors import ParityError
from edge_sdk.core.interfaces import Engine, GraphInfo
from edge_sdk.core.records import Float32, ModelTensors
from edge_sdk.core.spec import ModalitySpec
from tests.helpers.specs import CLASSES, har_spec, tri_spec

SPEC = tri_spec()
ROWS = parity.masks(SPEC)
X = parity.noise(SPEC, 8, 1)


class Sums(Engine):
    """Logits that are a known function of what is there; `off` is added where only `when` is there."""

    provider = "numpy"
    info = GraphInfo(SPEC.modality_names, {m.name: m.shape for m in SPEC.modalities}, CLASSES, "")

    def __init__(self, when: str = "", off: float = 0.0) -> None:
        self.when, self.off = when, off

    @classmethod
    def open(cls, graph: Path, tensors: ModelTensors) -> Sums:
        return cls()

    def with_tensors(self, tensors: ModelTensors) -> Sums:
        return self

    def run(self, x: Mapping[str, Float32], mask: Float32) -> Float32:
        sums = np.stack([a.reshape(len(a), -1).mean(1) for a in x.values()], axis=1)  # (B, M)
        logits = (sums * mask).sum(1, keepdims=True) * np.arange(1, 5, dtype=np.float32)
        if self.when and np.array_equal(mask[:1], ROWS[self.when]):
            logits = logits + np.array([self.off, 0, 0, 0])
        return logits.astype(np.float32)


def test_masks_are_the_full_one_and_each_modality() -> None:
    assert {name: row.tolist() for name, row in ROWS.items()} == {
        "all": [[1, 1, 1]],
        "imu": [[1, 0, 0]],
        "camera": [[0, 1, 0]],
        "audio": [[0, 0, 1]],
    }
    alone = har_spec(modalities=(ModalitySpec(name="acc", shape=(3,)),))
    assert list(parity.masks(alone)) == ["all"]


def test_noise_is_seeded_and_lies_where_the_modality_lies() -> None:
    x = parity.noise(SPEC, 200, 3)
    assert {m: a.shape[1:] for m, a in x.items()} == {m.name: m.shape for m in SPEC.modalities}
    assert all(a.dtype == np.float32 for a in x.values())
    assert abs(x["camera"].mean() - 0.5) < 0.01
    assert abs(x["camera"].std() - 0.2) < 0.01
    assert np.array_equal(x["imu"], parity.noise(SPEC, 200, 3)["imu"])
    assert not np.array_equal(x["imu"], parity.noise(SPEC, 200, 4)["imu"])


def test_equal_engines_agree() -> None:
    report = parity.check(Sums(), Sums(), X, rows=ROWS, tolerance=0.0)
    assert (report.max_abs, report.agreement, report.windows) == (0.0, 1.0, 8)


@pytest.mark.parametrize("when", ROWS)
def test_an_error_under_one_mask_is_found_and_named(when: str) -> None:
    report = parity.compare(Sums(when, 0.01), Sums(), X, rows=ROWS, tolerance=1e-3)
    assert not report.ok
    assert report.worst == when
    assert report.max_abs == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(ParityError, match=when):
        parity.check(Sums(when, 0.01), parity.logits(Sums(), X, ROWS), X, rows=ROWS, tolerance=1e-3)
    assert parity.compare(Sums(when, 0.01), Sums(), X, rows=ROWS, tolerance=0.02).ok


def test_the_error_is_relative_to_large_logits() -> None:
    big = {m: 1e4 * a for m, a in X.items()}
    size = max(float(np.abs(a).max()) for a in parity.logits(Sums(), big, ROWS).values())
    report = parity.compare(Sums("all", 0.01), Sums(), big, rows=ROWS, tolerance=1e-3)
    assert size > 100
    assert report.ok


def test_another_class_lowers_the_agreement() -> None:
    report = parity.compare(Sums("all", 100.0), Sums(), X, rows={"all": ROWS["all"]}, tolerance=1e-3)
    assert report.agreement < 1.0


def test_what_is_not_finite_never_agrees() -> None:
    for off in (np.nan, np.inf):
        assert not parity.compare(Sums("imu", off), Sums("imu", off), X, rows=ROWS, tolerance=1e9).ok
        with pytest.raises(ParityError, match="imu"):
            parity.check_finite(Sums("imu", off), X, rows=ROWS)
    assert parity.check_finite(Sums(), X, rows=ROWS).ok


def test_logits_of_another_shape_are_refused() -> None:
    short = {name: a[:, :3] for name, a in parity.logits(Sums(), X, ROWS).items()}
    with pytest.raises(ParityError, match="expected logits"):
        parity.compare(Sums(), short, X, rows=ROWS, tolerance=1.0)

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.core.records import Segments, Update, UpdateKey, VersionId
from edge_sdk.learn.blending import blend
from edge_sdk.methods import fedbuff, mba
from edge_sdk.methods.base import find
from tests.helpers import learning


def test_steps_behind_by_hand() -> None:
    # K = 4: versions 0..3 are step 0, 4..7 step 1, 8..11 step 2
    cases = {(0, 0): 0, (3, 3): 0, (4, 1): 1, (4, 4): 1, (7, 3): 0, (9, 1): 0, (9, 2): 1, (11, 11): 2}
    assert {key: fedbuff.steps_behind(*key, 4) for key in cases} == cases
    assert fedbuff.steps_behind(9, 3, 1) == 3  # a buffer of one: plain staleness


@pytest.mark.parametrize(
    ("options", "version", "staleness", "expected"),
    [
        ({}, 5, 5, 0.1),
        ({"k": 4}, 9, 2, 0.25 * 2**-0.5),
        ({"k": 2, "server_lr": 0.5, "a": 1.0}, 8, 4, 0.25 / 3),
    ],
)
def test_rates_by_hand(options: dict, version: int, staleness: int, expected: float) -> None:
    rule = fedbuff.METHOD.server_rule(options, learning.spec())
    rates, patch = rule.rates({}, learning.update_view("d", version, staleness=staleness))
    assert (rates.op, patch) == ("add", {})
    assert set(rates.by_module) == {"encoder.acc", "encoder.gyro", "fusion"}
    assert list(rates.by_module.values()) == pytest.approx([expected] * 3)


def test_after_k_updates_the_model_is_where_the_source_puts_it() -> None:
    rng, k = np.random.default_rng(0), 4
    rule = fedbuff.METHOD.server_rule({"k": k, "server_lr": 0.7}, learning.spec())
    theta, buffered = {"fusion": Segments(rng.normal(size=20).astype(np.float32))}, np.zeros(20)
    expected = theta["fusion"].params.astype(np.float64)
    for version in range(12):
        change, tau = rng.normal(size=20).astype(np.float32), int(rng.integers(0, version + 1))
        now, base = version // k, (version - tau) // k
        buffered += change * (now - base + 1.0) ** -0.5
        view = learning.update_view("d", version, staleness=tau, modalities=())
        update = Update(
            UpdateKey("d", 1, version), "t", VersionId("0" * 32, version, "0" * 32), "0" * 32, "delta",
            {"fusion": Segments(change)}, 1, 1, (),
        )  # fmt: skip
        blend(theta, None, update, rule.rates({}, view)[0])
        if (version + 1) % k == 0:
            expected, buffered = expected + 0.7 * buffered / k, np.zeros(20)
            assert theta["fusion"].params == pytest.approx(expected, abs=1e-5)


def test_it_composes() -> None:
    method = find("mba+fedbuff")
    assert (method.client, method.server) == (mba.Client, fedbuff.Server)
    assert find("ogm_ge+fedbuff").server_rule({"server": {"k": 3}}, learning.spec()).config.k == 3

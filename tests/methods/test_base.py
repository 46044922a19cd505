from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.core.errors import ConfigError, PluginError, Reason, UpdateRejected
from edge_sdk.methods import base, fedasync, mba
from edge_sdk.methods.base import NoConfig, PayloadField, PayloadSchema
from tests.helpers import learning

SCHEMA = PayloadSchema(
    (
        PayloadField("distance.{modality}", low=0.0, high=2.0),
        PayloadField("counts", ("C",), "int64", low=0, required=True),
        PayloadField("prototypes", ("M", "C", "D")),
    )
)
SPEC = learning.spec()
COUNTS = np.zeros(3, np.int64)


def test_a_payload_that_fits() -> None:
    payload = {
        "distance.acc": np.asarray(2.0, np.float32), "counts": COUNTS, "prototypes": np.zeros((2, 3, 6), np.float32)
    }  # fmt: skip
    SCHEMA.check(payload, SPEC)
    SCHEMA.check({"counts": COUNTS}, SPEC)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "'counts' is missing"),
        ({"distance.mic": np.asarray(0.1, np.float32)}, "'distance.mic' is not declared"),
        ({"distance.acc": np.asarray(0.1)}, r"expected float32 \(\), found float64"),
        ({"distance.acc": np.zeros(1, np.float32)}, r"found float32 \(1,\)"),
        ({"distance.acc": np.asarray(2.1, np.float32)}, r"outside \[0, 2\]"),
        ({"distance.acc": np.asarray(np.nan, np.float32)}, "not finite"),
        ({"prototypes": np.full((2, 3, 6), np.nan, np.float32)}, "not finite"),
        ({"prototypes": np.full((2, 3, 6), np.inf, np.float32)}, "not finite"),
        ({"prototypes": np.zeros((3, 2, 6), np.float32)}, r"expected float32 \(2, 3, 6\)"),
    ],
)
def test_a_payload_that_does_not_fit(payload: dict, message: str) -> None:
    filled = payload if not payload else {"counts": COUNTS, **payload}
    with pytest.raises(UpdateRejected, match=message) as caught:
        SCHEMA.check(filled, SPEC)
    assert caught.value.reason is Reason.PAYLOAD


def test_find() -> None:
    assert base.find("mba") is mba.METHOD
    with pytest.raises(PluginError, match=r"no plug-in 'mbaa'"):
        base.find("mbaa")


def test_a_composition_has_the_first_clients_and_the_seconds_server() -> None:
    method = base.find("mba+fedasync")
    options = {"client": {"beta": 0.3}, "server": {"alpha": 0.5}}
    client, server = method.client_rule(options), method.server_rule(options, SPEC)
    assert (type(client), client.config.beta) == (mba.Client, 0.3)
    assert (type(server), server.config.alpha) == (fedasync.Server, 0.5)
    assert method.uploads == mba.METHOD.uploads
    with pytest.raises(ConfigError, match=r"go under client and server, found \['beta'\]"):
        method.client_rule({"beta": 0.3})


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"method.mba:betta: unknown key"):
        mba.METHOD.client_rule({"betta": 1})
    with pytest.raises(ConfigError, match=r"method.fedasync:alpha: .*found 2"):
        fedasync.METHOD.server_rule({"alpha": 2}, SPEC)


def test_the_default_client_waits_for_all_then_trains_what_came() -> None:
    rule = base.ClientRule(NoConfig())
    assert rule.schedule(learning.view(("gyro",))) == ()
    (phase,) = rule.schedule(learning.view(("gyro", "acc")))
    assert (phase.modalities, phase.final, phase.epochs) == (("acc", "gyro"), True, 2)
    assert phase.train == ("encoder.acc", "encoder.gyro", "fusion")
    (alone,) = rule.schedule(learning.view(("gyro",), absent=("acc",)))
    assert alone.train == ("encoder.gyro", "fusion")


def test_a_server_rule_without_rates_says_so() -> None:
    rule = base.AsyncServerRule(NoConfig(), SPEC)
    with pytest.raises(ConfigError, match=r"AsyncServerRule must define rates"):
        rule.rates({}, learning.update_view("d", 0))

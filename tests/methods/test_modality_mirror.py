from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.core.errors import ConfigError
from edge_sdk.learn.records import Phase
from edge_sdk.methods import modality_mirror
from edge_sdk.methods.base import find
from edge_sdk.methods.modality_mirror import target
from edge_sdk.models import build
from tests.helpers import guards, learning

SPEC = learning.spec(3, method="modality_mirror")
GYRO = Phase("unimodal", ("gyro",), ("encoder.gyro", "head.gyro"), 2, final=True)


def schedule(here: tuple[str, ...], stage: str, absent: tuple[str, ...] = ()) -> tuple[Phase, ...]:
    now = learning.view(here, planned=learning.NAMES, absent=absent)
    return modality_mirror.METHOD.client_rule({}).schedule(replace(now, plan=replace(now.plan, phase=stage)))


def test_half_of_the_clients_train_everything_and_the_others_each_modality_alike() -> None:
    drawn = Counter(target(f"d{n}", learning.NAMES, multi_share=0.5, seed=0) for n in range(4000))
    assert drawn[""] == pytest.approx(2000, abs=150)
    assert [drawn[m] for m in learning.NAMES] == pytest.approx([667] * 3, abs=120)
    assert set(drawn) == {"", *learning.NAMES}


def test_a_target_set_is_fixed() -> None:
    rule = modality_mirror.METHOD.server_rule({}, SPEC)
    first = [rule.stage({}, f"d{n}") for n in range(50)]
    assert [rule.stage({"anything": np.ones(1)}, f"d{n}") for n in range(50)] == first
    other = modality_mirror.METHOD.server_rule({"seed": 1}, SPEC)
    assert [other.stage({}, f"d{n}") for n in range(50)] != first
    for share, expected in ((1.0, {""}), (0.0, set(learning.NAMES))):
        rule = modality_mirror.METHOD.server_rule({"multi_share": share}, SPEC)
        assert {rule.stage({}, f"d{n}") for n in range(50)} == expected
    assert target("d", ("acc",), multi_share=0.0, seed=0) == ""


def test_a_uni_modal_client_trains_as_soon_as_its_modality_is_there() -> None:
    assert schedule(("mic",), "gyro") == ()
    assert schedule(("mic", "gyro"), "gyro") == (GYRO,)
    (rest,) = schedule(("mic", "acc"), "gyro", absent=("gyro",))
    assert rest.train == ("encoder.acc", "encoder.mic", "fusion")


def test_a_multi_modal_client_waits_for_all() -> None:
    assert schedule(("mic", "gyro"), "") == ()
    (phase,) = schedule(learning.NAMES, "")
    assert phase.train == ("encoder.acc", "encoder.gyro", "encoder.mic", "fusion")


def test_uploads_hold_only_what_was_trained() -> None:
    start = build.initial_tensors(SPEC, modality_mirror.METHOD.needs)
    alone = guards.play("modality_mirror", learning.round_data(40, 3), phase="gyro")
    assert set(alone.tensors) == {"encoder.gyro", "head.gyro"}
    assert all(not np.array_equal(alone.tensors[n].params, start[n].params) for n in alone.tensors)
    fused = guards.play("modality_mirror", learning.round_data(40, 3))
    assert set(fused.tensors) == {"encoder.acc", "encoder.gyro", "encoder.mic", "fusion"}
    assert (alone.payload, fused.payload) == ({}, {})


@pytest.mark.parametrize("what", guards.DATA)
def test_poor_data_of_a_uni_modal_client(what: str) -> None:
    assert guards.finite(guards.play("modality_mirror", guards.DATA[what](), phase="gyro"))


def test_rates_by_hand() -> None:
    rule = modality_mirror.METHOD.server_rule({}, SPEC)
    made = replace(learning.update_view("d", 9, staleness=3), modules=("encoder.gyro", "head.gyro"))
    rates, patch = rule.rates({}, made)
    assert (dict(rates.by_module), rates.op, patch) == ({"encoder.gyro": 0.45, "head.gyro": 0.45}, "mix", {})


def test_meaningless_compositions() -> None:
    assert find("modality_mirror_async").client is modality_mirror.Client
    with pytest.raises(ConfigError, match="the clients of modality_mirror need the server's target set"):
        find("modality_mirror+fedasync")
    with pytest.raises(ConfigError, match="sends its target set, which the clients of ogm_ge ignore"):
        find("ogm_ge+modality_mirror")

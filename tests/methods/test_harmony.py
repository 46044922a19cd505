from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.core.errors import ConfigError
from edge_sdk.learn import own_modules
from edge_sdk.learn.records import UpdateView
from edge_sdk.methods import harmony
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import guards, learning

SPEC = learning.spec(3, method="harmony")
START = build.initial_tensors(SPEC, harmony.METHOD.needs)


def server(**options: object) -> harmony.Server:
    return harmony.METHOD.server_rule(options, SPEC)


def unimodal(version: int, base: tuple[int, ...], modalities: tuple[str, ...], staleness: int = 0) -> UpdateView:
    made = learning.update_view("d", version, staleness=staleness, modalities=modalities)
    modules = tuple(f"{kind}.{m}" for m in modalities for kind in ("encoder", "head"))
    return replace(made, modules=modules, payload={"versions": np.array(base)})


def schedule(here: tuple[str, ...], finished: tuple = (), absent: tuple[str, ...] = (), phase: str = "") -> tuple:
    now = learning.view(here, planned=learning.NAMES, finished=finished, absent=absent)
    return harmony.METHOD.client_rule({}).schedule(replace(now, plan=replace(now.plan, phase=phase)))


def test_stage_1_trains_each_modality_as_it_arrives() -> None:
    (first,) = schedule(("mic",))
    assert (first.modalities, first.train, first.final) == (("mic",), ("encoder.mic", "head.mic"), False)
    assert schedule(("mic",), (first,)) == ()
    (second,) = schedule(("mic", "acc"), (first,))
    (last,) = schedule(("mic", "acc", "gyro"), (first, second))
    assert (last.modalities, last.final) == (("gyro",), True)
    assert last.keep == ("encoder.mic", "head.mic", "encoder.acc", "head.acc")
    assert last.train == (*last.keep, "encoder.gyro", "head.gyro")


def test_stage_2_waits_for_all_and_trains_the_fusion() -> None:
    assert schedule(("mic", "acc"), phase="fusion") == ()
    (phase,) = schedule(("mic", "acc", "gyro"), phase="fusion")
    assert phase.train == ("encoder.acc", "encoder.gyro", "encoder.mic", "fusion")


def test_a_round_of_stage_1_trains_modalities_independently() -> None:
    data = learning.round_data(40, 3)
    work = guards.play("harmony", data)
    assert set(work.tensors) == {f"{k}.{m}" for k in ("encoder", "head") for m in learning.NAMES}
    for m in learning.NAMES:
        assert not np.array_equal(work.tensors[f"head.{m}"].params, START[f"head.{m}"].params)
    other = replace(data, x={**data.x, "mic": 3 * data.x["mic"]})
    changed = guards.play("harmony", other)
    same = {n for n in work.tensors if learning.equal({n: work.tensors[n]}, {n: changed.tensors[n]})}
    assert same == {"encoder.acc", "head.acc", "encoder.gyro", "head.gyro"}


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_encoders_learn_more_slowly_in_stage_2(rate: float) -> None:
    """One step of one batch: an encoder moves `encoder_lr` times as far as the plain method's."""
    data = learning.round_data(16)
    moved = {}
    for name, config in (("fedasync", {}), ("harmony", {"encoder_lr": rate})):
        spec = learning.spec(method=name, config=config)
        start = build.initial_tensors(spec, find(name).needs)
        now = learning.view(("acc", "gyro"), epochs=1)
        now = replace(now, plan=replace(now.plan, phase="fusion"))
        phase = find(name).client_rule(config).schedule(now)[0]
        result = learning.train_phase(learning.job(spec, phase, now, data=data, start=start))
        moved[name] = {n: s.params - start[n].params for n, s in result.tensors.items()}
    assert np.allclose(moved["harmony"]["encoder.acc"], rate * moved["fedasync"]["encoder.acc"], atol=1e-6)
    assert np.allclose(moved["harmony"]["fusion"], moved["fedasync"]["fusion"], atol=1e-7)


def test_each_modality_has_a_staleness_of_its_own() -> None:
    assert harmony.modality_staleness(np.array([5.0, 2.0]), np.array([2.0, 3.0])).tolist() == [3.0, 0.0]
    rule, state = server(), {}
    for version, names in enumerate([("acc",), ("acc",), ("acc", "gyro")]):
        state.update(rule.rates(state, unimodal(version, (9, 9, 9), names))[1])
    assert state["versions"].tolist() == [3, 1, 0]
    assert rule.extras(state, "d")["versions"].tolist() == [3, 1, 0]
    rates, patch = rule.rates(state, unimodal(3, (0, 1, 0), learning.NAMES, staleness=3))
    found = [rates.by_module[f"{k}.{m}"] for m in learning.NAMES for k in ("encoder", "head")]
    assert found == pytest.approx([0.45, 0.45, 0.9, 0.9, 0.9, 0.9])
    assert (patch["updates"].tolist(), patch["versions"].tolist()) == ([4.0], [4, 2, 1])


def test_the_stage_switches_and_late_updates_of_stage_1_are_still_mixed() -> None:
    rule, state = server(stage1_updates=2), {}
    stages = []
    for version in range(3):
        stages.append((rule.stage(state, "d"), rule.figures(state)["stage"]))
        state.update(rule.rates(state, unimodal(version, (version,) * 3, learning.NAMES))[1])
    assert stages == [("unimodal", 1.0), ("unimodal", 1.0), ("fusion", 2.0)]
    fused = replace(learning.update_view("d", 3, staleness=3, modalities=learning.NAMES), payload={})
    assert list(rule.rates(state, fused)[0].by_module.values()) == pytest.approx([0.45] * 4)
    assert server(stage1_updates=0).stage({}, "d") == "fusion"


def test_strict_stage_2_sends_the_fusion_alone_and_goes_on_from_encoders_of_its_own() -> None:
    data, strict = learning.round_data(40, 3), {"harmony_strict": True}
    shared = guards.play("harmony", data, phase="fusion")
    first = guards.play("harmony", data, phase="fusion", config=strict)
    assert set(first.tensors) == {"fusion"}
    assert learning.equal(first.tensors, {"fusion": shared.tensors["fusion"]})  # trained alike
    encoders = tuple(f"encoder.{m}" for m in learning.NAMES)
    own = own_modules.unpacked(first.memory, encoders, harmony.OWN)
    assert learning.equal(own, {name: shared.tensors[name] for name in encoders})
    second = guards.play("harmony", data, phase="fusion", config=strict, memory=first.memory)
    assert not learning.equal(second.tensors, first.tensors)  # the same task, from other encoders
    again = own_modules.unpacked(second.memory, encoders, harmony.OWN)
    assert not any(learning.equal({name: own[name]}, {name: again[name]}) for name in encoders)


def test_strict_changes_nothing_in_stage_1() -> None:
    data = learning.round_data(40, 3)
    plain, strict = (guards.play("harmony", data, config={"harmony_strict": on}) for on in (False, True))
    assert learning.equal(plain.tensors, strict.tensors)
    assert strict.memory == {}


def test_in_strict_stage_2_the_global_encoders_stay_those_of_stage_1() -> None:
    rule = server(harmony_strict=True, stage1_updates=0)
    update = replace(learning.update_view("d", 3, staleness=3), modules=("fusion",), payload={})
    rates, patch = rule.rates({"versions": np.array([2.0, 1.0, 0.0])}, update)
    assert rates.by_module == {"fusion": pytest.approx(0.45)}
    assert patch["versions"].tolist() == [2, 1, 0]


@pytest.mark.parametrize("what", guards.DATA)
def test_poor_data_in_stage_2(what: str) -> None:
    assert guards.finite(guards.play("harmony", guards.DATA[what](), phase="fusion"))


def test_meaningless_compositions() -> None:
    assert find("harmony_async").client is harmony.Client
    with pytest.raises(ConfigError, match="the clients of harmony need the server's stage, which fedasync"):
        find("harmony+fedasync")
    with pytest.raises(ConfigError, match="the server of harmony lives on versions"):
        find("fedasync+harmony")

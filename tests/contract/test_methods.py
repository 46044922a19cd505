"""What every registered method must keep to, ours and everybody else's."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core import registry
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn import local_training, params, stacked_training
from edge_sdk.learn.records import Phase, PhaseJob, PhaseResult, RoundView
from edge_sdk.methods.base import AsyncServerRule, ClientRule, Method, SyncServerRule, find
from edge_sdk.models import build
from tests.helpers import learning

NAMES = registry.names("methods")
PAGE_OF = {path.stem: path.read_text() for path in (Path(__file__).parents[2] / "docs" / "methods").glob("*.md")}
PAGES = tuple(PAGE_OF.values())
ASYNC = [name for name in NAMES if find(name).mode == "async"]
SYNC = [name for name in NAMES if find(name).mode == "sync"]


def rounds(name: str, modalities: int, *, seed: int = 1) -> tuple:
    spec = learning.spec(modalities, method=name)
    data = learning.round_data(modalities=modalities)
    start = build.initial_tensors(spec, find(name).needs)
    return spec, start, learning.train_round(spec, spec.modality_names, data=data, start=start, seed=seed)


@pytest.mark.parametrize("name", NAMES)
def test_description(name: str) -> None:
    method = find(name)
    assert isinstance(method, Method)
    assert method.name == name
    assert method.source
    assert issubclass(method.client, ClientRule)
    assert issubclass(method.server, AsyncServerRule if method.mode == "async" else SyncServerRule)


@pytest.mark.parametrize("name", NAMES)
def test_options_have_defaults_and_unknown_ones_are_refused(name: str) -> None:
    method = find(name)
    method.client_rule({})
    method.server_rule({}, learning.spec(method=name))
    with pytest.raises(ConfigError, match=f"method.{name}:no_such_option"):
        method.client_rule({"no_such_option": 1})


@pytest.mark.parametrize("name", [name for name in NAMES if find(name).client.__module__.startswith("edge_sdk.")])
def test_a_page_names_the_method_and_every_option_of_it(name: str) -> None:
    method = find(name)
    options = {*method.config.model_fields, *(method.server_config or method.config).model_fields}
    homes = [page for page in PAGES if re.search(rf"`(--method )?{name}`", page)]
    assert homes, f"no page in docs/methods names {name!r}"
    linked = [page + "".join(PAGE_OF[link] for link in re.findall(r"\]\((\w+)\.md\)", page)) for page in homes]
    missing = [{option for option in options if f"`{option}" not in text} for text in linked]
    assert set() in missing, f"docs/methods: no page of {name} names {sorted(min(missing, key=len))}"


@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_round_gives_a_finite_update_that_fits(name: str, modalities: int) -> None:
    spec, start, (final, results) = rounds(name, modalities)
    params.check(build.layout(spec, find(name).needs), final.tensors)
    assert params.finite(final.tensors)
    assert not learning.equal(final.tensors, {n: start[n] for n in final.tensors})
    assert final.num_samples == 40
    assert final.num_steps > 0
    assert math.isfinite(final.loss)
    find(name).uploads.check(final.payload, spec)
    for result in results:
        for private in (result.memory, result.carry):
            assert all(isinstance(a, np.ndarray) for a in private.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bits(name: str) -> None:
    one, other, different = (rounds(name, 2, seed=seed)[2][0] for seed in (1, 1, 2))
    assert learning.equal(one.tensors, other.tensors)
    assert one.payload.keys() == other.payload.keys()
    assert all(np.array_equal(one.payload[k], other.payload[k]) for k in one.payload)
    assert not learning.equal(one.tensors, different.tensors)


@pytest.mark.parametrize("name", NAMES)
def test_schedules_end(name: str) -> None:
    """Whatever comes and in whatever order, the rule reaches a final phase once nothing is awaited any more."""
    rule = find(name).client_rule({})
    planned = learning.NAMES
    for here in (("mic",), ("gyro", "acc"), ("mic", "acc", "gyro")):
        finished: tuple[Phase, ...] = ()
        absent = tuple(m for m in planned if m not in here)
        for _ in range(50):
            phases = rule.schedule(learning.view(here, planned=planned, absent=absent, finished=finished))
            assert phases, "nothing to do, and nothing is awaited"
            assert set(phases[0].modalities) <= set(here)
            if phases[0].final:
                break
            finished += (phases[0],)
        else:
            pytest.fail("no final phase after 50")


@pytest.mark.parametrize("name", ASYNC)
def test_server_rates_are_rates_for_the_modules_of_the_update(name: str) -> None:
    spec = learning.spec(3, method=name)
    rule = find(name).server_rule({}, spec)
    state = dict(rule.init())
    final = rounds(name, 3)[2][0]
    for version in range(20):
        for modalities in (spec.modality_names, ("gyro",)):
            view = learning.update_view(f"d{version % 3}", version, staleness=version % 7, modalities=modalities)
            view = type(view)(**{**{f: getattr(view, f) for f in view.__slots__}, "payload": final.payload})
            rates, patch = rule.rates(state, view)
            assert set(rates.by_module) == set(view.modules)
            assert all(0.0 <= r <= 1.0 for r in rates.by_module.values())
            assert rates.op in ("mix", "add")
            assert all(v.dtype == np.float64 and np.isfinite(v).all() for v in patch.values())
            again = rule.rates(state, view)
            assert again[0] == rates  # pure
            state.update(patch)


@pytest.mark.parametrize("name", ASYNC)
def test_server_cost_does_not_grow_with_the_state(name: str) -> None:
    """The change of the state is the same size for the first device and for the thousandth."""
    spec = learning.spec(method=name)
    rule, state, sizes = find(name).server_rule({}, spec), {}, []
    final = rounds(name, 2)[2][0]
    for n in range(1000):
        view = learning.update_view(f"d{n}", n)
        view = type(view)(**{**{f: getattr(view, f) for f in view.__slots__}, "payload": final.payload})
        _, patch = rule.rates(state, view)
        sizes.append(sum(v.size for v in patch.values()))
        state.update(patch)
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("name", SYNC)
def test_two_rounds_where_modalities_are_missing(name: str) -> None:
    """Tri-modal, one device lacks mic, one has gyro alone; whatever is said is checked against what is declared."""
    fed = learning.federation(name)
    before, have = params.copy(fed.theta), {c.device: c.modalities for c in fed.fleet}
    for number in range(2):
        cohort = learning.sync_round(fed, size=3)
        chosen = {a.device: a for a in fed.chosen}
        assert (cohort.round, len(chosen), len(fed.chosen)) == (number, 3, 3)
        for device, task in chosen.items():
            assert task.modalities
            assert set(task.modalities) <= set(have[device])
            assert task.lr_scale > 0
        assert [m.device for m in cohort.members] == sorted(chosen)
        assert all(m.num_samples == len(fed.data[m.device].y) and m.num_steps > 0 for m in cohort.members)
        assert params.finite(fed.theta)
        assert all(math.isfinite(v) for v in fed.rule.figures(fed.state).values())
    assert fed.theta.keys() == before.keys()
    assert not learning.equal(fed.theta, before)


@pytest.mark.parametrize("name", SYNC)
def test_two_rounds_are_the_same_bits_again(name: str) -> None:
    one, other, different = (learning.federation(name, seed=seed) for seed in (0, 0, 1))
    for fed in (one, other, different):
        learning.sync_round(fed, size=3)
        learning.sync_round(fed, size=3)
    assert learning.equal(one.theta, other.theta)
    assert one.state.keys() == other.state.keys()
    assert all(np.array_equal(one.state[key], other.state[key]) for key in one.state)
    assert not learning.equal(one.theta, different.theta)


@pytest.mark.parametrize("name", SYNC)
def test_rounds_with_devices_that_never_speak(name: str) -> None:
    """A device is asked and chosen time and again, and says nothing; once nobody does."""
    fed = learning.federation(name)
    for silent in (("d1",), ("d1", "d4"), tuple(fed.data), ("d1",)):
        before = params.copy(fed.theta)
        cohort = learning.sync_round(fed, size=4, silent=silent)
        assert not {m.device for m in cohort.members} & set(silent)
        assert params.finite(fed.theta)
        assert bool(cohort.members) or learning.equal(fed.theta, before)


@pytest.mark.parametrize("name", NAMES)
def test_phases_that_say_so_can_be_trained_for_several_devices_at_once(name: str) -> None:
    """Every phase of a round, with what the phases before it left behind on each device."""
    spec = learning.spec(2, method=name)
    rule, model = find(name).client_rule({}), build.build(spec, find(name).needs)
    done: tuple[Phase, ...] = ()
    view = learning.view(spec.modality_names)
    work = [_job(spec, view, seed) for seed in range(stacked_training.LEAST)]
    while not (done and done[-1].final):
        phase = rule.schedule(learning.view(spec.modality_names, finished=done))[0]
        work = [replace(job, phase=phase, view=replace(view, finished=done)) for job in work]
        alone = [local_training.train(job, rule, model) for job in work]
        if stacked_training.key(work[0], rule, model) is not None:
            for found, expected in zip(stacked_training.train(work, rule, model), alone, strict=True):
                assert isinstance(found, PhaseResult)
                _close(found, expected)
            assert stacked_training.obstacle(model, phase.train) == ""
        work = [
            replace(job, current=r.tensors, carry=r.carry, memory=r.memory) for job, r in zip(work, alone, strict=True)
        ]  # fmt: skip
        done = (*done, phase)


def _job(spec: FederationSpec, view: RoundView, seed: int) -> PhaseJob:
    fresh = Phase("none", (), (), 0)
    return learning.job(spec, fresh, view, data=learning.round_data(modalities=2, seed=seed), seed=seed)


def _close(found: PhaseResult, expected: PhaseResult) -> None:
    assert found.num_steps == expected.num_steps
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, values in expected.tensors.items():
        np.testing.assert_allclose(found.tensors[name].params, values.params, rtol=1e-4, atol=1e-5)
    for some, others in zip(
        (found.payload, found.memory, found.carry), (expected.payload, expected.memory, expected.carry), strict=True
    ):
        assert some.keys() == others.keys()
        for key in others:
            np.testing.assert_allclose(some[key], others[key], rtol=1e-3, atol=1e-4)


def test_the_plain_clients_say_so() -> None:
    fused = Phase("fused", ("acc", "gyro"), ("encoder.acc", "encoder.gyro", "fusion"), 1, final=True)
    saying = {name for name in NAMES if find(name).client_rule({}).stacks(fused)}
    assert {"abc_async", "fedasync", "fedattn", "fedavg", "fedavg_p", "fedbuff", "fednova"} <= saying
    assert not {"fedprox", "fedpac", "mba", "ogm_ge", "pmr", "qqr", "rpow_d"} & saying
    assert find("mba").client_rule({"beta": 0.0}).stacks(fused)
    assert not find("fedasync").client_rule({"rho_prox": 0.1}).stacks(fused)

"""Training that a device's budget has made gentler: frozen encoders, a forward pass in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.core import registry
from edge_sdk.learn.records import FULL, Effort, Phase, PhaseJob
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers.learning import NAMES, job, spec, train_phase, view

ENCODERS = ("encoder.acc", "encoder.gyro")
FUSED = Phase("fused", NAMES[:2], (*ENCODERS, "fusion"), 2, final=True)


def fused(method: str = "fedasync", effort: Effort = FULL) -> PhaseJob:
    return replace(job(spec(method=method), FUSED, view(NAMES[:2])), effort=effort)


def test_frozen_encoders_are_neither_moved_nor_sent() -> None:
    whole, frozen = train_phase(fused()), train_phase(fused(effort=Effort(ENCODERS)))
    assert set(whole.tensors) == {*ENCODERS, "fusion"}
    assert set(frozen.tensors) == {"fusion"}
    start = fused().start["fusion"].params
    assert np.abs(frozen.tensors["fusion"].params - start).max() > 1e-3
    assert frozen.num_steps == whole.num_steps
    assert frozen.loss < whole.loss * 3


def test_frozen_encoders_stay_as_they_were_between_phases() -> None:
    anchor = replace(FUSED, name="anchor", final=False)
    first = train_phase(replace(job(spec(method="fedasync"), anchor, view(NAMES[:2])), effort=Effort(ENCODERS)))
    assert set(first.tensors) == {"fusion"}


def test_bfloat16_learns_as_float32_does_and_sends_float32() -> None:
    exact, rough = train_phase(fused()), train_phase(fused(effort=Effort(precision="bfloat16")))
    assert rough.loss != exact.loss
    assert rough.loss == pytest.approx(exact.loss, rel=0.05)
    for name, segments in rough.tensors.items():
        assert segments.params.dtype == np.float32
        assert np.abs(segments.params - exact.tensors[name].params).max() < 0.05


def test_the_plan_as_it_is_changes_no_bit() -> None:
    one, two = train_phase(fused()), train_phase(fused(effort=Effort((), "float32")))
    assert all(np.array_equal(one.tensors[m].params, two.tensors[m].params) for m in one.tensors)


@pytest.mark.parametrize("name", registry.names("methods"))
def test_every_method_trains_gently(name: str) -> None:
    """Hooks see gradients that are absent, and numbers that were computed in bfloat16."""
    method = find(name)
    federation = spec(method=name)
    rule = method.client_rule(federation.method.config)
    phase = rule.schedule(view(NAMES[:2]))[0]
    encoders = tuple(m for m in phase.train if m.startswith("encoder."))
    frozen = encoders if len(encoders) < len(phase.train) else ()
    start = build.initial_tensors(federation, method.needs)
    gentle = replace(job(federation, phase, view(NAMES[:2]), start=start), effort=Effort(frozen, "bfloat16"))
    result = train_phase(gentle)
    assert np.isfinite(result.loss)
    assert not set(result.tensors) & set(frozen)

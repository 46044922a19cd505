"""Round sets that break careless numerics, and the rounds that have to survive them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edge_sdk.core.records import Array, RoundData
from edge_sdk.learn import params
from edge_sdk.learn.records import Phase, PhaseResult
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import learning


def one_class() -> RoundData:
    """All rows of class 1."""
    data = learning.round_data(12, 3)
    return replace(data, y=np.ones(12, np.int64))


def one_sample() -> RoundData:
    return learning.round_data(1, 3)


def zeros() -> RoundData:
    """Windows of zeros."""
    data = learning.round_data(12, 3)
    return replace(data, x={m: np.zeros_like(a) for m, a in data.x.items()})


def gaps() -> RoundData:
    """Every row lacks some modality, and mic is in none."""
    data = learning.round_data(12, 3)
    data.has["acc"][:6] = False
    data.has["gyro"][6:] = False
    data.has["mic"][:] = False
    return data


DATA = {"one class": one_class, "one sample": one_sample, "zeros": zeros, "gaps": gaps}


def play(
    name: str, data: RoundData, *, here: tuple[str, ...] = learning.NAMES, extras: Mapping[str, Array] | None = None,
    memory: Mapping[str, Array] | None = None, config: Mapping[str, Any] | None = None, phase: str = "",
    asks: bool = False, epochs: int = 2,
) -> PhaseResult:  # fmt: skip
    """Trains a round of a tri-modal federation in which only `here` arrives, all at once; or answers a query."""
    spec, method = learning.spec(3, method=name, config=config), find(name)
    options, start = spec.method.config, build.initial_tensors(spec, method.needs)
    schedule = method.query_rule(options).inquire if asks else method.client_rule(options).schedule
    said = method.answers if asks else method.uploads
    absent = tuple(m for m in learning.NAMES if m not in here)
    done: list[Phase] = []
    kept: dict[str, Any] = {"memory": memory or {}, "carry": {}, "current": {}}
    for _ in range(20):
        now = learning.view(here, planned=learning.NAMES, absent=absent, finished=tuple(done))
        now = replace(now, plan=replace(now.plan, phase=phase, epochs=epochs))
        step = schedule(now)[0]
        work = learning.job(spec, step, now, data=data, start=start, **kept)
        result = learning.train_phase(replace(work, extras=dict(extras or {})))
        if step.final:
            said.check(result.payload, spec)
            return result
        kept = {"memory": result.memory, "carry": result.carry, "current": result.tensors}
        done.append(step)
    raise AssertionError("no final phase")


def finite(result: PhaseResult) -> bool:
    """Returns True if no number that leaves the client, or stays in its memory, is NaN or infinite."""
    arrays = [*result.memory.values(), *result.payload.values()]
    return (
        params.finite(result.tensors) and bool(np.isfinite(result.loss)) and all(np.isfinite(a).all() for a in arrays)
    )


__all__ = ["DATA", "finite", "gaps", "one_class", "one_sample", "play", "zeros"]

"""No NaN ever leaves a client or a server, whatever there is to train on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.core import registry
from edge_sdk.core.errors import TrainingError
from edge_sdk.learn import params
from edge_sdk.methods.base import find
from tests.helpers import guards, learning

NAMES = registry.names("methods")
ASKED = [name for name in NAMES if find(name).answers.fields]


@pytest.mark.parametrize("what", guards.DATA)
@pytest.mark.parametrize("name", NAMES)
def test_poor_data(name: str, what: str) -> None:
    here = ("acc", "gyro") if what == "gaps" else ("acc", "gyro", "mic")
    assert guards.finite(guards.play(name, guards.DATA[what](), here=here))


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_modality(name: str) -> None:
    for here in (("gyro",), ("mic", "acc")):
        result = guards.play(name, guards.one_sample(), here=here)
        assert guards.finite(result)
        absent = {"acc", "gyro", "mic"} - set(here)
        if name == "zf":  # trains the encoder of what is absent on zeros: that is what it is
            absent = set()
        assert not {f"encoder.{m}" for m in absent} & set(result.tensors)


@pytest.mark.parametrize("name", NAMES)
def test_a_modality_that_no_row_has(name: str) -> None:
    """It arrived, yet none of the rows that are left has it."""
    if name in ("harmony", "harmony_async"):  # it trains every modality alone, and says why it cannot
        with pytest.raises(TrainingError, match="none of 12 windows has a label and one of mic"):
            guards.play(name, guards.gaps())
    else:
        assert guards.finite(guards.play(name, guards.gaps()))


@pytest.mark.parametrize("what", guards.DATA)
@pytest.mark.parametrize("name", ASKED)
def test_answers_from_poor_data(name: str, what: str) -> None:
    here = ("acc", "gyro") if what == "gaps" else ("acc", "gyro", "mic")
    for epochs in (0, 1):
        result = guards.play(name, guards.DATA[what](), here=here, asks=True, epochs=epochs)
        assert guards.finite(result)
        assert not result.tensors


@pytest.mark.parametrize("name", [name for name in NAMES if find(name).mode == "sync"])
def test_rounds_of_poor_data(name: str) -> None:
    """One device of each kind: windows of zeros, one class only, a single sample, rows that lack modalities."""
    kinds = [guards.zeros(), guards.one_class(), guards.one_sample(), guards.gaps()]
    fed = learning.federation(name)
    fed.data = {f"d{n}": kind for n, kind in enumerate(kinds)}
    fed.data["d3"] = replace(kinds[3], x={m: kinds[3].x[m] for m in ("acc", "gyro")})
    for _ in range(3):
        learning.sync_round(fed, size=2)
        assert params.finite(fed.theta)
        assert all(np.isfinite(a).all() for memory in fed.memory.values() for a in memory.values())

"""No NaN ever leaves a client, whatever it has to train on."""

from __future__ import annotations

import pytest

from edge_sdk.core import registry
from edge_sdk.core.errors import TrainingError
from edge_sdk.methods.base import find
from tests.helpers import guards

NAMES = [name for name in registry.names("methods") if find(name).mode == "async"]


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
        assert not {f"encoder.{m}" for m in absent} & set(result.tensors)


@pytest.mark.parametrize("name", NAMES)
def test_a_modality_that_no_row_has(name: str) -> None:
    """It arrived, yet none of the rows that are left has it."""
    if name in ("harmony", "harmony_async"):  # it trains every modality alone, and says why it cannot
        with pytest.raises(TrainingError, match="none of 12 windows has a label and one of mic"):
            guards.play(name, guards.gaps())
    else:
        assert guards.finite(guards.play(name, guards.gaps()))

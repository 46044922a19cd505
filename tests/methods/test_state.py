"""A server rule's state comes back from a journal bit for bit, and goes on as if nothing had happened."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.codecs.wire import pack_array, unpack_array
from edge_sdk.core import registry
from edge_sdk.learn import params
from edge_sdk.methods.base import find
from tests.helpers import guards, learning

ASYNC, SYNC = ([name for name in registry.names("methods") if find(name).mode == mode] for mode in ("async", "sync"))


@pytest.mark.parametrize("name", ASYNC)
def test_state_survives_the_wire(name: str) -> None:
    spec = learning.spec(3, method=name)
    rule = find(name).server_rule({}, spec)
    reports = [guards.play(name, learning.round_data(20, 3, seed=n)).payload for n in range(3)]
    live, stored = dict(rule.init()), dict(rule.init())
    for version in range(9):
        made = learning.update_view(f"d{version % 3}", version, staleness=version % 4, modalities=learning.NAMES)
        view = replace(made, payload=reports[version % 3])
        rates, patch = rule.rates(live, view)
        again, same = rule.rates(stored, view)
        assert again == rates
        assert patch.keys() == same.keys()
        live.update(patch)
        stored.update({key: unpack_array(pack_array(np.asarray(value))) for key, value in same.items()})
        assert live.keys() == stored.keys()
        assert all(np.array_equal(live[key], stored[key]) for key in live)
        assert rule.figures(live) == rule.figures(stored)
        down, down_stored = rule.extras(live, "d0"), rule.extras(stored, "d0")
        assert all(np.array_equal(down[key], down_stored[key]) and np.isfinite(down[key]).all() for key in down)
        assert rule.stage(live, "d0") == rule.stage(stored, "d0")


@pytest.mark.parametrize("name", SYNC)
def test_a_synchronous_rule_goes_on_from_its_stored_state(name: str) -> None:
    """Its state was read back from a journal's bytes at every change; what goes down with tasks is the same again."""
    live, again = learning.federation(name), learning.federation(name)
    learning.sync_round(live, size=3)
    learning.sync_round(live, size=3)
    again.theta, again.round = params.copy(live.theta), live.round
    again.memory = {device: dict(memory) for device, memory in live.memory.items()}
    again.state = {key: unpack_array(pack_array(value)) for key, value in reversed(live.state.items())}
    learning.sync_round(live, size=3)
    learning.sync_round(again, size=3)
    assert again.chosen == live.chosen
    assert learning.equal(again.theta, live.theta)
    for task in live.chosen:
        down, down_again = live.rule.extras(live.state, task), again.rule.extras(again.state, task)
        assert down.keys() == down_again.keys()
        assert all(np.array_equal(down[key], down_again[key]) and np.isfinite(down[key]).all() for key in down)

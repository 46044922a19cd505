"""Every asynchronous method in a whole simulated federation: what its server says reaches the devices, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator.evaluate import Evaluation
from coordinator.preparation import Split, spec_of, split
from coordinator.simulation.report import Report
from coordinator.simulation.simulate import Simulation, World
from edge_sdk import datasets
from edge_sdk.core import registry
from edge_sdk.core.records import ModelTensors
from edge_sdk.core.spec import MethodSpec, TrainingSpec
from edge_sdk.methods.base import find
from edge_sdk.models import build

NAMES = [name for name in registry.names("methods") if find(name).mode == "async"]


@pytest.fixture(scope="module")
def cut() -> Split:
    data = datasets.select("uci_har")
    return split(data.take(np.arange(0, len(data.y), len(data.y) // 160)), seed=1)


class Kept(Simulation):
    """Keeps the model that came of it."""

    def _evaluate(self, tensors: ModelTensors) -> Evaluation:
        self.tensors = tensors
        return super()._evaluate(tensors)


def play(cut: Split, name: str, updates: int = 12, **config: Any) -> tuple[Kept, Report]:
    spec = spec_of(cut.train, name="small", method=name, training=TrainingSpec(lr=0.05, epochs=1, batch_size=32))
    spec = spec.model_copy(update={"method": MethodSpec(name=name, config=config)})
    run = Kept(spec, cut, World(devices=4, updates=updates, seed=1, fraction=0.5, evaluate_every=6))
    return run, run.run()


@pytest.mark.parametrize("name", NAMES)
def test_twelve_updates(cut: Split, name: str) -> None:
    _, report = play(cut, name)
    assert (report.updates, report.rejected) == (12, 0)
    assert np.isfinite(report.acc)


def test_a_published_name_gives_the_digest_of_what_it_stands_for(cut: Split) -> None:
    for alias, name in (("fed_ogm_ge_async", "ogm_ge+fedasync"), ("fed_concat_async", "fedasync")):
        assert play(cut, alias)[1].digest == play(cut, name)[1].digest


def test_prototypes_reach_the_devices(cut: Split) -> None:
    """Without them PMR is FedAsync; with them the model goes another way."""
    plain, stimulated, off = (
        play(cut, name, **config)[1]
        for name, config in (("fedasync", {}), ("pmr", {"strength": 3.0}), ("pmr", {"strength": 0.0}))
    )
    assert off.digest == plain.digest
    assert stimulated.digest != plain.digest
    assert off.bytes_down > plain.bytes_down  # the tables
    assert off.bytes_up > plain.bytes_up


def test_harmony_trains_encoders_first_and_the_fusion_after_the_switch(cut: Split) -> None:
    first, second = (play(cut, "harmony", stage1_updates=n)[0] for n in (12, 6))
    start = build.initial_tensors(first.spec, find("harmony").needs, 1)["fusion"].params
    moved = [float(np.abs(run.tensors["fusion"].params - start).max()) for run in (first, second)]
    assert moved[0] == 0.0
    assert moved[1] > 0.0


def test_target_sets_reach_the_devices(cut: Split) -> None:
    multi, single = (play(cut, "modality_mirror", multi_share=share)[1] for share in (1.0, 0.0))
    assert multi.curve[-1].acc_by_modality == play(cut, "fedasync")[1].curve[-1].acc_by_modality
    assert single.bytes_up < 0.7 * multi.bytes_up  # one encoder of two, no fusion
    assert single.virtual_seconds < multi.virtual_seconds  # nobody waits for a second modality

"""Losses of an online run round by round, and the best fixed model in hindsight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from coordinator.preparation import Split
from coordinator.simulation.compare import plots, tables
from coordinator.simulation.compare.study import Run, Study, Variant
from coordinator.simulation.online import OnlineProfile, stream, window
from coordinator.simulation.profiles import INSTANT
from coordinator.simulation.regret import running
from coordinator.simulation.simulate import Simulation, World
from edge_sdk.core.spec import TrainingSpec
from edge_sdk.learn import params
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from tests.helpers.field import dataset, spec_of

MOVING = OnlineProfile(initial=12, buffer=8, per_round=3)


def test_losses_and_the_best_fixed_model_by_hand() -> None:
    spec, clients = spec_of(), [dataset(20, seed=1), dataset(15, seed=2)]
    clients[0].has["gyro"][:4] = False
    versions = {t: build.initial_tensors(spec, seed=t) for t in range(3)}
    found = running(spec, Needs(), versions, clients, MOVING, seed=7)

    def loss(version: int, t: int) -> float:
        model = build.build(spec)
        params.load(model.named(), versions[version])
        means = []
        for k, data in enumerate(clients):
            rows = stream(data, seed=7, device=k).take(window(MOVING, len(data.y), t))
            x = {m: torch.from_numpy(rows.x[m]) for m in spec.modality_names}
            mask = torch.from_numpy(np.stack([rows.has[m] for m in spec.modality_names], 1).astype(np.float32))
            with torch.no_grad():
                chance = torch.log_softmax(model.eval()(x, mask).double(), 1)
            means.append(-float(chance[torch.arange(8), torch.from_numpy(rows.y)].mean()))
        return float(np.mean(means))

    assert list(found.loss) == pytest.approx([loss(t, t) for t in range(3)], abs=1e-6)
    totals = [sum(loss(v, t) for t in range(3)) for v in range(3)]
    assert found.best_version == int(np.argmin(totals))
    assert list(found.best_loss) == pytest.approx([loss(found.best_version, t) for t in range(3)], abs=1e-6)


@pytest.mark.parametrize(("method", "rounds"), [("fedavg", 4), ("fedasync", 4)])
def test_a_run_of_an_online_world_tells_its_losses(method: str, rounds: int) -> None:
    rows = dataset(90)
    spec = spec_of().model_copy(update={"training": TrainingSpec(lr=0.1, epochs=1, batch_size=10)})
    spec = spec.model_copy(update={"method": spec.method.model_copy(update={"name": method, "config": {}})})
    world = World(
        devices=3, updates=12, seed=1, partition="iid", fraction=1.0, profile=INSTANT, online=MOVING,
        evaluate_every=6,
    )  # fmt: skip
    report = Simulation(spec, Split(rows, dataset(30, seed=5)), world).run()
    assert report.running is not None
    assert len(report.running.loss) == len(report.running.best_loss) == rounds
    assert sum(report.running.best_loss) <= sum(report.running.loss) + 1.0
    assert "running" in report.as_json()
    still = Simulation(spec, Split(rows, dataset(30, seed=5)), replace(world, online=None)).run()
    assert "running" not in still.as_json()


def test_all_curves_are_measured_from_one_model() -> None:
    study = Study(title="t", variants=(Variant(label="A"), Variant(label="B")))
    told = {"A": ([3.0, 2.0], [2.0, 2.0]), "B": ([4.0, 1.0], [1.0, 1.5])}
    pairs = [
        (
            Run(label, 1, {}),
            {
                "method": "m", "acc": 0.5, "acc_median": 0.5, "unimodal": {"zero_feature": {"a": 0.1}},
                "bytes_up": 1, "bytes_down": 1, "mean_staleness": 0.0, "virtual_seconds": 0.0, "wall_seconds": 1.0,
                "curve": [{"virtual_s": 0.0, "acc": 0.5, "version": 1}], "trace": [],
                "running": {"loss": loss, "best_version": 0, "best_loss": best},
            },
        )
        for label, (loss, best) in told.items()
    ]  # fmt: skip
    assert {k: v.tolist() for k, v in plots.regret(study, pairs).items()} == {"A": [2.0, 2.5], "B": [3.0, 2.5]}
    assert "regret.png" in plots.all_of(study, pairs, tables.rows(study, pairs))

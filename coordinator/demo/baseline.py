"""What the demo compares with: each modality trained alone with the same budget."""

from __future__ import annotations

from coordinator.preparation import Split, only, spec_of
from coordinator.simulation.profiles import INSTANT
from coordinator.simulation.simulate import Simulation, World
from edge_sdk.core.spec import FederationSpec

ALONE = "fedasync"


def alone(spec: FederationSpec, cut: Split, *, devices: int, updates: int, seed: int) -> dict[str, float]:
    """Returns modality → median accuracy of the last versions of a federation that has only this modality.

    Same people per device, same number of updates, epochs, batch size and learning rate, no waiting.
    """
    return {m: _one(spec, cut, m, devices=devices, updates=updates, seed=seed) for m in spec.modality_names}


def _one(spec: FederationSpec, cut: Split, modality: str, *, devices: int, updates: int, seed: int) -> float:
    mine = Split(only(cut.train, (modality,)), only(cut.test, (modality,)))
    single = spec_of(
        mine.train, name=f"{spec.name}-{modality}", method=ALONE, training=spec.training, model=spec.model,
        window=spec.window,
    )  # fmt: skip
    world = World(
        devices=devices, updates=updates, seed=seed, fraction=1.0, profile=INSTANT,
        evaluate_every=1, workers=2,
    )  # fmt: skip
    return Simulation(single, mine, world).run().acc_median


__all__ = ["ALONE", "alone"]

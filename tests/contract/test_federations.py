"""Every registered method in a whole federation: two rounds of a world of three modalities, one missing somewhere.

Once in simulation, twice with the same seed, and once over a real broker: the same coordinator and devices, paho and
mosquitto in between.
"""

from __future__ import annotations

import asyncio
from functools import partial

import numpy as np
import pytest

from coordinator.preparation import Split, spec_of
from coordinator.simulation.profiles import INSTANT
from coordinator.simulation.report import Report
from coordinator.simulation.simulate import COORDINATOR, Simulation, World
from edge_sdk.core import registry
from edge_sdk.core.clock import WallClock
from edge_sdk.core.compute import InlineCompute
from edge_sdk.core.interfaces import Transport
from edge_sdk.core.records import Dataset
from edge_sdk.core.spec import TrainingSpec
from edge_sdk.methods.base import find
from edge_sdk.transport.mqtt import MqttTransport
from tests.helpers import learning
from tests.helpers.brokers import Mosquitto, mosquitto  # noqa: F401  fixture

NAMES = registry.names("methods")
DEVICES, ROWS = 3, 24
SPEED = 50.0  # modelled seconds per second over the real broker


def world_of_three() -> Split:
    """Returns rows of three people; one of them has no microphone."""
    rows = learning.round_data(DEVICES * ROWS, 3, seed=5)
    subject = np.arange(DEVICES * ROWS, dtype=np.int64) % DEVICES
    has = {**rows.has, "mic": subject != 0}
    x = {**rows.x, "mic": rows.x["mic"] * has["mic"][:, None]}
    held_out = learning.round_data(30, 3, seed=6)
    classes = ("a", "b", "c")
    return Split(
        Dataset("three", x, rows.y, classes, has, subject=subject),
        Dataset("three", held_out.x, held_out.y, classes, held_out.has),
    )


def simulation(name: str) -> Simulation:
    data = world_of_three()
    spec = spec_of(data.train, name="three", method=name, training=TrainingSpec(lr=0.05, epochs=1, batch_size=8))
    sync = find(name).mode == "sync"
    # Two rounds of a synchronous method; as many updates of an asynchronous one.
    world = World(
        devices=DEVICES, updates=2 * DEVICES if not sync else DEVICES + 1, seed=1, partition="subject", fraction=1.0,
        profile=INSTANT, evaluate_every=2,
    )  # fmt: skip
    return Simulation(spec, data, world)


def check(name: str, report: Report) -> None:
    assert report.rejected == 0
    assert np.isfinite(report.acc)
    assert set(report.acc_by_modality) == set(learning.NAMES)
    if find(name).mode == "sync":
        assert report.rounds is not None
        assert report.rounds >= 2
    else:
        assert report.updates == 2 * DEVICES


@pytest.mark.parametrize("name", NAMES)
def test_in_simulation(name: str) -> None:
    report = simulation(name).run()
    check(name, report)
    assert simulation(name).run().digest == report.digest


@pytest.mark.parametrize("name", NAMES)
def test_over_a_real_broker(name: str, mosquitto: Mosquitto) -> None:  # noqa: F811
    clock = WallClock(SPEED)

    def connect(client: str) -> Transport:
        return MqttTransport(mosquitto.config(COORDINATOR), client, clock=WallClock(), compute=InlineCompute())

    check(name, asyncio.run(partial(simulation(name).play, clock, connect)()))

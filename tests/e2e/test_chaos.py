"""Everything dies once: real processes, a real broker, real data, and kills at random moments.

What must hold afterwards is what the protocol promises: no acknowledged update is missing from the journal, none is in
it twice, versions have no holes, and replaying the journal gives the model that was served.
"""

from __future__ import annotations

import argparse
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coordinator.demo import run as demo
from coordinator.demo import settings
from coordinator.demo.processes import Member, Processes
from coordinator.store import maintenance, rows
from edge_sdk.core.events import JsonLinesReader
from tests.helpers.brokers import Mosquitto, mosquitto  # noqa: F401  fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

UPDATES = 16
USERS = {"coordinator": "coordinator", "device-1": "d1", "device-2": "d2"}  # member → user of the test broker


class Playground:
    """A demo of two devices whose parts can be killed and started again."""

    def __init__(self, folder: Path, broker: Mosquitto, processes: Processes) -> None:
        parser = argparse.ArgumentParser()
        demo.add_arguments(parser)
        arguments = ["--devices", "2", "--out", str(folder), "--updates", str(UPDATES), "--seconds", "300"]
        self.demo = demo.prepare(parser.parse_args([*arguments, "--port", "0", "--delay", "20"]))
        self.folder = self.demo.folder
        self.processes = processes
        self.configs = self._configure(broker)
        self.running: dict[str, Member] = {}

    def _configure(self, broker: Mosquitto) -> dict[str, Path]:
        secrets = self.folder / "secrets"
        secrets.mkdir()
        for member, user in USERS.items():
            (secrets / member).write_text(broker.passwords[user])
        keys = settings.Credentials(broker.port, secrets)
        args = self.demo.args
        files = {
            "coordinator": settings.coordinator_toml(
                self.demo.spec, self.folder, keys, dataset=args.dataset, data=None, updates=UPDATES, seconds=300.0,
                seed=args.seed,
            ),
            **{p.name: settings.device_toml(self.demo.spec, p, self.folder, keys, seed=1) for p in self.demo.plans},
        }  # fmt: skip
        for member, path in files.items():
            text = path.read_text().replace(f'username = "{member}"', f'username = "{USERS[member]}"')
            path.write_text(text.replace("checkpoint_every = 25", 'checkpoint_every = 5\nkeep = "all"'))
        (self.folder / "events").mkdir()
        return files

    def start(self, name: str) -> None:
        module, verb = ("coordinator.cli", "serve") if name == "coordinator" else ("edge_sdk.cli", "run")
        events = self.folder / "events" / f"{name}.jsonl"
        self.running[name] = self.processes.start(
            name, module, [verb, str(self.configs[name]), "--events", str(events)]
        )

    def kill(self, name: str) -> None:
        """Kills without warning, and starts again."""
        member = self.running[name]
        member.process.send_signal(signal.SIGKILL)
        member.process.wait()
        self.processes.members.remove(member)
        self.start(name)

    def events(self, name: str, kind: str) -> list[dict[str, object]]:
        return [e for e in JsonLinesReader(self.folder / "events" / f"{name}.jsonl").new() if e["event"] == kind]

    def version(self) -> int:
        return max((int(str(e["version"])) for e in self.events("coordinator", "UpdateApplied")), default=0)


def wait(condition: Callable[[], bool], seconds: float, what: str, processes: Processes) -> None:
    until = time.monotonic() + seconds
    while not condition():
        processes.check()
        assert time.monotonic() < until, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.1)


def test_kills_and_restarts_lose_nothing_and_repeat_nothing(
    tmp_path: Path,
    mosquitto: Mosquitto,  # noqa: F811  the fixture
) -> None:
    dice = random.Random(7)
    with Processes(tmp_path / "logs") as processes:
        world = Playground(tmp_path / "world", mosquitto, processes)
        for name in USERS:
            world.start(name)
        victims = ["device-1", "coordinator", "broker", "device-2", "coordinator", "broker"]
        for number, victim in enumerate(victims):
            wait(lambda n=number: world.version() >= 2 * n + 2, 100, f"version {2 * number + 2}", processes)
            time.sleep(dice.uniform(0.0, 0.6))
            if victim == "broker":
                mosquitto.restart()
            else:
                world.kill(victim)
        coordinator = world.running["coordinator"]
        wait(coordinator.ended, 150, "the last update", processes)
    check_journal(world)


def check_journal(world: Playground) -> None:
    store = world.folder / "store"
    with maintenance.reading(store) as db:
        entries = list(rows.read_entries(db, 0))
    keys = [entry.key for entry in entries]
    assert [entry.version for entry in entries] == list(range(1, UPDATES + 1))
    assert len(set(keys)) == len(keys)
    acknowledged = {
        (str(e["device"]), int(e["key"]["incarnation"]), int(e["key"]["sequence"]))  # type: ignore[index]
        for name in ("device-1", "device-2")
        for e in world.events(name, "UpdateAccepted")
    }
    assert len(acknowledged) > UPDATES / 2
    assert acknowledged <= {(k.device, k.incarnation, k.sequence) for k in keys}
    assert {k.device for k in keys} == {"device-1", "device-2"}
    assert all(np.isfinite(rate) for entry in entries for rate in entry.rates.values())
    recovered = world.events("coordinator", "Recovered")
    assert [e["same_bits"] for e in recovered] == [True, True], recovered

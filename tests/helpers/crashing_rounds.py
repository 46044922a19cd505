"""A coordinator process that kills itself in a round: `python -m tests.helpers.crashing_rounds FOLDER ROUNDS AT WHERE`.

Three scripted devices are asked for a loss before every round (`pow_d`), and the two with the largest train. Each has
an outbox in a file. While version AT is made, the process gets SIGKILL at the moment that WHERE says; AT 0 is never.
Stages that begin and acknowledgements are printed, and at the end what the model and the rule's state have become.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from coordinator import events
from coordinator.config import PublishConfig, ScheduleConfig, StopConfig, StoreConfig
from coordinator.store import Checkpoint, OpenRound, OpenTask, Received, RoundEntry, SqliteStore, Stored
from coordinator.store import rounds as round_rows
from edge_sdk.codecs import wire
from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.messages import QUERY, Fetch, Task
from edge_sdk.core.records import ModelTensors, Update
from tests.helpers import learning
from tests.helpers.crashing import Outbox, deliver, die
from tests.helpers.field import Field, Peer, config_of, federation

DEVICES = ("d1", "d2", "d3")
CHECKPOINT_EVERY = 2


class Killing(SqliteStore):
    """A store in whose hands the process dies while a version is made."""

    def __init__(self, folder: Path, at: int, where: str) -> None:
        super().__init__(folder, keep="all")
        self._at = at
        self._where = where

    def _is(self, where: str, version: int) -> bool:
        return (where, version) == (self._where, self._at)

    def open_tasks(self, tasks: tuple[OpenTask, ...], stage: OpenRound | None = None) -> None:
        step = "selection" if stage is not None and stage.stage == "train" else "query"
        version = 0 if stage is None else stage.version
        if stage is not None and self._is(f"mid-{step}", version):
            with self._transaction() as db:
                round_rows.write_round(db, stage)
                die()
        super().open_tasks(tasks, stage)
        if self._is(f"after-{step}", version):
            die()

    def admit(self, received: Received) -> None:
        step = "update" if received.kind == "train" else "answer"
        if self._is(f"mid-{step}", received.version):
            with self._transaction() as db:
                round_rows.add_received(db, received)
                die()
        super().admit(received)
        if self._is(f"after-{step}", received.version):
            die()

    def commit_round(self, entry: RoundEntry) -> None:
        if self._is("mid-commit", entry.version):
            with self._transaction() as db:
                round_rows.add_round(db, entry)
                die()
        super().commit_round(entry)
        if self._is("after-commit", entry.version):
            die()

    def save_version(self, stored: Stored, tensors: ModelTensors, data: bytes) -> None:
        if self._is("before-publish", stored.id.number):
            die()
        super().save_version(stored, tensors, data)
        if self._is("after-publish", stored.id.number):
            die()

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        if self._is("mid-checkpoint", checkpoint.number):
            self._write_checkpoint(checkpoint)
            die()
        super().checkpoint(checkpoint)


def made(peer: Peer, task: Task) -> Update:
    """Returns the update or the answer of a device; the same whenever it is asked for the same task."""
    peer.sequence = task.number
    if task.kind != QUERY:
        return peer.update(task)
    loss = np.random.default_rng([task.number, *peer.device.encode()]).uniform(0.1, 3.0)
    return peer.update(task, tensors={}, payload={"loss": np.asarray(loss, np.float32)})


async def take_part(world: Field, outbox: Outbox, device: str, rounds: int) -> None:
    peer = await world.peer(device)
    while True:
        data = outbox.get()
        if data is not None:
            await deliver(peer, outbox, data)
        if world.center.ledger.number >= rounds:
            return
        await peer.ask(Fetch("task"))
        outbox.put(peer.encode(made(peer, await peer.tasks.get())))


def say(event: Any) -> None:
    if isinstance(event, events.RoundStarted):
        print(f"started {event.round} {event.stage} {','.join(event.devices)}", flush=True)


def main(folder: Path, rounds: int, at: int, where: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    spec = learning.spec(2, method="pow_d", config={"d": len(DEVICES)})
    config = config_of(
        store=StoreConfig(checkpoint_every=CHECKPOINT_EVERY), stop=StopConfig(),
        schedule=ScheduleConfig(policy="sampled", fraction=0.67, min_devices=3, round_deadline_s=100.0),
        publish=PublishConfig(min_interval_s=0.0, min_hold_s=0.0, every_updates=1, versions=3),
    )  # fmt: skip

    async def play(clock: VirtualClock) -> str:
        store = Killing(folder / "store", at, where)
        async with federation(clock, config=config, spec=spec, store=store, observer=say) as world:
            for device in DEVICES:
                part = take_part(world, Outbox(folder / device), device, rounds)
                world.group.start(part, name=f"part of {device}")
            await world.published(rounds)
            state = hashlib.sha256()
            for name, value in sorted(world.center.ledger.state.items()):
                state.update(name.encode() + value.tobytes())
            return f"{wire.params_digest(world.center.tensors)} {state.hexdigest()}"

    print(f"digest {run_virtual(play)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

"""A coordinator process that kills itself: `python -m tests.helpers.crashing FOLDER UPDATES KILL_AT WHERE`.

One scripted device contributes until the store has UPDATES of them. What it is about to send is written to a file
first, as an outbox would, and every acknowledgement is printed. At commit number KILL_AT the process gets SIGKILL,
WHERE says at which moment; KILL_AT 0 is never. At the end the digest of the model is printed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from coordinator.config import PublishConfig, StopConfig, StoreConfig
from coordinator.store import Checkpoint, Entry, SqliteStore, Stored, rows
from edge_sdk.codecs import wire
from edge_sdk.codecs.chain import peek_update
from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.messages import Fetch
from edge_sdk.core.records import ModelTensors
from tests.helpers.field import Field, Peer, config_of, federation

CHECKPOINT_EVERY = 4


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killing(SqliteStore):
    """A store in whose hands the process dies."""

    def __init__(self, folder: Path, at: int, where: str) -> None:
        super().__init__(folder, keep="all")
        self._at = at
        self._where = where
        self._now = False

    def commit(self, entry: Entry) -> None:
        self._now = entry.version == self._at
        if self._now and self._where == "mid-commit":
            with self._transaction() as db:
                rows.add_entry(db, entry)
                die()
        super().commit(entry)
        if self._now and self._where == "after-commit":
            die()

    def save_version(self, stored: Stored, tensors: ModelTensors, data: bytes) -> None:
        if self._now and self._where == "before-publish":
            die()
        super().save_version(stored, tensors, data)
        if self._now and self._where == "after-publish":
            die()

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        if self._now and self._where == "mid-checkpoint":
            self._write_checkpoint(checkpoint)
            die()
        super().checkpoint(checkpoint)


class Outbox:
    """The update that is owed, in a file that is there whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def put(self, data: bytes) -> None:
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(data)
        temporary.replace(self._path)

    def get(self) -> bytes | None:
        return self._path.read_bytes() if self._path.exists() else None

    def clear(self) -> None:
        self._path.unlink()


async def deliver(peer: Peer, outbox: Outbox, data: bytes) -> None:
    """Sends what the outbox holds, asking first what became of it, and empties it on the reply."""
    key = peek_update(data).key
    await peer.ask(Fetch("update", key=key, digest=wire.object_digest(data)))
    reply = await peer.reply()
    if reply.kind == "unknown":
        await peer.send(data, key)
        reply = await peer.reply()
    assert reply.kind == "accepted", reply
    assert reply.version is not None
    outbox.clear()
    print(f"accepted {key.sequence} {reply.version.number}", flush=True)


async def contribute(world: Field, outbox: Outbox, updates: int) -> None:
    peer = await world.peer()
    while True:
        data = outbox.get()
        if data is not None:
            await deliver(peer, outbox, data)
        if world.center.ledger.updates >= updates:
            return
        await world.published(world.center.ledger.number)
        task = await peer.task()
        peer.sequence = task.number
        outbox.put(peer.encode(peer.update(task)))


def main(folder: Path, updates: int, at: int, where: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    async def play(clock: VirtualClock) -> str:
        config = config_of(
            store=StoreConfig(checkpoint_every=CHECKPOINT_EVERY), stop=StopConfig(),
            publish=PublishConfig(min_interval_s=0.0, min_hold_s=0.0, every_updates=1, versions=3),
        )  # fmt: skip
        async with federation(clock, config=config, store=Killing(folder / "store", at, where)) as world:
            await contribute(world, Outbox(folder / "outbox"), updates)
            return wire.params_digest(world.center.tensors)

    print(f"digest {run_virtual(play)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

"""An update of 51 kB from a device to its reply: over mosquitto on loopback, verified, mixed, committed and answered.

Coordinator and device share one process and one loop, as in `bench_transport`; the store is on this machine's disk.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.config import AdmissionConfig, CoordinatorConfig, ScheduleConfig
from coordinator.service import Coordinator
from coordinator.store import About, Checkpoint, Entry, SqliteStore
from edge_sdk.core.clock import WallClock
from edge_sdk.core.compute import FieldCompute
from edge_sdk.core.records import UpdateKey, VersionId
from edge_sdk.core.spec import FederationSpec, ModalitySpec, ModelSpec
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers.brokers import MOSQUITTO, Mosquitto, mqtt
from tests.helpers.field import Peer, spec_of

UPDATES = 200
WARM = 20
BYTES = 51_000
LIMIT_MS = 10.0
Row = dict[str, Any]


def federation() -> FederationSpec:
    """Returns a federation whose int8 updates take about 51 kB."""
    modalities = tuple(
        ModalitySpec(name=m, shape=(192,), encoder_config={"hidden": 112}) for m in spec_of().modality_names
    )
    return spec_of().model_copy(update={"modalities": modalities, "model": ModelSpec(feature_dim=64)})


async def replies(broker: Mosquitto, folder: Path) -> tuple[list[float], int]:
    """Returns the time from the first byte of every update to its reply, ms, and the size of an update."""
    clock, compute, spec = WallClock(), FieldCompute(), federation()
    config = CoordinatorConfig(
        admission=AdmissionConfig(enrolment="open"), schedule=ScheduleConfig(task_deadline_s=600.0)
    )
    center = Coordinator(
        config, spec, transport=mqtt(broker, "coordinator"), clock=clock, compute=compute, store=SqliteStore(folder)
    )
    times, size = [], 0
    async with clock.group() as group:
        group.start(center.run(), name="coordinator")
        peer = Peer(mqtt(broker, "d1"), spec, "d1", clock)
        group.start(peer.run(), name="peer")
        await peer.connect()
        while peer.head is None:  # the coordinator listens
            await clock.sleep(0.05)
        await peer.say()
        for _ in range(WARM + UPDATES):
            update = peer.update(await peer.task())
            data = peer.encode(update)
            size = len(data)
            start = time.perf_counter()
            await peer.send(data, update.key)
            reply = await peer.reply()
            times.append((time.perf_counter() - start) * 1e3)
            assert reply.kind == "accepted", reply
        group.cancel()
    await compute.aclose()
    return times[WARM:], size


def commits(folder: Path) -> list[float]:
    """Returns the time of every commit of 51 kB, ms."""
    with closing(SqliteStore(folder)) as store:
        store.open()
        tensors = build.initial_tensors(spec_of(), find("fedasync").needs)
        store.create(About("bench", "{}", "", "", ""), Checkpoint(0, 0, tensors, {}))
        entry = Entry(
            version=0, key=UpdateKey("d1", 1, 0), task="t", base=VersionId("0" * 32, 0, "0" * 32), digest="0" * 32,
            chain="delta|int8|zstd", kernel="k", op="mix", rates={"fusion": 0.5}, patch={"sum/acc": np.zeros(3)},
            staleness=0, num_samples=1, num_steps=1, modalities=("acc",), norm=1.0, utc_ns=1, body=b"",
        )  # fmt: skip
        times = []
        for n in range(1, UPDATES + 1):
            made = replace(entry, version=n, key=UpdateKey("d1", 1, n), body=os.urandom(BYTES))
            start = time.perf_counter()
            store.commit(made)
            times.append((time.perf_counter() - start) * 1e3)
    return times


def syncs(folder: Path) -> list[float]:
    """Returns the time of appending 51 kB to a file and syncing it, ms: what a commit cannot be faster than."""
    times = []
    data = os.urandom(BYTES)
    with (folder / "plain").open("ab") as file:
        for _ in range(UPDATES):
            start = time.perf_counter()
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - start) * 1e3)
    return times


def run() -> list[Row]:
    """Measures; without mosquitto only the commits."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bare, commit = statistics.median(syncs(folder)), statistics.median(commits(folder / "commits"))
        rows: list[Row] = [
            {
                "name": "store: commit of a 51 kB update, median", "value": commit, "unit": "ms",
                "reference": f"append and fdatasync of the same bytes: {bare:.2f} ms", "ratio": commit / bare,
            }
        ]  # fmt: skip
        if MOSQUITTO is None:
            return rows
        (folder / "mosquitto").mkdir()
        broker = Mosquitto(folder / "mosquitto")
        broker.start()
        try:
            times, size = asyncio.run(replies(broker, folder / "store"))
        finally:
            broker.stop()
        for what, value in (("median", statistics.median(times)), ("p99", float(np.quantile(times, 0.99)))):
            rows.append(
                {
                    "name": f"update of {size / 1e3:.0f} kB over mosquitto → reply, {what}", "value": value,
                    "unit": "ms", "reference": f"limit {LIMIT_MS:g} ms for the median", "ratio": value / LIMIT_MS,
                }
            )  # fmt: skip
    return rows


__all__ = ["run"]

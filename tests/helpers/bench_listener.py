"""The process that listens to a bench: every sensor of a configuration through its real driver and pump.

    python -m tests.helpers.bench_listener FILE

Commands come on stdin, one JSON object per line; answers and changes of state go to stdout the same way:

    {"do": "mark"}                    forgets what came so far                 {"marked": true}
    {"do": "count"}                   samples of each sensor since the mark    {"count": {"imu": 512, ...}}
    {"do": "save", "folder": PATH}    writes PATH/<sensor>.npz                 {"saved": PATH, "rss_mb": 81, "cpu_s": 3}
                                      a change of state                        {"sensor": "imu", "state": "failed", ...}
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.core.clock import NS, WallClock, monotonic_ns
from edge_sdk.core.config import DeviceConfig, load_toml
from edge_sdk.core.records import Array, Chunk
from edge_sdk.streams.pump import Pump
from edge_sdk.streams.sources import sources

PAGE_MB = 4096 / 1e6
PICTURE_STEP = 2  # every so many pixels of a frame are kept for the report


class Kept:
    """What one sensor delivered since the mark."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []  # of each chunk: t_ns, n, period_ns, t_err_ns, gap, flags, arrived ns
        self.times: list[Array] = []
        self.levels: list[Array] = []
        self.picture: Array = np.zeros((0, 0, 3), np.uint8)
        self.samples = 0

    def take(self, chunk: Chunk) -> None:
        n = len(chunk.data)
        self.samples += n
        self.rows.append(
            (chunk.t_ns, n, chunk.period_ns, chunk.t_err_ns, chunk.gap_before, chunk.flags, monotonic_ns())
        )
        self.times.append(np.arange(n) * chunk.period_ns + chunk.t_ns if chunk.times_ns is None else chunk.times_ns)
        if chunk.data.ndim < 4:
            self.levels.append(chunk.data.reshape(n, -1).astype(np.float32))
            return
        self.levels.append(chunk.data.mean(axis=(1, 2, 3), dtype=np.float32)[:, None])  # brightness of each frame
        self.picture = np.moveaxis(chunk.data[-1, :3, ::PICTURE_STEP, ::PICTURE_STEP], 0, 2)

    def save(self, path: Path) -> None:
        np.savez(
            path,
            rows=np.array(self.rows, np.int64).reshape(-1, 7),
            times=np.concatenate([np.zeros(0, np.int64), *self.times]),
            levels=np.concatenate(self.levels) if self.levels else np.zeros((0, 1), np.float32),
            picture=self.picture,
        )


class Listener:
    """The sensors of a configuration.

    Args:
        config: names them.
    """

    def __init__(self, config: DeviceConfig) -> None:
        self.kept = {name: Kept() for name in config.sensors}
        clock = WallClock()
        self.pumps = {
            source.driver.stream: Pump(
                source.driver, source.config, clock, source.sink(self._take),
                changed=partial(self._changed, source.driver.stream),
            )
            for source in sources(config.sensors)
        }  # fmt: skip

    async def run(self) -> None:
        """Listens until stdin ends."""
        for pump in self.pumps.values():
            await pump.start()
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            asked = json.loads(line)
            getattr(self, f"_{asked.pop('do')}")(**asked)
        await asyncio.gather(*(pump.aclose() for pump in self.pumps.values()))

    def _mark(self) -> None:
        self.kept = {name: Kept() for name in self.kept}
        say(marked=True)

    def _count(self) -> None:
        say(count={name: kept.samples for name, kept in self.kept.items()})

    def _save(self, folder: str) -> None:
        for name, kept in self.kept.items():
            kept.save(Path(folder) / f"{name}.npz")
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        say(saved=folder, rss_mb=pages * PAGE_MB, cpu_s=time.process_time())

    def _take(self, chunk: Chunk) -> None:
        self.kept[chunk.stream].take(chunk)

    def _changed(self, name: str) -> None:
        pump = self.pumps[name]
        say(
            sensor=name, state=pump.state.value, error=pump.error, reconnects=pump.counters.reconnects,
            at_s=monotonic_ns() / NS,
        )  # fmt: skip


def say(**answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(Listener(load_toml(Path(sys.argv[1]), DeviceConfig)).run())

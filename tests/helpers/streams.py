"""Specs, chunks and drivers for the tests of streams."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edge_sdk.core.clock import NS
from edge_sdk.core.interfaces import Driver
from edge_sdk.core.records import Array, Chunk
from edge_sdk.core.spec import FederationSpec, ModalitySpec, WindowSpec

RATE_HZ = 50.0
PERIOD_NS = 20_000_000


def inertial_spec(
    *names: str, length_s: float = 2.56, hop_s: float = 1.28, channels: int = 3, min_quality: float = 0.9
) -> FederationSpec:
    """Returns a federation of 50 Hz time series."""
    shape = (channels, round(RATE_HZ * length_s))
    return FederationSpec(
        name="test",
        modalities=tuple(ModalitySpec(name=n, shape=shape, rate_hz=RATE_HZ) for n in names or ("acc", "gyro")),
        classes=("a", "b", "c"),
        window=WindowSpec(length_s=length_s, hop_s=hop_s, min_quality=min_quality),
    )


def chunk(stream: str, start: int, n: int, *, channels: int = 3, seq: int = 0, gap: bool = False) -> Chunk:
    """Returns samples `start` … `start + n` of a 50 Hz stream on the grid; every channel counts the samples."""
    data = np.repeat(np.arange(start, start + n, dtype=np.float32)[:, None], channels, axis=1)
    return Chunk(stream, seq, start * PERIOD_NS, data, period_ns=PERIOD_NS, gap_before=gap)


def series(stream: str, data: Array, *, t_ns: int = 0, gap: bool = False, rate_hz: float = RATE_HZ) -> Chunk:
    """Returns a chunk of these samples."""
    return Chunk(stream, 0, t_ns, data, period_ns=round(NS / rate_hz), gap_before=gap)


class ScriptedDriver(Driver):
    """Does what its script says: each entry is a chunk, None, an error to raise, or a function returning one of these.

    The end of the script is silence. `opens` counts openings, `fail_opens` errors are raised by the first openings.
    """

    def __init__(self, stream: str, options: Mapping[str, Any]) -> None:
        super().__init__(stream, options)
        self.script: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.fail_opens: list[Exception] = []
        self.opens = 0
        self.closes = 0
        for step in options.get("script", ()):
            self.script.put(step)

    def open(self) -> None:
        self.opens += 1
        if self.fail_opens:
            raise self.fail_opens.pop(0)

    def read(self, timeout_s: float) -> Chunk | None:
        try:
            step = self.script.get(timeout=timeout_s)
        except queue.Empty:
            return None
        step = step() if isinstance(step, Callable) else step  # type: ignore[arg-type]
        if isinstance(step, Exception):
            raise step
        return step

    def close(self) -> None:
        self.closes += 1

"""A round set: the windows frozen for one task, and when each modality has arrived for them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.config import ReservoirConfig
from edge_sdk.core.interfaces import RoundSet
from edge_sdk.core.records import Arrival, Float32, RoundData
from edge_sdk.core.spec import FederationSpec


@dataclass(slots=True)
class Row:
    """One window in the reservoir; only the reservoir changes it."""

    index: int
    t_ns: int  # start of the window, stream clock
    data: dict[str, Float32] = field(default_factory=dict)  # modality → array of the spec's shape
    since_ns: dict[str, int] = field(default_factory=dict)  # modality → when it came, stream clock
    quality: dict[str, float] = field(default_factory=dict)  # modality → [0, 1]; none: 1
    label: int = -1  # class number; −1: none yet


class LiveRoundSet(RoundSet):
    """Rows of the reservoir, held until the task is done.

    Args:
        rows: in order of index.
        modalities: those the task may use.
        spec: shapes and order of modalities.
        config: what counts as complete, how long to wait, what becomes of rows that lack something.
        clock: the stream clock.
        changed: waits until something is added to the reservoir.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        modalities: tuple[str, ...],
        spec: FederationSpec,
        *,
        config: ReservoirConfig,
        clock: Clock,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self.indices = np.array([row.index for row in rows], np.int64)
        self._rows = list(rows)
        self._waiting = [m for m in spec.modality_names if m in modalities]
        self._spec = spec
        self._config = config
        self._clock = clock
        self._changed = changed
        self._limit_ns = clock.now_ns() + round(config.wait_limit_s * NS)

    async def next_arrival(self) -> Arrival | None:
        while self._waiting:
            arrival = self._arrived()
            if arrival is not None:
                self._leave_out(arrival.modality)
                return arrival
            left_ns = self._limit_ns - self._clock.now_ns()
            if left_ns <= 0:
                return None
            try:
                async with self._clock.deadline(left_ns / NS):
                    await self._changed()
            except TimeoutError:
                continue
        return None

    def data(self, modalities: tuple[str, ...]) -> RoundData:
        need = all if self._config.incomplete == "drop" else any
        rows = [row for row in self._rows if row.label >= 0 and need(m in row.data for m in modalities)]
        return gather(rows, self._spec, modalities)

    def _arrived(self) -> Arrival | None:
        """Returns the modality that was complete first, of those not told yet."""
        need = max(1, math.ceil(self._config.complete_fraction * len(self._rows) - 1e-9))
        arrivals = []
        for modality in self._waiting:
            times = sorted(row.since_ns[modality] for row in self._rows if modality in row.data)
            if len(times) >= need:
                arrivals.append(Arrival(modality, times[need - 1], len(times)))
        return min(arrivals, key=lambda arrival: arrival.t_ns, default=None)

    def _leave_out(self, modality: str) -> None:
        self._waiting.remove(modality)
        if self._config.incomplete == "drop":
            self._rows = [row for row in self._rows if modality in row.data]


def gather(rows: Sequence[Row], spec: FederationSpec, modalities: tuple[str, ...]) -> RoundData:
    """Stacks rows into arrays; a row without a modality holds zeros there."""
    x, has, quality = {}, {}, {}
    for name in modalities:
        x[name] = np.zeros((len(rows), *spec.modality(name).shape), np.float32)
        has[name] = np.array([name in row.data for row in rows], np.bool_)
        quality[name] = np.array([row.quality.get(name, 1.0) if name in row.data else 0.0 for row in rows], np.float32)
        for i, row in enumerate(rows):
            if name in row.data:
                x[name][i] = row.data[name]
    return RoundData(
        indices=np.array([row.index for row in rows], np.int64),
        y=np.array([row.label for row in rows], np.int64),
        x=x,
        has=has,
        quality=quality,
    )


__all__ = ["LiveRoundSet", "Row", "gather"]

"""The simulated world: where the simulator enters the device, at the reservoir.

Every draw is keyed by (seed, device, purpose, task number), so that nothing depends on the order of events.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.interfaces import RoundSet, RoundSource
from edge_sdk.core.records import Arrival, Dataset, Float32, Int64, RoundData
from edge_sdk.learn.records import PhaseJob

from coordinator.simulation.profiles import WorldProfile  # isort: skip

_ARRIVALS, _SPEED = 1, 2  # purposes of random streams

Incomplete = Literal["drop", "mask"]  # leave such rows out, or take them with what they have


@dataclass(frozen=True, slots=True)
class Scripted:
    """One modality's arrival in one round."""

    modality: str
    after_s: float  # since the start of the round
    count: int  # rows that have it


def script(
    data: Dataset, profile: WorldProfile, *, seed: int, device: int, task: int, modalities: tuple[str, ...]
) -> tuple[Scripted, ...]:
    """Returns the arrivals of a round, earliest first; ties: the modality that the spec names first."""
    rng = np.random.default_rng([seed, device, _ARRIVALS, task])
    owned = [m for m in modalities if data.has[m].any()]
    early = max(1, int(profile.arrivals.early_fraction * len(owned)))
    order = rng.permutation(len(owned))
    bandwidth = rng.uniform(profile.arrivals.bandwidth_low_kbps, profile.arrivals.bandwidth_high_kbps) * 1000.0
    arrivals = []
    for place, index in enumerate(order):
        m = owned[index]
        count = int(np.count_nonzero(data.has[m]))
        size = count * data.x[m][0].nbytes
        start_s = 0.0 if place < early else profile.arrivals.delay_s
        if start_s and profile.arrivals.delay == "exponential":
            start_s = rng.exponential(start_s)
        arrivals.append((start_s + size / bandwidth, int(index), Scripted(m, start_s + size / bandwidth, count)))
    return tuple(a for _, _, a in sorted(arrivals, key=lambda item: item[:2]))


class ScriptedRound(RoundSet):
    """A round set whose arrivals follow a script.

    Args:
        data: all rows of the client.
        arrivals: the script, earliest first.
        clock: virtual, or a wall clock on which the same times are waited out.
        incomplete: what becomes of rows that lack some of the modalities asked for.
        quality: modality → (n,) in [0, 1]; modalities without a key are as good as they can be.
        wait_limit_s: what comes later does not come at all, s since the start of the round; None: everything comes.
    """

    def __init__(
        self, data: Dataset, arrivals: tuple[Scripted, ...], clock: Clock, incomplete: Incomplete = "drop",
        quality: Mapping[str, Float32] | None = None, wait_limit_s: float | None = None,
    ) -> None:  # fmt: skip
        self._limit_s = math.inf if wait_limit_s is None else wait_limit_s
        self._quality = quality or {}
        self.indices = np.arange(len(data.y), dtype=np.int64)
        self._data = data
        self._clock = clock
        self._start_ns = clock.now_ns()
        self._left = deque(arrivals)
        self._incomplete = incomplete

    async def next_arrival(self) -> Arrival | None:
        if not self._left:
            return None
        coming = self._left[0]
        if coming.after_s > self._limit_s:  # of all later ones, too
            await self._clock.sleep_until(self._start_ns + round(self._limit_s * NS))
            self._left.clear()
            return None
        t_ns = self._start_ns + round(coming.after_s * NS)
        await self._clock.sleep_until(t_ns)
        self._left.popleft()  # only now: a cancelled wait loses nothing
        return Arrival(coming.modality, t_ns, coming.count)

    def data(self, modalities: tuple[str, ...]) -> RoundData:
        whole = self._data
        join = np.logical_and if self._incomplete == "drop" else np.logical_or
        rows = join.reduce([whole.has[m] for m in modalities])
        kept = None if rows.all() else np.flatnonzero(rows)
        chosen = self.indices if kept is None else kept
        return RoundData(
            chosen, whole.y[chosen], _cut(whole, modalities, kept), {m: whole.has[m][chosen] for m in modalities},
            {m: self._quality[m][chosen] for m in modalities if m in self._quality},
        )  # fmt: skip


def _cut(data: Dataset, modalities: tuple[str, ...], rows: np.ndarray | None) -> dict[str, Float32]:
    return {m: data.x[m] if rows is None else data.x[m][rows] for m in modalities}


class ScriptedSource(RoundSource):
    """The reservoir of a simulated device: its rows of the data set, arriving as the world says.

    Args:
        data: the client's data, or all of the data set.
        profile: when modalities arrive.
        clock: what arrivals are timed on.
        seed: of the world.
        device: number of the device.
        incomplete: what becomes of rows that lack some of the modalities asked for.
        rows: those of `data` that are the client's, taken out for every round: an idle client holds no copy of them;
            None: all.
    """

    def __init__(
        self, data: Dataset, profile: WorldProfile, clock: Clock, *, seed: int, device: int,
        incomplete: Incomplete = "drop", rows: Int64 | None = None,
    ) -> None:  # fmt: skip
        self._incomplete = incomplete
        self._data = data
        self._rows = rows
        self._profile = profile
        self._clock = clock
        self._seed = seed
        self._device = device

    async def freeze(self, task_number: int, modalities: tuple[str, ...]) -> ScriptedRound:
        data = self._data if self._rows is None else self._data.take(self._rows)
        arrivals = script(
            data, self._profile, seed=self._seed, device=self._device, task=task_number, modalities=modalities
        )
        return ScriptedRound(
            data, arrivals, self._clock, self._incomplete, wait_limit_s=self._profile.arrivals.wait_limit_s
        )


class ModelledCost:
    """Modelled duration of a phase on one device, ns."""

    def __init__(self, profile: WorldProfile, *, seed: int, device: int, devices: int) -> None:
        slow = np.random.default_rng([seed, 0, _SPEED]).permutation(devices) < round(
            profile.board.slow_fraction * devices
        )
        factor = profile.board.factor * (profile.board.slow_factor if slow[device] else 1.0)
        self._sample_ns = profile.board.sample_s * factor * NS

    def __call__(self, job: PhaseJob) -> int:
        rows, phase = len(job.data.y), job.phase
        passed = phase.steps * min(job.plan.batch_size, rows) if phase.steps else phase.epochs * rows
        return round(self._sample_ns * passed * len(phase.modalities))


__all__ = ["Incomplete", "ModelledCost", "Scripted", "ScriptedRound", "ScriptedSource", "script"]

"""The streams of one device, from drivers to windows."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from edge_sdk.core.clock import NS, Clock, WallClock
from edge_sdk.core.config import SensorConfig
from edge_sdk.core.interfaces import Driver
from edge_sdk.core.records import Chunk, LatePart, Window
from edge_sdk.core.spec import FederationSpec
from edge_sdk.streams.counters import Counters
from edge_sdk.streams.pump import Pump
from edge_sdk.streams.sources import registered_driver, sources
from edge_sdk.streams.watch import Watches
from edge_sdk.streams.window import Windower


class Streams:
    """Pumps and windows of one device.

    Args:
        spec: the federation's grid and shapes.
        sensors: modality → sensor; a modality without a sensor is simply absent.
        clock: the stream clock.
        load_driver: driver name → class.
        epoch_ns: where replayed time begins; None: now. Labels of a replay need the same one.
        join_horizon_s: how late a part may be.
        tap: gets every chunk before the windows do (recording).
        watches: watch the modalities for faults; None: nobody does.

    Raises:
        ConfigError: a sensor for a modality that the spec does not have, or columns that its device does not have.
        PluginError: no such driver.
    """

    def __init__(
        self,
        spec: FederationSpec,
        sensors: Mapping[str, SensorConfig],
        clock: Clock,
        load_driver: Callable[[str], type[Driver]] = registered_driver,
        *,
        epoch_ns: int | None = None,
        join_horizon_s: float = 900.0,
        tap: Callable[[Chunk], None] | None = None,
        watches: Watches | None = None,
    ) -> None:
        self.epoch_ns = clock.now_ns() if epoch_ns is None else epoch_ns
        self.windower = Windower(
            spec,
            modalities=tuple(sensors),
            join_horizon_s=join_horizon_s,
            buffer_s=max((s.buffer_s for s in sensors.values()), default=30.0),
            watches=watches,
        )
        self.behind = False  # what is given out now became ready while the consumer was away for more than a hop
        self._clock = clock
        self._real = not isinstance(clock, WallClock) or clock.speed == 1  # faster, only the reader is slow
        self._hop_ns = round(spec.window.hop_s * NS)
        self._tap = tap
        self._wake = asyncio.Event()
        self._waits_for_ns: float = math.inf
        self._closed = False
        self.pumps: dict[str, Pump] = {}  # modality → what feeds it; modalities of one device share theirs
        self._devices: list[Pump] = []
        for source in sources(sensors, load_driver):
            pump = Pump(
                source.driver, source.config, clock, source.sink(self._take), epoch_ns=self.epoch_ns,
                changed=self._wake.set,
            )  # fmt: skip
            self._devices.append(pump)
            self.pumps.update(dict.fromkeys(source.modalities, pump))

    async def start(self) -> None:
        """Starts every sensor and returns at once."""
        for pump in self._devices:
            await pump.start()

    async def aclose(self) -> None:
        """Stops every sensor; items() ends."""
        self._closed = True
        self._wake.set()
        await asyncio.gather(*(pump.aclose() for pump in self._devices))

    async def items(self) -> AsyncIterator[Window | LatePart]:
        """Yields windows at their deadlines and late parts as they come; one consumer.

        A consumer that is away for more than a hop finds old windows when it comes back, and would find older ones each
        time: `behind` is set for them, once, so that it may pass them by and be there when the next one is ready.

        Ends after aclose(), and when all sources are finite and everything of them was given out.
        """
        while not self._closed:
            away = self.behind
            for item in self.windower.advance(self._clock.now_ns()):
                given_ns = self._clock.now_ns()
                yield item
                self.behind |= self._real and self._clock.now_ns() - given_ns > self._hop_ns
            if self.behind and not away:
                await self._clock.sleep(0)  # what has come meanwhile
                continue
            self.behind = False
            due_ns = self.windower.next_deadline_ns
            if due_ns is None and all(pump.exhausted for pump in self._devices):
                return
            await self._wait(math.inf if due_ns is None else due_ns)

    @property
    def finished(self) -> bool:
        """True when every sensor is a finite source that has delivered everything."""
        return all(pump.exhausted for pump in self._devices)

    def status(self) -> dict[str, Any]:
        """Returns what the command line shows, as plain data."""
        return {
            "windows": self.windower.windows,
            "late_parts": self.windower.late_parts,
            "sensors": {name: self._sensor_status(name, pump) for name, pump in self.pumps.items()},
        }

    def _sensor_status(self, name: str, pump: Pump) -> dict[str, Any]:
        age_s = pump.last_age_s
        counters = self.windower.counters[name]
        return {
            "state": pump.state.value,
            "exhausted": pump.exhausted,
            "error": pump.error,
            "samples": pump.counters.samples,
            "chunks": pump.counters.chunks,
            "in_windows": counters.used,
            "pending": self.windower.pending(name),
            "late": self.windower.lateness[name].late,
            "dropped": merged_drops(pump.counters, counters),
            "reconnects": pump.counters.reconnects,
            "last_age_s": age_s if math.isfinite(age_s) else None,
            "measured_hz": pump.counters.measured_hz,
            "faults": dict(self.windower.watches.faults.get(name, {})),
        }

    def _take(self, chunk: Chunk) -> None:
        if self._tap is not None:
            self._tap(chunk)
        self.windower.push(chunk)
        due_ns = self.windower.next_deadline_ns
        if due_ns is not None and due_ns < self._waits_for_ns:  # else the consumer sleeps on: chunks are many
            self._wake.set()

    async def _wait(self, until_ns: float) -> None:
        """Waits for the next deadline, or for a reason to look earlier."""
        self._waits_for_ns = until_ns
        try:
            async with self._clock.deadline((until_ns - self._clock.now_ns()) / NS):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._waits_for_ns = math.inf
        self._wake.clear()


def merged_drops(*places: Counters) -> dict[str, int]:
    """Returns the drops of several places by reason."""
    total: dict[str, int] = {}
    for counters in places:
        for reason, count in list(counters.dropped.items()):
            total[reason.value] = total.get(reason.value, 0) + count
    return total


__all__ = ["Streams"]

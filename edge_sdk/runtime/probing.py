"""Trying what a configuration names: its plug-ins without opening anything, or its sensors and broker for real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_sdk.core import registry
from edge_sdk.core.clock import Clock
from edge_sdk.core.compute import SHORT, Compute
from edge_sdk.core.config import DeviceConfig
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.interfaces import Connected, Disconnected, Driver, Transport
from edge_sdk.core.records import Chunk

PROBE_S = 5.0


@dataclass(frozen=True, slots=True)
class Tried:
    """How one thing did."""

    name: str
    ok: bool
    detail: str


def names(config: DeviceConfig) -> None:
    """Checks that every plug-in that is named is installed; ConfigError names section and key. Opens nothing."""
    wanted = [(f"sensors.{m}.driver", "sensors", s.driver) for m, s in config.sensors.items()]
    wanted += [(f"labels.{name}.source", "labels", s.source) for name, s in config.labels.items()]
    if config.inference.enabled:
        wanted.append(("inference.engine", "engines", config.inference.engine))
    for key, kind, name in wanted:
        if name not in registry.names(kind):
            raise ConfigError(f"{key}: no plug-in {name!r}; installed: {', '.join(registry.names(kind)) or 'none'}")
    graph = config.inference.graph
    if config.inference.enabled and not config.training.enabled and graph is None:
        raise ConfigError("inference.graph: must be set where training.enabled = false; there is no torch to export it")


async def sensor(modality: str, config: DeviceConfig, *, clock: Clock, compute: Compute) -> Tried:
    """Opens a sensor and reads until its first chunk."""
    section = config.sensors[modality]
    kind: type[Driver] = registry.load("sensors", section.driver)
    driver = kind(modality, section.options)
    driver.now_ns = clock.now_ns
    try:
        chunk = await compute.run(SHORT, 0, first_chunk, driver, clock.now_ns)
    except Exception as error:  # noqa: BLE001  what a driver or its vendor's library raises is what we want to tell
        return Tried(f"sensors.{modality}", ok=False, detail=f"{type(error).__name__}: {error}")
    if chunk is None:
        return Tried(f"sensors.{modality}", ok=False, detail=f"opened, but nothing came within {PROBE_S:g} s")
    shape = "x".join(map(str, chunk.data.shape[1:])) or "1"
    return Tried(f"sensors.{modality}", ok=True, detail=f"{len(chunk.data)} samples of {shape} {chunk.data.dtype}")


def first_chunk(driver: Driver, now_ns: Callable[[], int]) -> Chunk | None:
    """Returns the first chunk of a driver, None if none comes in time; blocks."""
    driver.open()
    try:
        end_ns = now_ns() + round(PROBE_S * 1e9)
        while now_ns() < end_ns:
            chunk = driver.read(0.2)
            if chunk is not None:
                return chunk
        return None
    finally:
        driver.close()


async def reach(transport: Transport, *, clock: Clock) -> Tried:
    """Connects to the broker; the transport is closed afterwards."""
    await transport.start()
    try:
        async with clock.deadline(PROBE_S):
            async for event in transport.events():
                if isinstance(event, Connected):
                    return Tried("broker", ok=True, detail="connected")
                if isinstance(event, Disconnected):
                    return Tried("broker", ok=False, detail=event.reason)
    except TimeoutError:
        pass
    finally:
        await transport.aclose()
    return Tried("broker", ok=False, detail=f"no answer within {PROBE_S:g} s")


__all__ = ["PROBE_S", "Tried", "first_chunk", "names", "reach", "sensor"]

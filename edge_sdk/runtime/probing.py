"""Trying what a configuration names: its plug-ins without opening anything, or its sensors and broker for real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeVar

from edge_sdk.core import registry
from edge_sdk.core.clock import Clock, WallClock
from edge_sdk.core.compute import SHORT, Compute
from edge_sdk.core.config import DeviceConfig
from edge_sdk.core.errors import ConfigError, PluginError
from edge_sdk.core.interfaces import Connected, Disconnected, Driver, Transport
from edge_sdk.core.records import Chunk
from edge_sdk.streams.sources import share, sources

PROBE_S = 5.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tried:
    """How one thing did."""

    name: str
    ok: bool
    detail: str


def whole(config: DeviceConfig) -> None:
    """Checks what a device needs to run, without opening anything; ConfigError names section and key."""
    sensors(config)
    labels(config)
    _inference(config)
    if config.training.enabled and find_spec("torch") is None:
        raise ConfigError(
            "training.enabled: training needs torch, which is not installed; install edge-sdk[train] or set it to false"
        )
    for key, path in (("password_file", config.broker.password_file), ("ca_file", config.broker.ca_file)):
        if path is not None and not path.is_file():
            raise ConfigError(f"broker.{key}: {path}: no such file")


def sensors(config: DeviceConfig) -> None:
    """Checks drivers and their options; ConfigError names section and key. Opens nothing."""
    made: dict[str, Driver] = {}  # section → what it sets up
    for m, section in config.sensors.items():
        if not section.shares:
            kind: type[Driver] = _loaded(f"sensors.{m}.driver", "sensors", section.driver)
            made[m] = _made(f"sensors.{m}.options", partial(kind, m, section.options))
    for m, section in config.sensors.items():
        share(made[section.shares or m], m, section.columns)


def labels(config: DeviceConfig) -> None:
    """Checks label sources and their options; ConfigError names section and key. Opens nothing."""
    for name, section in config.labels.items():
        kind = _loaded(f"labels.{name}.source", "labels", section.source)
        _made(f"labels.{name}.options", partial(kind, section.options, WallClock(), epoch_ns=0))


def _inference(config: DeviceConfig) -> None:
    if not config.inference.enabled:
        return
    _known("inference.engine", "engines", config.inference.engine)  # where its library is missing, sensing goes on
    if not config.training.enabled and config.inference.graph is None:
        raise ConfigError("inference.graph: must be set where training.enabled = false; there is no torch to export it")


def _known(key: str, kind: str, name: str) -> None:
    if name not in registry.names(kind):
        raise ConfigError(f"{key}: no plug-in {name!r}; installed: {', '.join(registry.names(kind)) or 'none'}")


def _loaded(key: str, kind: str, name: str) -> Any:
    _known(key, kind, name)
    try:
        return registry.load(kind, name)
    except PluginError as error:
        raise ConfigError(f"{key}: {error}") from error


def _made(key: str, make: Callable[[], T]) -> T:
    """Makes a plug-in, which checks its options; what it says of them is put behind the key."""
    try:
        return make()
    except ConfigError as error:
        said = [line.partition("options:")[2] or f" {line}" for line in str(error).splitlines()]
        raise ConfigError("\n".join(f"{key}.{text}" if text[0] != " " else f"{key}:{text}" for text in said)) from error


async def sensor(modality: str, config: DeviceConfig, *, clock: Clock, compute: Compute) -> Tried:
    """Opens a sensor and reads until its first chunk."""
    source = sources({modality: config.sensors[modality]})[0]
    source.driver.now_ns = clock.now_ns
    try:
        chunk = await compute.run(SHORT, 0, first_chunk, source.driver, clock.now_ns)
    except Exception as error:  # noqa: BLE001  what a driver or its vendor's library raises is what we want to tell
        return Tried(f"sensors.{modality}", ok=False, detail=f"{type(error).__name__}: {error}")
    if chunk is None:
        return Tried(f"sensors.{modality}", ok=False, detail=f"opened, but nothing came within {PROBE_S:g} s")
    chunk = source.shares[0].of(chunk)
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


__all__ = ["PROBE_S", "Tried", "first_chunk", "labels", "reach", "sensor", "sensors", "whole"]

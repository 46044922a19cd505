"""A device as a process: everything of the field that `Device` is handed, from one configuration file."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edge_sdk.core.clock import Clock, WallClock
from edge_sdk.core.compute import Compute, FieldCompute
from edge_sdk.core.config import DeviceConfig, parse
from edge_sdk.core.errors import ConfigError, EngineError
from edge_sdk.core.events import JsonLines, Observer, ignore
from edge_sdk.core.interfaces import Transport
from edge_sdk.core.spec import FederationSpec
from edge_sdk.runtime import graphs
from edge_sdk.runtime.budget import Budget
from edge_sdk.runtime.device import Device, last_will
from edge_sdk.runtime.foreground import Foreground
from edge_sdk.runtime.service import Service
from edge_sdk.runtime.state import DeviceState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line adds to the configuration file."""

    solo: bool = False
    spec: FederationSpec | None = None  # where it does not come from the coordinator
    events: Path | None = None  # file of JSON lines


async def serve(config: DeviceConfig, options: Options) -> None:
    """Runs a device until SIGINT or SIGTERM."""
    clock = WallClock()
    speed = config.device.stream_speed
    compute = FieldCompute(partial(train_on, config.training.threads), niceness=config.training.niceness)
    if config.training.enabled:
        train_on(config.training.threads)  # schedules and parity use torch in this process too
    state = DeviceState.open(config.device.state_dir, config.device.federation, config.device.id)
    service = Service(clock)
    foreground = Foreground(limit_ms=5000.0 * speed)
    with ExitStack() as stack:
        events = stack.enter_context(JsonLines(options.events, clock)) if options.events else ignore
        device = Device(
            config,
            transport=None if options.solo else broker(config, state, clock=clock, compute=compute),
            clock=clock,
            compute=compute,
            stream_clock=clock if speed == 1.0 else WallClock(speed),
            budget=Budget(config.training, clock=clock, foreground=foreground),
            observer=both(both(events, foreground), service),
            state=state,
            spec=options.spec or _given(config, state, options),
        )
        try:
            await until_signalled(service.around(device.run()))
        finally:
            await compute.aclose()
            state.close()


def broker(config: DeviceConfig, state: DeviceState, *, clock: Clock, compute: Compute) -> Transport:
    """Returns the transport to the configured broker, not started."""
    from edge_sdk.transport.mqtt import MqttTransport

    return MqttTransport(
        config.broker, config.device.id, clock=clock, compute=compute, will=last_will(config, state)
    )  # fmt: skip


def both(first: Observer, second: Observer) -> Observer:
    """Returns an observer that tells two."""

    def tell(event: Any) -> None:
        first(event)
        second(event)

    return tell


def train_on(threads: int) -> None:
    """Makes this process train on so many threads; with one, bit for bit repeatable."""
    import torch

    from edge_sdk.learn.local_training import single_thread

    if threads == 1:
        single_thread()
    else:
        torch.set_num_threads(threads)


async def until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Awaits work; SIGINT and SIGTERM cancel it, which is a clean end."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work, name="device")
    stop: Callable[[], object] = task.cancel
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        with suppress(asyncio.CancelledError):
            await task
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        task.cancel()


def read_spec(path: Path) -> FederationSpec:
    """Returns the spec in a JSON file; ConfigError names file, section and key of what is wrong."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    return parse(plain, FederationSpec, str(path))


def _given(config: DeviceConfig, state: DeviceState, options: Options) -> FederationSpec | None:
    """A device that was given a graph knows its federation from the graph's sidecar."""
    if config.inference.graph is None or state.spec() is not None:
        return None
    try:
        return graphs.spec_of(config.inference.graph)
    except EngineError as error:
        if options.solo:
            raise
        log.warning("%s: the federation's spec is awaited from the coordinator: %s", config.device.id, error)
        return None


__all__ = ["Options", "both", "broker", "read_spec", "serve", "train_on", "until_signalled"]

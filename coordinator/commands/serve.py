"""`edge-coordinator serve`: runs a federation until a stop criterion, SIGINT or SIGTERM.

SIGUSR1 pauses (no more tasks), SIGUSR2 resumes: what `edge-coordinator pause` and `resume` send.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from coordinator.commands.flags import config_argument
from coordinator.commands.signalling import PAUSE, RESUME
from coordinator.config import CoordinatorConfig, read_config
from coordinator.preparation import split
from coordinator.service import Coordinator
from coordinator.store import Store
from coordinator.store.files import map_arrays, read_tensors
from coordinator.store.lock import check_free
from edge_sdk import datasets
from edge_sdk.core import registry
from edge_sdk.core.clock import WallClock
from edge_sdk.core.compute import FieldCompute
from edge_sdk.core.config import BrokerConfig
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.events import JsonLines, ignore
from edge_sdk.core.records import Dataset, ModelTensors
from edge_sdk.core.spec import FederationSpec

log = logging.getLogger(__name__)

USER = "coordinator"  # with the embedded broker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    config_argument(parser)
    parser.add_argument("--events", type=Path, metavar="FILE", help="append every event as a JSON line")
    parser.add_argument("--port", type=int, help="port of the broker; wins over the file")
    parser.add_argument(
        "--init", type=Path, metavar="FILE", help="first version of a new store, safetensors as `export` writes them"
    )


def run(args: argparse.Namespace) -> int:
    """Serves."""
    config = configuration(args)
    spec = federation_of(config, args.config)
    check_free(config.store.dir)
    test = held_out(config)
    with broker(config) as address:
        asyncio.run(_serve(config, spec, address, test=test, events=args.events))
    return 0


def configuration(args: argparse.Namespace) -> CoordinatorConfig:
    """Returns the file's configuration with the flags over it."""
    flags: dict[str, Any] = {} if args.port is None else {"broker.port": args.port}
    if args.init is not None:
        flags["init"] = str(args.init.absolute())  # from where the command was given, not from the file's folder
    return read_config(args.config, flags)


def federation_of(config: CoordinatorConfig, where: Path) -> FederationSpec:
    """Returns the federation of a configuration; ConfigError if it has none."""
    if config.federation is None:
        raise ConfigError(f"{where}:federation: missing; `edge-coordinator init` writes one to start from")
    return config.federation


def held_out(config: CoordinatorConfig) -> Dataset | None:
    """Returns the test rows of the configured data set."""
    if not config.evaluate.dataset:
        return None
    seed = config.schedule.seed
    return split(datasets.select(config.evaluate.dataset, config.evaluate.data, seed=seed), seed).test


@contextmanager
def broker(config: CoordinatorConfig) -> Iterator[BrokerConfig]:
    """Starts the embedded broker where one is configured; gives the address to connect to.

    Raises:
        TransportError: its port is busy; names it.
    """
    if not config.broker.embedded:
        yield config.broker
        return
    from edge_sdk.transport.embedded import EmbeddedBroker

    folder = broker_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    host, port = config.broker.host, config.broker.port
    passwords = folder / "broker.passwd"
    password = _own_password(folder, passwords)
    with EmbeddedBroker(host, port, state_dir=folder, password_file=passwords):
        reach = "127.0.0.1" if host in ("0.0.0.0", "") else host
        yield BrokerConfig(host=reach, port=port, username=USER, password=password)


def _own_password(folder: Path, passwords: Path) -> str:
    """Returns the coordinator's password with the embedded broker, made once.

    A new one at every start would lock out a coordinator that runs already, when a second one is started by mistake.
    """
    from edge_sdk.transport.passwords import add_user, read_password_file, verify

    path = folder / "coordinator.password"
    known = read_password_file(passwords).get(USER, "") if passwords.exists() else ""
    if path.exists() and verify(path.read_text(encoding="utf-8").strip(), known):
        return path.read_text(encoding="utf-8").strip()
    password = add_user(passwords, USER)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(password + "\n")
    return password


def broker_folder(config: CoordinatorConfig) -> Path:
    """Returns where the embedded broker keeps its files."""
    return config.store.dir.with_name(config.store.dir.name + "-broker")


async def _serve(
    config: CoordinatorConfig, spec: FederationSpec, address: BrokerConfig, *, test: Dataset | None, events: Path | None
) -> None:  # fmt: skip
    from edge_sdk.transport.mqtt import MqttTransport

    log.info("federation %r: store %s, broker %s:%d", spec.name, config.store.dir, address.host, address.port)
    clock, compute = WallClock(), FieldCompute()
    with ExitStack() as stack:
        observer = stack.enter_context(JsonLines(events, clock)) if events else ignore
        # A client id of its own: a second coordinator must be refused by name, not throw this one off the broker.
        transport = MqttTransport(address, f"{USER}-{secrets.token_hex(4)}", clock=clock, compute=compute)
        center = Coordinator(
            config, spec, transport=transport, clock=clock, compute=compute, store=open_store(config), test=test,
            init=None if config.init is None else first_version(config.init), observer=observer,
        )  # fmt: skip
        try:
            await _until_signalled(center)
        finally:
            await compute.aclose()


def open_store(config: CoordinatorConfig) -> Store:
    """Returns the configured store, not opened yet."""
    made: Store = registry.load("stores", config.store.kind)(config.store.dir, keep=config.store.keep)
    return made


def first_version(path: Path) -> ModelTensors:
    """Returns tensors that `export` (safetensors) or a checkpoint of ours holds."""
    arrays = map_arrays(path)
    if not any(name.endswith("/params") for name in arrays):
        raise ConfigError(f"{path}: holds no module's params; use a file that `edge-coordinator export` wrote")
    return read_tensors(path)


async def _until_signalled(center: Coordinator) -> None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(center.run(), name="coordinator")
    handlers: dict[signal.Signals, Callable[[], object]] = {
        signal.SIGINT: task.cancel, signal.SIGTERM: task.cancel,
        PAUSE: center.pause, RESUME: center.resume,
    }  # fmt: skip
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        with suppress(asyncio.CancelledError):
            await task
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


__all__ = [
    "USER",
    "add_arguments",
    "broker",
    "broker_folder",
    "configuration",
    "federation_of",
    "first_version",
    "held_out",
    "open_store",
    "run",
]

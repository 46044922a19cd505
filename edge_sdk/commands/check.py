"""`edge-sdk check`: is a configuration right? Opens nothing unless --probe is given."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

from edge_sdk.commands.configuration import config_argument, load
from edge_sdk.core.program import DONE, WRONG, say, show

if TYPE_CHECKING:
    from edge_sdk.core.config import DeviceConfig
    from edge_sdk.runtime.probing import Tried


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    config_argument(parser)
    parser.add_argument("--probe", action="store_true", help="open every sensor and connect to the broker")


def run(args: argparse.Namespace) -> int:
    """Checks a configuration."""
    from edge_sdk.runtime import probing

    config = load(args.file, probing.whole)
    if not args.probe:
        say(f"{args.file}: device {config.device.id} of federation {config.device.federation}: good")
        return DONE
    tried = asyncio.run(_probe(config))
    show(args, [asdict(t) for t in tried], "\n".join(f"{'ok ' if t.ok else 'BAD'} {t.name}: {t.detail}" for t in tried))
    return DONE if all(t.ok for t in tried) else WRONG


async def _probe(config: DeviceConfig) -> list[Tried]:
    from edge_sdk.core.clock import WallClock
    from edge_sdk.core.compute import FieldCompute
    from edge_sdk.runtime import probing
    from edge_sdk.transport.mqtt import MqttTransport

    clock, compute = WallClock(), FieldCompute()
    try:
        tried = [await probing.sensor(m, config, clock=clock, compute=compute) for m in config.sensors]
        name = f"{config.device.id}-probe"[-64:]
        transport = MqttTransport(config.broker, name, clock=clock, compute=compute)
        return [*tried, await probing.reach(transport, clock=clock)]
    finally:
        await compute.aclose()


__all__ = ["add_arguments", "run"]

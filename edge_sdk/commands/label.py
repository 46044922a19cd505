"""`edge-sdk label`: labels by keys, for a device that runs elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

from edge_sdk.commands.configuration import config_argument, load
from edge_sdk.core.program import DONE, say

if TYPE_CHECKING:
    from edge_sdk.core.config import DeviceConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the configuration file."""
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Publishes a label for every key that is pressed."""
    sent = asyncio.run(_label(load(args.file)))
    say(f"{sent} labels sent")
    return DONE


async def _label(config: DeviceConfig) -> int:
    from edge_sdk.core.clock import WallClock
    from edge_sdk.core.compute import FieldCompute
    from edge_sdk.runtime import keyboard
    from edge_sdk.transport.mqtt import MqttTransport
    from edge_sdk.transport.topics import Topics

    clock, compute = WallClock(), FieldCompute()
    view = keyboard.View(sys.stdout, live=sys.stdin.isatty() and sys.stdout.isatty())
    transport = MqttTransport(config.broker, f"{config.device.id}-label"[-64:], clock=clock, compute=compute)
    await transport.start()
    try:
        names = await keyboard.classes(transport, config.device.federation, clock=clock, wait_s=10.0)
        view.keys(config.device.id, names)
        topic = Topics(config.device.federation).label(config.device.id)
        labeller = keyboard.Labeller(names, transport=transport, topic=topic, clock=clock, view=view)
        return await labeller.run(keyboard.pressed(sys.stdin))
    finally:
        view.end()
        await transport.aclose()
        await compute.aclose()


__all__ = ["add_arguments", "run"]

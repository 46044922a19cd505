"""`edge-sdk record`: what the sensors of a configuration deliver, as a recording."""

from __future__ import annotations

import argparse
import asyncio
import math
from pathlib import Path

from edge_sdk.commands.configuration import config_argument, load
from edge_sdk.core.program import DONE, at_least, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    config_argument(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the new recording")
    parser.add_argument(
        "--seconds", type=at_least(0, float), default=0.0, help="stop after so long, stream clock; 0: Ctrl-C"
    )


def run(args: argparse.Namespace) -> int:
    """Records until the time is up, the sensors end, or it is told to stop."""
    from edge_sdk.core.clock import WallClock
    from edge_sdk.runtime import probing, recorder
    from edge_sdk.runtime.agent import until_signalled

    config = load(args.file, probing.sensors)
    written: dict[str, int] = {}

    async def work() -> None:
        clock = WallClock(config.device.stream_speed)
        written.update(await recorder.record(config, args.output, clock=clock, seconds=args.seconds or math.inf))

    async def signalled() -> None:
        await until_signalled(work())

    asyncio.run(signalled())
    show(args, recorder.describe(args.output), f"{args.output}: {written or 'stopped'}")
    return DONE


__all__ = ["add_arguments", "run"]

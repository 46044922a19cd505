"""`edge-sdk monitor`: what the sensors of a configuration deliver, live in the terminal or as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edge_sdk.commands.configuration import config_argument, load
from edge_sdk.core.program import DONE, WRONG, at_least, say

if TYPE_CHECKING:
    from edge_sdk.core.config import DeviceConfig
    from edge_sdk.runtime.gauges import Reading

SETTLE_S = 3.0  # how long --once waits for sensors that do not deliver yet
LIVE_S = 0.25
LINES_S = 1.0
MEASURE_S = 1.0  # a rate is told after this


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    config_argument(parser)
    parser.add_argument("--once", action="store_true", help="answer once; exit code 2 where a sensor does not deliver")
    parser.add_argument("--seconds", type=at_least(0, float), default=0.0, help="stop after so long; 0: at Ctrl-C")
    parser.add_argument(
        "--interval", type=at_least(0, float), default=0.0, help="between two answers, s; 0: 0.25 on a screen, else 1"
    )


def run(args: argparse.Namespace) -> int:
    """Looks until the time is up, the sensors end, or it is told to stop."""
    from edge_sdk.runtime import probing
    from edge_sdk.runtime.agent import until_signalled

    config = load(args.file, probing.sensors)
    last: list[Reading] = []

    async def signalled() -> None:
        await until_signalled(_look(args, config, last))

    asyncio.run(signalled())
    return WRONG if args.once and not all(reading.delivers for reading in last) else DONE


async def _look(args: argparse.Namespace, config: DeviceConfig, last: list[Reading]) -> None:
    from edge_sdk.core.clock import NS, WallClock
    from edge_sdk.runtime.gauges import Gauges

    clock = WallClock()
    begin_ns = clock.now_ns()
    limit_s = args.seconds or (SETTLE_S if args.once else math.inf)
    with _view(args, config) as (show, often_s):
        async with Gauges(config, WallClock(config.device.stream_speed)) as gauges:
            while True:
                passed_s = (clock.now_ns() - begin_ns) / NS
                last[:] = gauges.readings()
                over = passed_s >= limit_s or gauges.ended
                if args.once:
                    over |= passed_s >= MEASURE_S and all(reading.delivers for reading in last)
                if over or not args.once:
                    show(last)
                if over:
                    return
                await clock.sleep(min(args.interval or often_s, limit_s - passed_s))


@contextmanager
def _view(args: argparse.Namespace, config: DeviceConfig) -> Iterator[tuple[Callable[[list[Reading]], None], float]]:
    """Gives what shows readings, and how often: JSON or text in lines, or a screen where stdout is one."""
    from edge_sdk.commands import panel

    if args.json:
        yield (lambda readings: say(json.dumps([r.plain() for r in readings]))), LIVE_S if args.once else LINES_S
        return
    if args.once or not sys.stdout.isatty() or find_spec("rich") is None:
        yield (lambda readings: say(panel.plain(readings))), LIVE_S if args.once else LINES_S
        return
    from rich.live import Live

    newest: list[Reading] = []
    title = f"{config.device.id} of {config.device.federation}"
    try:
        with Live(screen=True, auto_refresh=False) as live:

            def show(readings: list[Reading]) -> None:
                newest[:] = readings
                live.update(panel.drawing(readings, title), refresh=True)

            yield show, LIVE_S
    finally:
        say(panel.plain(newest))  # the screen is gone


__all__ = ["add_arguments", "run"]

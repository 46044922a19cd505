"""`edge-coordinator pause`: a running coordinator gives out no more tasks; updates under way are still taken."""

from __future__ import annotations

import argparse

from coordinator.commands.flags import config_argument
from coordinator.commands.signalling import PAUSE, tell
from coordinator.config import read_config
from edge_sdk.core.program import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Tells the coordinator."""
    pid = tell(read_config(args.config).store.dir, PAUSE, "paused")
    say(f"coordinator (pid {pid}) paused: no tasks are given until `edge-coordinator resume` or a new start")
    return 0


__all__ = ["add_arguments", "run"]

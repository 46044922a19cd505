"""`edge-coordinator resume`: a running coordinator gives out tasks again."""

from __future__ import annotations

import argparse

from coordinator.commands.flags import config_argument
from coordinator.commands.signalling import RESUME, tell
from coordinator.config import read_config
from edge_sdk.core.program import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Tells the coordinator."""
    pid = tell(read_config(args.config).store.dir, RESUME, "running")
    say(f"coordinator (pid {pid}) running: devices get tasks again")
    return 0


__all__ = ["add_arguments", "run"]

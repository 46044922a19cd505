"""`edge-coordinator backup`: a consistent copy of the store."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordinator.commands.flags import config_argument
from coordinator.config import read_config
from coordinator.store.maintenance import backup
from edge_sdk.core.program import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("target", type=Path, help="a folder that does not exist yet")
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Copies the store."""
    backup(read_config(args.config).store.dir, args.target)
    say(f"{args.target}: backed up")
    return 0


__all__ = ["add_arguments", "run"]

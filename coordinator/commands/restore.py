"""`edge-coordinator restore`: a store from a backup, under a new lineage."""

from __future__ import annotations

import argparse
from pathlib import Path

from coordinator.commands.flags import config_argument
from coordinator.config import read_config
from coordinator.store.maintenance import restore
from edge_sdk.core.program import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("source", type=Path, help="the backup's folder")
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Restores the store."""
    config = read_config(args.config)
    lineage = restore(args.source, config.store.dir)
    say(f"{config.store.dir}: restored; its versions have the new lineage {lineage}")
    return 0


__all__ = ["add_arguments", "run"]

"""`edge-sdk run`: a device that senses, predicts and trains until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from edge_sdk.commands.configuration import config_argument, load
from edge_sdk.core.program import DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    config_argument(parser)
    parser.add_argument("--solo", action="store_true", help="train alone, without a coordinator; needs a spec")
    parser.add_argument("--spec", type=Path, help="the federation's spec, JSON, where no coordinator told it yet")
    parser.add_argument("--events", type=Path, help="append what happens to this file, one JSON object per line")


def run(args: argparse.Namespace) -> int:
    """Runs a device."""
    from edge_sdk.runtime import probing
    from edge_sdk.runtime.agent import Options, read_spec, serve

    config = load(args.file, probing.whole)
    options = Options(solo=args.solo, spec=read_spec(args.spec) if args.spec else None, events=args.events)
    asyncio.run(serve(config, options))
    return DONE


__all__ = ["add_arguments", "run"]

"""`edge-sdk doctor`: what may be wrong with this machine."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from edge_sdk.commands.output import DONE, WRONG, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("--state-dir", type=Path, default=Path.cwd(), help="where a device would keep its state")


def run(args: argparse.Namespace) -> int:
    """Looks for what may be wrong."""
    from edge_sdk.runtime.doctor import examine

    found = examine(args.state_dir)
    show(args, [asdict(f) for f in found], "\n".join(f"{f.state:<5} {f.name}: {f.detail}" for f in found))
    return WRONG if any(f.state == "bad" for f in found) else DONE


__all__ = ["add_arguments", "run"]

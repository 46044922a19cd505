"""`edge-sdk replay`: what a recording holds, with lines for a configuration that replays it."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_sdk.core.program import DONE, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the folder."""
    parser.add_argument("folder", type=Path, help="folder of the recording")


def run(args: argparse.Namespace) -> int:
    """Says what there is."""
    from edge_sdk.runtime.recorder import describe

    found = describe(args.folder)
    lines = [f"{args.folder}: {found['seconds']:.1f} s, {found['labels']} labels"]
    lines += [
        f"  {name}: {s['samples']} samples of {s['shape']}, {s['rate_hz']:.1f} Hz, {s['gaps']} gaps"
        for name, s in found["streams"].items()
    ]
    lines += [
        f'[sensors.{name}]\ndriver = "replay"\noptions = {{ path = "{args.folder}" }}' for name in found["streams"]
    ]
    show(args, found, "\n".join(lines))
    return DONE


__all__ = ["add_arguments", "run"]

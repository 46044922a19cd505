"""`edge-sdk replay`: what a recording holds, with lines for a configuration that replays it, bit by bit the same."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from edge_sdk.core.program import DONE, WRONG, show

VERIFY_SPEED = 100.0  # seconds of the recording per second


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("folder", type=Path, help="folder of the recording")
    parser.add_argument(
        "--verify", action="store_true", help="play it through the driver, fast; exit code 2 where a bit differs"
    )


def run(args: argparse.Namespace) -> int:
    """Says what there is."""
    from edge_sdk.core.clock import WallClock
    from edge_sdk.runtime.recorder import describe, replayed

    found = describe(args.folder)
    same = True
    if args.verify:
        played = asyncio.run(replayed(args.folder, clock=WallClock(VERIFY_SPEED)))
        for name, stream in found["streams"].items():
            stream["identical"] = played[name] == stream["digest"]
            same &= stream["identical"]
    lines = [f"{args.folder}: {found['seconds']:.1f} s, {found['labels']} labels"]
    lines += [
        f"  {name}: {s['samples']} samples of {s['shape']}, {s['rate_hz']:.1f} Hz, {s['gaps']} gaps, "
        f"digest {s['digest']}{_verdict(s)}"
        for name, s in found["streams"].items()
    ]
    lines += [
        f'[sensors.{name}]\ndriver = "replay"\noptions = {{ path = "{args.folder}" }}' for name in found["streams"]
    ]
    show(args, found, "\n".join(lines))
    return DONE if same else WRONG


def _verdict(stream: dict[str, Any]) -> str:
    return {True: ", replayed bit by bit the same", False: ", replayed DIFFERENTLY", None: ""}[stream.get("identical")]


__all__ = ["add_arguments", "run"]

"""What commands say on stdout, and the flags that several of them have."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def config_argument(parser: argparse.ArgumentParser) -> None:
    """Declares the configuration file."""
    parser.add_argument(
        "config", type=Path, nargs="?", default=Path("coordinator.toml"), help="default: coordinator.toml"
    )


def json_argument(parser: argparse.ArgumentParser) -> None:
    """Declares --json."""
    parser.add_argument("--json", action="store_true", help="answer as JSON")


def say(text: str) -> None:
    """Writes a line to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def answer(args: argparse.Namespace, data: Any, text: str) -> None:
    """Writes the answer for people, or with --json the data."""
    say(json.dumps(data, indent=1) if args.json else text)


__all__ = ["answer", "config_argument", "json_argument", "say"]

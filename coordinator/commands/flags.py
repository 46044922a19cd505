"""The flags that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path


def config_argument(parser: argparse.ArgumentParser) -> None:
    """Declares the configuration file."""
    parser.add_argument(
        "config", type=Path, nargs="?", default=Path("coordinator.toml"), help="default: coordinator.toml"
    )


def json_argument(parser: argparse.ArgumentParser) -> None:
    """Declares --json."""
    parser.add_argument("--json", action="store_true", help="answer as JSON")


__all__ = ["config_argument", "json_argument"]

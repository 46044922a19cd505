"""What commands say on stdout, and the arguments that several of them have."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sdk.core.errors import ConfigError

if TYPE_CHECKING:
    from edge_sdk.core.config import DeviceConfig

DONE, WRONG = 0, 2  # exit codes


def config_argument(parser: argparse.ArgumentParser) -> None:
    """Declares the configuration file."""
    parser.add_argument("file", type=Path, help="the device's configuration, TOML")


def load(path: Path, *checks: Callable[[DeviceConfig], None]) -> DeviceConfig:
    """Returns a device's configuration that has passed the checks; ConfigError names file, section and key."""
    from edge_sdk.core.config import DeviceConfig, load_toml

    config = load_toml(path, DeviceConfig)
    try:
        for check_one in checks:
            check_one(config)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path}:{line}" for line in str(error).splitlines())) from error
    return config


def say(text: str) -> None:
    """Writes a line to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show(args: argparse.Namespace, plain: Any, text: str) -> None:
    """Writes plain data as JSON where --json was given, else the text."""
    say(json.dumps(plain, indent=1) if args.json else text)


__all__ = ["DONE", "WRONG", "config_argument", "load", "say", "show"]

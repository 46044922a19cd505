"""What several commands have: the configuration file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.core.errors import ConfigError

if TYPE_CHECKING:
    from edge_sdk.core.config import DeviceConfig


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


__all__ = ["config_argument", "load"]

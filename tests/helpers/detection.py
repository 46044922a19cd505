"""What `edge-sdk detect` prints, taken as a user takes it: pasted into a configuration."""

from __future__ import annotations

import sys

from edge_sdk.core.config import DeviceConfig, parse
from edge_sdk.core.interfaces import Found
from edge_sdk.streams.sources import sources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def pasted(found: Found) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns modality → (section whose device it shares, columns); the drivers took the options."""
    sensors = tomllib.loads(found.toml)["sensors"]
    config = parse({"device": {"id": "d", "federation": "f"}, "sensors": sensors}, DeviceConfig, "pasted")
    sources(config.sensors)
    return {m: (section.shares, section.columns) for m, section in config.sensors.items()}


__all__ = ["pasted"]

"""The configurations in docs/sensors.md are ones that the drivers take."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from edge_sdk.core import registry
from edge_sdk.core.clock import WallClock
from edge_sdk.core.config import DeviceConfig, parse
from edge_sdk.streams.sources import sources
from sensors.capture import Options

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = (Path(__file__).parents[2] / "docs" / "sensors.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)
INERTIAL = [b for b in BLOCKS if 'driver = "imu_' in b]


@pytest.mark.parametrize("block", INERTIAL)
def test_configuration_is_taken(block: str) -> None:
    plain = {"device": {"id": "d", "federation": "f"}, "sensors": tomllib.loads(block)["sensors"]}
    config = parse(plain, DeviceConfig, "docs/sensors.md")
    assert sorted(m for source in sources(config.sensors) for m in source.modalities) == sorted(config.sensors)


@pytest.mark.parametrize("block", [b for b in BLOCKS if "[labels." in b])
def test_label_source_is_taken(block: str) -> None:
    for section in tomllib.loads(block)["labels"].values():
        registry.load("labels", section["source"])(section["options"], WallClock(), epoch_ns=0)


def test_camera_options_are_known() -> None:
    (block,) = [b for b in BLOCKS if 'driver = "camera"' in b]
    (section,) = tomllib.loads(block)["sensors"].values()
    assert parse(section["options"], Options, "docs/sensors.md").is_gstreamer


def test_every_inertial_driver_is_shown() -> None:
    shown = " ".join(INERTIAL)
    assert all(f'driver = "{name}"' in shown for name in registry.names("sensors") if name.startswith("imu_"))

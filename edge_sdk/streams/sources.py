"""Which device feeds which modalities: one driver, one thread and one open port, however many modalities share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core import registry
from edge_sdk.core.config import SensorConfig
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.interfaces import Driver
from edge_sdk.core.records import Chunk


@dataclass(frozen=True, slots=True)
class Share:
    """What one modality takes of a device."""

    modality: str
    numbers: NDArray[np.intp] | None  # (C,) columns, in this order; None: all that the driver delivers

    def of(self, chunk: Chunk) -> Chunk:
        """Returns the modality's part of a chunk."""
        data = chunk.data if self.numbers is None else np.take(chunk.data, self.numbers, axis=1)
        return replace(chunk, stream=self.modality, data=data)


@dataclass(frozen=True, slots=True)
class Source:
    """One device and what it feeds."""

    driver: Driver
    config: SensorConfig
    shares: tuple[Share, ...]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that it feeds."""
        return tuple(share.modality for share in self.shares)

    def sink(self, take: Callable[[Chunk], None]) -> Callable[[Chunk], None]:
        """Returns what hands each modality's part of a chunk on."""

        def divided(chunk: Chunk) -> None:
            for share in self.shares:
                take(share.of(chunk))

        return divided


def registered_driver(name: str) -> type[Driver]:
    """Returns the driver that is registered under this name; PluginError if there is none."""
    driver: type[Driver] = registry.load("sensors", name)
    return driver


def sources(
    sensors: Mapping[str, SensorConfig], load_driver: Callable[[str], type[Driver]] = registered_driver
) -> list[Source]:
    """Makes one driver per device; opens nothing.

    Args:
        sensors: modality → its sensor. The section that a shared device is set up in may be absent.
        load_driver: driver name → class.

    Raises:
        ConfigError: options that the driver refuses, or columns that it does not have.
        PluginError: no such driver, or its library is missing.
    """
    devices: dict[str, dict[str, SensorConfig]] = {}
    for modality, config in sensors.items():
        devices.setdefault(config.shares or modality, {})[modality] = config
    found = []
    for name, users in devices.items():
        config = next(iter(users.values()))
        driver = load_driver(config.driver)(name, config.options)
        found.append(Source(driver, config, tuple(share(driver, m, c.columns) for m, c in users.items())))
    return found


def share(driver: Driver, modality: str, columns: tuple[str, ...]) -> Share:
    """Returns what a modality takes of a driver; ConfigError names the columns that there are not."""
    if not columns:
        return Share(modality, None)
    there = driver.columns
    unknown = [column for column in columns if column not in there]
    if unknown:
        raise ConfigError(
            f"sensors.{modality}.columns: no {', '.join(unknown)}; this sensor delivers "
            f"{', '.join(there) or 'columns without names, which cannot be divided'}"
        )
    numbers = [n for column in columns for n in range(there[column].start, there[column].stop)]
    return Share(modality, np.array(numbers, np.intp))


__all__ = ["Share", "Source", "registered_driver", "share", "sources"]

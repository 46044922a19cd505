"""The configuration file of a coordinator.

The federation stands in it, or in a TOML or JSON file of its own that `[federation] path` names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edge_sdk.core.config import BrokerConfig, load_toml, parse
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import FederationSpec, Model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class CoordinatorBroker(BrokerConfig):
    """Where the broker is; `embedded` starts one here."""

    embedded: bool = False


class StoreConfig(Model):
    """What is kept, and where."""

    kind: str = "sqlite"  # entry point name among edge_sdk.stores
    dir: Path = Path("coordinator-store")
    keep: Literal["recovery", "audit", "all"] = "recovery"
    checkpoint_every: int = Field(default=50, ge=1)  # updates between checkpoints


class ScheduleConfig(Model):
    """Who trains."""

    policy: Literal["free", "sampled"] = "free"
    fraction: float = Field(default=0.25, gt=0, le=1)  # sampled: share of the devices on line that is kept busy
    min_devices: int = Field(default=1, ge=1)  # no task before so many have been on line
    task_deadline_s: float = Field(default=3600.0, ge=0)  # an open task lapses after this; 0: never
    round_deadline_s: float = Field(default=600.0, ge=0)  # synchronous: a round goes on without who is later; 0: never
    gather_s: float = Field(default=5.0, ge=0)  # synchronous: a round waits so long for devices that are nearly free
    seed: int = 0  # of the sampling


class PublishConfig(Model):
    """When a version goes out, and how many stay usable as a base."""

    every_updates: int = Field(default=1, ge=1)
    min_interval_s: float = Field(default=1.0, ge=0)
    min_hold_s: float = Field(default=2.0, ge=0)  # a slot is not used again before this
    base_budget_mb: float = Field(default=2048.0, gt=0)  # disk for published versions
    versions: int = Field(default=8, ge=1)  # newest versions that are always held
    key_every: int = Field(default=8, ge=1)  # chain with delta: published versions between key frames
    patience_s: float = Field(default=1.0, ge=0)  # tasks wait so long for a version that is on its way out


class EvaluateConfig(Model):
    """Testing of published versions on held-out data."""

    dataset: str = ""  # entry point name or an .npz file; "": none
    data: Path | None = None  # the data set's folder
    every_updates: int = Field(default=10, ge=1)
    max_rows: int = Field(default=4096, ge=1)
    running_mean: float = Field(default=1.0, gt=0, le=1)  # weight of the newest version; 1: no mean is tested


class StopConfig(Model):
    """When the federation is finished; 0: this criterion is not used."""

    updates: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0)  # since this process started
    plateau: int = Field(default=0, ge=0)  # evaluations in a row without a gain of plateau_delta
    plateau_delta: float = Field(default=0.001, ge=0)


class AdmissionConfig(Model):
    """What an update has to satisfy; 0 switches a bound off."""

    enrolment: Literal["open", "listed"] = "listed"  # listed: `devices` below and those enrolled in the store
    devices: tuple[str, ...] = ()
    max_staleness: int = Field(default=0, ge=0)  # server versions
    norm_factor: float = Field(default=10.0, ge=0)  # times the running median of accepted updates
    updates_per_minute: float = Field(default=0.0, ge=0)  # per device
    max_samples: int = Field(default=100_000_000, ge=1)
    max_steps: int = Field(default=100_000_000, ge=1)
    update_mb: float = Field(default=256.0, gt=0)  # incomplete uploads of one device
    total_mb: float = Field(default=1024.0, gt=0)  # incomplete uploads of all
    chunk_wait_s: float = Field(default=5.0, gt=0)  # quiet for so long: missing chunks are asked for
    drop_after_s: float = Field(default=60.0, gt=0)  # quiet for so long: given up


class CoordinatorConfig(Model):
    """The configuration file of a coordinator."""

    federation: FederationSpec | None = None  # None: handed to the program in another way
    broker: CoordinatorBroker = CoordinatorBroker()
    store: StoreConfig = StoreConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    publish: PublishConfig = PublishConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    stop: StopConfig = StopConfig()
    admission: AdmissionConfig = AdmissionConfig()
    init: Path | None = None  # safetensors with the first version


def read_config(path: Path, overrides: Mapping[str, Any] | None = None) -> CoordinatorConfig:
    """Reads a coordinator's TOML file; relative paths in it count from its folder.

    Raises:
        ConfigError: names file, section and key of what is wrong.
    """
    loaded = load_toml(path, _Raw, overrides)
    raw = loaded.model_dump(exclude_unset=True)
    where = raw.get("federation", {}).get("path")
    if where is not None:
        if len(raw["federation"]) > 1:
            raise ConfigError(f"{path}:federation: give either path or the federation itself, not both")
        raw["federation"] = _read_spec(path.parent / where)
    config = parse(raw, CoordinatorConfig, str(path))
    return _resolved(config, path.parent)


class _Raw(Model):
    """The sections as plain data, before the federation's own file has been read."""

    federation: dict[str, Any] = Field(default_factory=dict)
    broker: dict[str, Any] = Field(default_factory=dict)
    store: dict[str, Any] = Field(default_factory=dict)
    schedule: dict[str, Any] = Field(default_factory=dict)
    publish: dict[str, Any] = Field(default_factory=dict)
    evaluate: dict[str, Any] = Field(default_factory=dict)
    stop: dict[str, Any] = Field(default_factory=dict)
    admission: dict[str, Any] = Field(default_factory=dict)
    init: str | None = None


def _read_spec(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data: dict[str, Any] = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: neither valid TOML nor JSON: {error}") from error
    return data


def _resolved(config: CoordinatorConfig, folder: Path) -> CoordinatorConfig:
    store = config.store.model_copy(update={"dir": folder / config.store.dir})
    init = None if config.init is None else folder / config.init
    return config.model_copy(update={"store": store, "init": init})


__all__ = [
    "AdmissionConfig",
    "CoordinatorBroker",
    "CoordinatorConfig",
    "EvaluateConfig",
    "PublishConfig",
    "ScheduleConfig",
    "StopConfig",
    "StoreConfig",
    "read_config",
]

"""Configuration files: TOML into frozen records, with errors that name file, section and key.

Precedence: command line, `EDGE_*` environment (`EDGE_BROKER__PORT=1884` sets `broker.port`), file, default.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import IDENTIFIER, Model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

C = TypeVar("C", bound=Model)

_SECRETS = frozenset({"password"})  # keys whose values are not repeated in errors


class BrokerConfig(Model):
    """Where the MQTT broker is. Secrets come from a file or from `EDGE_BROKER__PASSWORD`."""

    host: str = "127.0.0.1"
    port: int = Field(default=1883, ge=1, le=65535)
    username: str = ""
    password: str = Field(default="", repr=False)
    password_file: Path | None = None
    ca_file: Path | None = None  # TLS when set
    keepalive_s: int = Field(default=30, ge=1)


class SensorConfig(Model):
    """The sensor of one modality; every further key belongs to the driver.

    Several modalities may share a device: the section of one names the driver, the others say `from` and `columns`, and
    nothing else; the rest is filled in from the section that they name.
    """

    driver: str
    columns: tuple[str, ...] = ()  # names, as the driver knows them; (): all that it delivers
    shares: str = Field(default="", alias="from")  # section that names the device; "": this one
    options: dict[str, Any] = Field(default_factory=dict)
    drop: Literal["drop_oldest", "latest", "block"] = "drop_oldest"
    buffer_s: float = Field(default=30.0, gt=0)  # seconds of samples the ring holds


class ReservoirConfig(Model):
    """How many windows a device keeps, and when a round set is complete."""

    round_windows: int = Field(default=512, ge=1)
    min_windows: int = Field(default=16, ge=1)  # fewer than this: wait before a round begins
    complete_fraction: float = Field(default=0.95, gt=0, le=1)
    incomplete: Literal["drop", "mask"] = "drop"
    wait_limit_s: float = Field(default=600.0, gt=0)
    join_horizon_s: float = Field(default=900.0, gt=0)
    label_wait_s: float = Field(default=600.0, gt=0)
    max_windows: int = Field(default=4096, ge=1)
    memory_mb: float = Field(default=256.0, gt=0)
    eviction: Literal["oldest", "class_balanced"] = "oldest"
    persist: bool = True  # survive restarts (disk, in state_dir)
    disk_mb: float = Field(default=1024.0, gt=0)


class InferenceConfig(Model):
    """Which model predicts, and through what."""

    enabled: bool = True
    follow: Literal["newest", "best", "local"] = "newest"
    running_mean: float = Field(default=1.0, gt=0, le=1)  # follow = "newest": its weight in the mean that predicts
    engine: str = "ort"  # entry point name: ort, tensorrt, torch
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"  # what ort runs on
    fallback: bool = False  # the CPU may serve where the provider does not work: told in the status, counted
    precision: Literal["fp32", "fp16"] = "fp32"
    threads: int = Field(default=1, ge=1)  # of one prediction, on the CPU
    cache: Path | None = None  # built engines; default: in the state directory
    build_limit_s: float = Field(default=1800.0, gt=0)
    graph: Path | None = None  # an exported graph; needed where torch is not installed
    publish: bool = True
    refine: bool = False  # predict a window again when more of it comes after its deadline
    parity_tolerance: float = Field(default=1e-3, gt=0)
    guard_margin: float = Field(default=0.1, ge=0, le=1)  # accuracy a new model may lose on own windows; 1: no guard
    guard_windows: int = Field(default=64, ge=1)  # newest labelled windows that the guard looks at


class TrainerConfig(Model):
    """Training on the device."""

    enabled: bool = True
    niceness: int = Field(default=10, ge=0, le=19)
    threads: int = Field(default=1, ge=1)
    max_temp_c: float = 95.0  # hottest zone: training waits from here on
    ease_temp_c: float = 85.0  # training is gentler from here on: smaller batches, and what is set below
    min_free_mb: float = 200.0  # memory available: less, and training waits
    ease_free_mb: float = 600.0  # less, and training is gentler
    max_slowdown: float = Field(default=1.3, ge=1)  # median latency of predictions while training, over that without
    power_modes: tuple[str, ...] = ()  # names of nvpmodel's modes in which to train; none: in all
    battery: Literal["train", "ease", "wait"] = "ease"  # while the device runs on its battery
    min_battery_percent: float = Field(default=30.0, ge=0, le=100)  # less, and training waits for the charger
    hours: str = Field(
        default="", pattern=r"^(([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d)?$"
    )  # local, "22:00-06:00"
    freeze_encoders: Literal["never", "ease", "always"] = "never"  # train what comes after them only
    precision: Literal["float32", "auto", "bfloat16"] = "float32"  # auto: bfloat16 where the processor computes with it


class LabelConfig(Model):
    """One label source; every further key belongs to it."""

    source: str
    options: dict[str, Any] = Field(default_factory=dict)


class HealthConfig(Model):
    """When a modality counts as faulty: it has left what the device learned from (`edge_sdk.streams.watch`)."""

    enabled: bool = True
    ignore: tuple[str, ...] = ()  # modalities that are not watched
    learn_windows: int = Field(default=64, ge=2)  # windows of a modality before it is judged
    persist_windows: int = Field(default=3, ge=1)  # windows in a row that a fault must show in (not drift)
    stuck_ratio: float = Field(default=0.01, ge=0, lt=1)  # times the least movement learned from
    saturated_share: float = Field(default=0.05, gt=0, le=1)  # samples exactly at an extreme; thrice what was learned
    noise_factor: float = Field(default=3.0, ge=1)  # times the greatest noise learned from
    noise_share: float = Field(default=0.5, gt=0, le=1)  # of a window's variance that must be noise
    drift_sigmas: float = Field(default=4.0, gt=0)  # times the spread of the levels learned from
    drift_windows: int = Field(default=256, ge=32)  # windows over which a level went along a line


class DeviceSection(Model):
    """Who this device is."""

    id: str = Field(pattern=IDENTIFIER)
    federation: str = Field(pattern=IDENTIFIER)
    state_dir: Path = Path("/var/lib/edge-sdk")
    stream_speed: float = Field(default=1.0, gt=0)  # replayed sensors: seconds of stream time per second
    seed: int = 0


class DeviceConfig(Model):
    """The configuration file of a device."""

    device: DeviceSection
    broker: BrokerConfig = BrokerConfig()
    sensors: dict[str, SensorConfig] = Field(default_factory=dict)  # key: modality name
    labels: dict[str, LabelConfig] = Field(default_factory=dict)
    reservoir: ReservoirConfig = ReservoirConfig()
    inference: InferenceConfig = InferenceConfig()
    training: TrainerConfig = TrainerConfig()
    health: HealthConfig = HealthConfig()
    hardware: dict[str, Any] = Field(default_factory=dict)  # limits of a bench: only tests/hardware reads them

    @field_validator("sensors", mode="before")
    @classmethod
    def _filled(cls, sections: Any) -> Any:
        """Gives a section that says `from` the device of the section that it names."""
        if not isinstance(sections, dict):
            return sections
        wrong = [line for name, section in sections.items() for line in _share_errors(sections, name, section)]
        if wrong:
            raise ValidationError.from_exception_data("sensors", wrong)
        return {
            name: {**sections[section["from"]], **section} if _shares(section) else section
            for name, section in sections.items()
        }


def _shares(section: Any) -> bool:
    return isinstance(section, dict) and "from" in section


def _share_errors(sections: dict[str, Any], name: str, section: Any) -> list[InitErrorDetails]:
    """Returns what is wrong with a section that shares the device of another one."""
    if not _shares(section):
        return []
    source = section["from"]
    there = [n for n, s in sections.items() if isinstance(s, dict) and not _shares(s)]
    beside = f"unknown beside `from`: the device is set up in [sensors.{source}]"
    found = dict.fromkeys(sorted(set(section) - {"from", "columns"}), beside)
    if source not in there:
        known = ", ".join(there) or "none"
        found["from"] = f"no section [sensors.{source}] with a driver of its own; there are {known}"
    if not section.get("columns"):
        found["columns"] = f"required beside `from`: the columns of [sensors.{source}] that this modality takes"
    return [
        InitErrorDetails(type=PydanticCustomError("value_error", message), loc=(name, key), input=section.get(key))
        for key, message in found.items()
    ]


def load_toml(path: Path, kind: type[C], overrides: Mapping[str, Any] | None = None) -> C:
    """Reads a TOML file into a configuration record.

    Args:
        path: the file.
        kind: the record.
        overrides: dotted key → value, from the command line; wins over everything.

    Raises:
        ConfigError: names the file, the section and the key of everything that is wrong.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    origins: dict[str, str] = {}
    for name, (key, value) in _environment().items():
        origins[key] = f"environment variable {name}"
        _set(raw, key, value, where=origins[key])
    for key, value in (overrides or {}).items():
        origins[key] = f"option {key}"
        _set(raw, key, value, where=origins[key])
    return parse(raw, kind, str(path), origins)


def parse(raw: Mapping[str, Any], kind: type[C], where: str, origins: Mapping[str, str] | None = None) -> C:
    """Validates plain data into a record.

    Args:
        raw: the data.
        kind: the record.
        where: their origin, for errors.
        origins: dotted key → where it came from, for keys that came from elsewhere.

    Raises:
        ConfigError: names the origin, the section and the key of everything that is wrong.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = []
        for wrong in error.errors():
            key = ".".join(map(str, wrong["loc"])) or "(top)"
            origin = (origins or {}).get(key)
            lines.append(f"{where}:{key}{f' (from {origin})' if origin else ''}: {_sentence(wrong)}")
        raise ConfigError("\n".join(lines)) from error


def _sentence(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key; remove it or check its spelling"
    if error["type"] == "missing":
        return "required, but missing"
    if error["type"] == "value_error":  # a validator of ours, which says what it found
        return str(error["msg"]).removeprefix("Value error, ")
    value, key = error.get("input"), error["loc"][-1] if error["loc"] else ""
    if key in _SECRETS:
        return str(error["msg"])
    found = f"a {type(value).__name__}" if isinstance(value, (dict, list)) else repr(value)
    return f"{error['msg']}, found {found}"


def _environment() -> dict[str, tuple[str, str]]:
    """Returns variable → (dotted key, value) of every `EDGE_<SECTION>__<KEY>`."""
    return {
        name: (name[len("EDGE_") :].lower().replace("__", "."), value)
        for name, value in sorted(os.environ.items())
        if name.startswith("EDGE_") and "__" in name
    }


def _set(raw: dict[str, Any], dotted: str, value: Any, *, where: str) -> None:
    keys = dotted.split(".")
    for key in keys[:-1]:
        raw = raw.setdefault(key, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"{where}: {key!r} is a value in the file, not a section; cannot set {dotted}")
    raw[keys[-1]] = value


__all__ = [
    "BrokerConfig",
    "DeviceConfig",
    "DeviceSection",
    "HealthConfig",
    "InferenceConfig",
    "LabelConfig",
    "ReservoirConfig",
    "SensorConfig",
    "TrainerConfig",
    "load_toml",
    "parse",
]

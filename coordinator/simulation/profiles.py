"""The simulated world by name, or as TOML: boards, arrivals of data, links to the broker, when devices are reachable.

    board = "orin_nano"              # a name of BOARDS, or a table with values of one's own
    arrivals = "half_late"           # of ARRIVALS
    availability = "intermittent"    # of AVAILABILITY

    [link]                           # or a name of LINKS
    latency_s = 0.02
    low_kbps = 500
    high_kbps = 1500

What is left out is as in the world of the MBA paper (section 5.1), `mba`: half of a client's modalities are there at
time 0, the others 300 s later, each after its transmission at U[200, 800] kB/s; a Jetson TX2 takes 36 times as long as
a V100, and half of the clients are five times slower still; updates and versions take no time.

The other boards are scaled from the TX2 by 2 · CUDA cores · maximum GPU clock of NVIDIA's data sheets. None of them was
measured: a board may well be slower. Links and availabilities but the paper's are our own choice of plausible values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from edge_sdk.core.config import load_toml
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import Model
from edge_sdk.transport.link import Link

_LINK = 5  # purpose of a random stream
_TX2_FACTOR, _TX2_GFLOPS = 36.0, 2 * 256 * 1.30


class Board(Model):
    """How long training takes."""

    sample_s: float = Field(default=2e-5, ge=0)  # modelled V100 seconds per sample, modality and epoch
    factor: float = Field(default=_TX2_FACTOR, ge=0)  # against a V100
    slow_factor: float = Field(default=5.0, ge=0)  # of slow clients, times `factor`
    slow_fraction: float = Field(default=0.5, ge=0, le=1)  # of the clients, fixed per client


class Arrivals(Model):
    """When a client's data are there."""

    delay_s: float = Field(default=300.0, ge=0)  # start delay of the late half of the modalities
    delay: Literal["fixed", "exponential"] = "fixed"  # exponential: drawn with that mean, per modality and round
    wait_limit_s: float | None = Field(default=None, gt=0)  # then a round goes on without what has not come
    early_fraction: float = Field(default=0.5, ge=0, le=1)  # of the modalities; at least one
    bandwidth_low_kbps: float = Field(default=200.0, gt=0)  # kB/s, kB = 1000 bytes; drawn per client and round
    bandwidth_high_kbps: float = Field(default=800.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Arrivals:
        if self.bandwidth_low_kbps > self.bandwidth_high_kbps:
            raise ValueError("bandwidth_low_kbps must not be above bandwidth_high_kbps")
        return self


class LinkProfile(Model):
    """How a device reaches the broker: updates, versions and everything else."""

    latency_s: float = Field(default=0.0, ge=0)  # one way
    low_kbps: float = Field(default=0.0, ge=0)  # kB/s up and down, drawn once per device; 0: messages take no time
    high_kbps: float = Field(default=0.0, ge=0)
    loss: float = Field(default=0.0, ge=0, lt=1)  # of a transmission, which is then sent again

    @model_validator(mode="after")
    def _ordered(self) -> LinkProfile:
        if self.low_kbps > self.high_kbps or (self.high_kbps and not self.low_kbps):
            raise ValueError("low_kbps must be positive and not above high_kbps, or both 0")
        return self


class Availability(Model):
    """When a device is connected at all: spells of exponential length, beginning with a connected one."""

    online_s: float = Field(default=0.0, ge=0)  # mean length of a connected spell; 0: always connected
    offline_s: float = Field(default=0.0, ge=0)
    horizon_s: float = Field(default=200_000.0, ge=0)  # from here on always connected


BOARDS: Mapping[str, Board] = {
    "tx2": Board(),  # the MBA paper's, slow half included
    "v100": Board(factor=1.0, slow_fraction=0.0),
    "instant": Board(sample_s=0.0, slow_fraction=0.0),
    **{
        name: Board(factor=round(_TX2_FACTOR * _TX2_GFLOPS / (2 * cores * ghz), 1), slow_fraction=0.0)
        for name, cores, ghz in (
            ("nano", 128, 0.9216),
            ("xavier_nx", 384, 1.1),
            ("orin_nano", 1024, 0.625),
            ("orin_nano_super", 1024, 1.02),
            ("orin_nx", 1024, 0.918),
            ("agx_orin", 2048, 1.3),
        )
    },
}
ARRIVALS: Mapping[str, Arrivals] = {
    "half_late": Arrivals(),  # the MBA paper's
    "together": Arrivals(delay_s=0.0),
    "by_deadline": Arrivals(delay="exponential", wait_limit_s=300.0),  # 63 % of the late ones come in time
    "instant": Arrivals(delay_s=0.0, bandwidth_low_kbps=1e9, bandwidth_high_kbps=1e9),
}
LINKS: Mapping[str, LinkProfile] = {
    "instant": LinkProfile(),
    "mba": LinkProfile(low_kbps=200.0, high_kbps=800.0),  # the paper's bandwidth, for models as well
    "wifi": LinkProfile(latency_s=0.003, low_kbps=2000.0, high_kbps=6000.0),
    "lte": LinkProfile(latency_s=0.05, low_kbps=500.0, high_kbps=2500.0, loss=0.001),
}
AVAILABILITY: Mapping[str, Availability] = {
    "always": Availability(),
    "intermittent": Availability(online_s=1800.0, offline_s=300.0),
    "rare": Availability(online_s=600.0, offline_s=3000.0),
}


def _named(known: Mapping[str, Any]) -> BeforeValidator:
    """Returns what takes a name in place of a table."""

    def look_up(value: Any) -> Any:
        if isinstance(value, str) and value not in known:
            raise ValueError(f"{value!r} is none of {', '.join(known)}, and no table")
        return known[value] if isinstance(value, str) else value

    return BeforeValidator(look_up)


class WorldProfile(Model):
    """When data arrive, how long training and messages take, and who is there."""

    board: Annotated[Board, _named(BOARDS)] = BOARDS["tx2"]
    arrivals: Annotated[Arrivals, _named(ARRIVALS)] = ARRIVALS["half_late"]
    link: Annotated[LinkProfile, _named(LINKS)] = LINKS["instant"]
    availability: Annotated[Availability, _named(AVAILABILITY)] = AVAILABILITY["always"]


MBA = WorldProfile()
INSTANT = WorldProfile(board=BOARDS["instant"], arrivals=ARRIVALS["instant"])
PROFILES: Mapping[str, WorldProfile] = {
    "mba": MBA,
    "by_deadline": WorldProfile(arrivals=ARRIVALS["by_deadline"]),
    "instant": INSTANT,
}


def read(text: str) -> WorldProfile:
    """Returns a world by its name, or from a TOML file.

    Raises:
        ConfigError: there is no such world; names file, section and key of what is wrong in a file.
    """
    if text in PROFILES:
        return PROFILES[text]
    if not text.endswith(".toml"):
        raise ConfigError(f"--profile {text}: expected one of {', '.join(PROFILES)}, or a file that ends with .toml")
    return load_toml(Path(text), WorldProfile)


def link(profile: WorldProfile, *, seed: int, device: int) -> Link | None:
    """Returns how a device reaches the broker; None where messages take no time and it is always connected."""
    way, spells = profile.link, profile.availability
    if way == LINKS["instant"] and not (spells.online_s and spells.offline_s):
        return None
    rng = np.random.default_rng([seed, device, _LINK])
    rate = rng.uniform(way.low_kbps, way.high_kbps) * 1000.0 if way.high_kbps else float("inf")
    return Link(
        latency_s=way.latency_s, up_bytes_per_s=rate, down_bytes_per_s=rate, loss=way.loss,
        offline=_offline(spells, rng),
    )  # fmt: skip


def _offline(spells: Availability, rng: np.random.Generator) -> tuple[tuple[float, float], ...]:
    found: list[tuple[float, float]] = []
    now = 0.0
    while spells.online_s and spells.offline_s and now < spells.horizon_s:
        begin = now + rng.exponential(spells.online_s)
        now = begin + rng.exponential(spells.offline_s)
        found.append((float(begin), float(now)))
    return tuple(found)


__all__ = [
    "ARRIVALS",
    "AVAILABILITY",
    "BOARDS",
    "INSTANT",
    "LINKS",
    "MBA",
    "PROFILES",
    "Arrivals",
    "Availability",
    "Board",
    "LinkProfile",
    "WorldProfile",
    "link",
    "read",
]

"""The online world: a buffer that slides over a client's data, modalities that are missing or degraded round by round.

Source: the setting of MMO-FL, PMM (arXiv:2505.16138) and QQR (arXiv:2508.11159). Each client holds the newest `buffer`
samples of its own stream, drops the oldest `per_round` and receives as many new ones every round; a stream that is used
up begins again. Per round, with probability `missing`, one modality is not there (quantity); with probability
`degraded`, one that is there carries Gaussian noise (quality), and its rows say so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field

from coordinator.simulation.profiles import WorldProfile
from coordinator.simulation.world import ScriptedRound, script
from edge_sdk.core.clock import Clock
from edge_sdk.core.config import parse
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.interfaces import RoundSource
from edge_sdk.core.records import Dataset, Float32
from edge_sdk.core.spec import Model

_ORDER, _TROUBLE = 3, 4  # purposes of random streams
_EVERYBODY = 1_000_000  # in place of a device's number, where one draw counts for all


class OnlineProfile(Model):
    """What a client sees round by round; defaults: the UCI-HAR sheet of the papers, without missing data."""

    initial: int = Field(default=2000, ge=1)  # samples received before the first round; at most what the client has
    buffer: int = Field(default=500, ge=1)
    per_round: int = Field(default=20, ge=0)
    missing: float = Field(default=0.0, ge=0, le=1)  # probability that a modality is missing
    degraded: float = Field(default=0.0, ge=0, le=1)  # probability that one is noisy
    sigma: float = Field(default=1.0, ge=0)  # of the noise, in standard deviations of the channel
    scope: Literal["client", "round"] = "client"  # one draw per client and round, or one per round for all


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong in one round of one client."""

    missing: str  # modality; "": none
    degraded: str


def read(text: str) -> OnlineProfile:
    """Returns a profile from KEY=VALUE,KEY=VALUE; "" gives the defaults. ConfigError names what is wrong."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    lacking = [key for key, equals, value in pairs if not (equals and value)]
    if lacking:
        raise ConfigError(f"--online {lacking[0]}: expected KEY=VALUE, as in missing=0.5,degraded=0.5")
    return parse({key: value for key, _, value in pairs}, OnlineProfile, "--online")


def trouble(profile: OnlineProfile, modalities: tuple[str, ...], *, seed: int, device: int, task: int) -> Trouble:
    """Returns what is wrong in a round; a client's only modality is never missing."""
    who = device if profile.scope == "client" else _EVERYBODY
    rng = np.random.default_rng([seed, who, _TROUBLE, task])
    chances, picks = rng.random(2), rng.random(2)
    gone = ""
    if len(modalities) > 1 and chances[0] < profile.missing:
        gone = modalities[int(picks[0] * len(modalities))]
    left = tuple(m for m in modalities if m != gone)
    poor = left[int(picks[1] * len(left))] if left and chances[1] < profile.degraded else ""
    return Trouble(gone, poor)


def window(profile: OnlineProfile, samples: int, task: int) -> np.ndarray:
    """Returns which of a client's samples, numbered in the order of its stream, are in the buffer, oldest first."""
    end = min(profile.initial, samples) + task * profile.per_round
    size = min(profile.buffer, end, samples)
    return np.arange(end - size, end, dtype=np.int64) % samples


def stream(data: Dataset, *, seed: int, device: int) -> Dataset:
    """Returns a client's samples in the order in which they come."""
    return data.take(np.random.default_rng([seed, device, _ORDER]).permutation(len(data.y)))


class OnlineSource(RoundSource):
    """The reservoir of a simulated device in the online world.

    Args:
        data: the client's samples.
        online: how its buffer moves.
        profile: when modalities arrive.
        clock: what arrivals are timed on.
        seed: of the world.
        device: number of the device.
    """

    def __init__(
        self, data: Dataset, online: OnlineProfile, profile: WorldProfile, clock: Clock, *, seed: int, device: int
    ) -> None:
        self._data = stream(data, seed=seed, device=device)
        self._online = online
        self._profile = profile
        self._clock = clock
        self._seed = seed
        self._device = device
        self._spread = {m: _spread(self._data.x[m]) for m in data.modalities}

    async def freeze(self, task_number: int, modalities: tuple[str, ...]) -> ScriptedRound:
        rows = window(self._online, len(self._data.y), task_number)
        data = self._data.take(rows)
        owned = tuple(m for m in modalities if data.has[m].any())
        wrong = trouble(self._online, owned, seed=self._seed, device=self._device, task=task_number)
        quality: dict[str, Float32] = {}
        if wrong.degraded:
            quality[wrong.degraded] = np.zeros(len(rows), np.float32)
            data = replace(data, x={**data.x, wrong.degraded: self._noisy(data, wrong.degraded, task_number)})
        here = tuple(m for m in owned if m != wrong.missing)
        arrivals = script(data, self._profile, seed=self._seed, device=self._device, task=task_number, modalities=here)
        limit_s = self._profile.arrivals.wait_limit_s
        return ScriptedRound(data, arrivals, self._clock, quality=quality, wait_limit_s=limit_s)

    def _noisy(self, data: Dataset, m: str, task: int) -> Float32:
        rng = np.random.default_rng([self._seed, self._device, _TROUBLE, task, 1])
        noise = rng.standard_normal(data.x[m].shape, dtype=np.float32)
        noisy: Float32 = data.x[m] + noise * (self._online.sigma * self._spread[m])
        return noisy


def _spread(x: Float32) -> Float32:
    """Returns the standard deviation per channel (or feature), shaped to be multiplied with (n, C, …)."""
    axes = (0, *range(2, x.ndim))
    spread: Float32 = x.std(axis=axes, keepdims=True).astype(np.float32)
    return spread


__all__ = ["OnlineProfile", "OnlineSource", "Trouble", "read", "stream", "trouble", "window"]

"""FedAvg-p: FedAvg whose clients leave a modality out now and then, and FedAvg-p-fix, where they do it for good.

Source: Fan et al., "Overcome Modal Bias in Multi-modal Federated Learning via Balanced Modality Selection", ECCV 2024,
arXiv:2401.00403: its study of modality dropping, with p = 0.2, 0.5, 0.8.
Differs from the source: any number of modalities; with more than two, exactly one is dropped, or (`independent`) each
with probability p as long as one is left.

    server   K of N clients uniformly; each, with probability p, without one of its modalities, uniformly chosen
             the rest is trained and averaged as in FedAvg, each encoder over those that trained it
    fix      the draw is made once for every device: it depends on `seed` and the device's name alone

A device's only modality is never dropped.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from edge_sdk.core.spec import Model
from edge_sdk.learn import seeds
from edge_sdk.learn.records import Assignment, Pool, State
from edge_sdk.methods import fedavg
from edge_sdk.methods.base import Method, SyncServerRule


class Config(Model):
    """Options of FedAvg-p's server."""

    p: float = Field(default=0.5, ge=0, le=1)  # probability of dropping
    fix: bool = False  # once per device instead of once per round
    seed: int = 0  # of the draws that are made once
    independent: bool = False  # every modality by itself


class Fixed(Config):
    """The same, dropping for good by default."""

    fix: bool = True


def kept(
    modalities: tuple[str, ...], p: float, rng: np.random.Generator, *, independent: bool = False
) -> tuple[str, ...]:  # fmt: skip
    """Returns what is left of a device's modalities, in their order; never nothing."""
    if len(modalities) < 2:
        return modalities
    if independent:
        stays = rng.random(len(modalities)) >= p
        stays[int(rng.integers(len(modalities)))] |= not stays.any()
        return tuple(m for m, keep in zip(modalities, stays, strict=True) if keep)
    if rng.random() >= p:
        return modalities
    gone = modalities[int(rng.integers(len(modalities)))]
    return tuple(m for m in modalities if m != gone)


class Server(SyncServerRule[Config]):
    """FedAvg, with fewer modalities in some assignments."""

    def select(self, state: State, pool: Pool, rng: np.random.Generator) -> tuple[Assignment, ...]:
        return tuple(
            replace(task, modalities=self._kept(task, rng)) for task in super().select(state, pool, rng)
        )  # fmt: skip

    def _kept(self, task: Assignment, rng: np.random.Generator) -> tuple[str, ...]:
        c = self.config
        own = np.random.default_rng(seeds.derive("fedavg_p", c.seed, task.device)) if c.fix else rng
        return kept(task.modalities, c.p, own, independent=c.independent)


METHOD = Method("fedavg_p", Config, fedavg.Client, Server, source="arXiv:2401.00403")

__all__ = ["METHOD", "Config", "Fixed", "Server", "kept"]

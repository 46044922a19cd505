"""Regret of an online run: how much more the published models lost than one fixed model would have.

Source: the setting of MMO-FL, PMM (arXiv:2505.16138) and QQR (arXiv:2508.11159).

    F_t(Θ) = (1/K) Σ_k f_k(Θ; D_k^t)                     f_k: mean cross-entropy over client k's buffer in round t
    Reg_T  = Σ_{t<T} F_t(Θ^t) − min_Θ Σ_{t<T} F_t(Θ)     Θ^t: the version that round t starts from

Losses are those of the buffer's rows as they are, nothing missing and nothing degraded, so that they are the same
functions for every method. The minimum cannot be had for a network; the best of some versions of the run, chosen in
hindsight, stands for it. Its loss is at least the minimum's, so what is reported is at most the regret. `compare` takes
the best over all runs of a seed, so that all curves are measured from one model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)
from numpy.typing import NDArray

from coordinator.evaluate import BATCH
from coordinator.simulation.online import OnlineProfile, stream, window
from edge_sdk.core.records import Dataset, ModelTensors
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn import params
from edge_sdk.learn.records import Needs
from edge_sdk.models.build import FusedModel, build

CANDIDATES = 10  # versions that may be the fixed model

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Running:
    """Losses of an online run, round by round."""

    loss: Sequence[float]  # F_t(Θ^t)
    best_version: int  # the fixed model: of the candidates the one with the smallest Σ_t F_t
    best_loss: Sequence[float]  # F_t of it


def running(
    spec: FederationSpec, needs: Needs, versions: Mapping[int, ModelTensors], clients: Sequence[Dataset],
    profile: OnlineProfile, *, seed: int,
) -> Running:  # fmt: skip
    """Returns the losses of a run.

    Args:
        spec: the federation's spec.
        needs: what the method needs of the model.
        versions: round → the version it started from, 0 to T − 1.
        clients: all samples of every client.
        profile: how the buffers move.
        seed: of the world.
    """
    streams = [stream(data, seed=seed, device=k) for k, data in enumerate(clients)]
    model = build(spec, needs)
    model.eval()
    rounds = range(len(versions))
    loss = []
    for t in rounds:
        params.load(model.named(), versions[t])
        here = [data.take(window(profile, len(data.y), t)) for data in streams]
        loss.append(float(np.mean([_losses(model, data).mean() for data in here])))
    chosen = sorted({round(t) for t in np.linspace(0, len(versions) - 1, CANDIDATES)})
    fixed = {}
    for v in chosen:
        params.load(model.named(), versions[v])
        rows = [_losses(model, data) for data in streams]
        fixed[v] = [float(np.mean([one[window(profile, len(one), t)].mean() for one in rows])) for t in rounds]
    best = min(fixed, key=lambda v: sum(fixed[v]))
    return Running(loss, best, fixed[best])


def _losses(model: FusedModel, data: Dataset) -> Floats:
    """Returns the cross-entropy of every row, (n,)."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(data.y), BATCH):
            part = data.take(np.arange(start, min(start + BATCH, len(data.y))))
            mask = torch.from_numpy(np.stack([part.has[m] for m in model.modalities], axis=1).astype(np.float32))
            x = {m: torch.from_numpy(np.asarray(part.x[m], np.float32)) for m in model.modalities}
            y = torch.from_numpy(np.ascontiguousarray(part.y))
            parts.append(F.cross_entropy(model(x, mask), y, reduction="none").double().numpy())
    joined: Floats = np.concatenate(parts)
    return joined


__all__ = ["CANDIDATES", "Running", "running"]

"""Which modalities a simulated client has at all: modality incongruity.

Sources: Fan et al., "Overcome Modal Bias in Multi-modal Federated Learning via Balanced Modality Selection", ECCV 2024
(BMSFed); Chen, Li, "Towards Optimal Multi-modal Federated Learning on Non-IID Data with Hierarchical Gradient
Blending", INFOCOM 2022 (HGB).

    all      every client has every modality; HGB's case A
    half     half of the clients have all, the others one, drawn uniformly; BMSFed's incongruity
    mixed    1 to M modalities: a uniform number, then a uniform subset of that size; HGB's mixed-B
    2m, 1m   exactly two, exactly one, drawn uniformly; HGB's 2M-B and 1M-B
    skewed   as mixed, and of every modality that it has a client keeps only a share U[0.3, 1] of its samples, drawn for
             each modality on its own, so that samples are incomplete; HGB's case C

HGB leaves open how subsets and shares are drawn: what stands here is our reading. Draws are keyed by (seed, device), so
that a client's modalities do not depend on the others. In `skewed` a sample that lacks a modality is trained on with
what it has, the missing features zero; samples that lost everything are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from coordinator.simulation.world import Incomplete
from edge_sdk.core.errors import ConfigError, DataError
from edge_sdk.core.records import Dataset

KEPT = (0.3, 1.0)  # share of a modality's samples in `skewed`
_OWNERSHIP = 0x0817  # purpose of the random streams


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of incongruity: every client has `least` to `most` modalities, the number drawn uniformly."""

    least: int
    most: int | None = None  # None: all there are
    whole: float = 0.0  # share of the clients that has everything all the same
    kept: tuple[float, float] = (1.0, 1.0)  # bounds of the share of samples kept per modality
    incomplete: Incomplete = "drop"  # what becomes of samples that lack a modality


CASES: Mapping[str, Case] = {
    "all": Case(1, whole=1.0),
    "half": Case(1, 1, whole=0.5),
    "mixed": Case(1),
    "2m": Case(2, 2),
    "1m": Case(1, 1),
    "skewed": Case(1, kept=KEPT, incomplete="mask"),
}


def case_of(name: str) -> Case:
    """Returns the case of that name; ConfigError if there is none."""
    if name not in CASES:
        raise ConfigError(f"ownership {name!r}: expected one of {', '.join(CASES)}")
    return CASES[name]


def apply(clients: list[Dataset], name: str, seed: int) -> list[Dataset]:
    """Returns the clients' data with `has` (and the values behind it) taken away as the case says.

    Args:
        clients: what each client has; not changed.
        name: one of CASES.
        seed: of the draws.

    Raises:
        ConfigError: no such case.
        DataError: too few modalities for it, or some modality would be nobody's.
    """
    case = case_of(name)
    if case.whole == 1.0 or not clients:
        return clients
    modalities, where = clients[0].modalities, f"{clients[0].name}: ownership {name}"
    if len(modalities) < 2:
        raise DataError(f"{where} needs at least two modalities, there is only {modalities[0]}")
    whole = np.random.default_rng([seed, _OWNERSHIP]).permutation(len(clients)) < case.whole * len(clients)
    left = [
        data if whole[device] else _take_away(data, case, np.random.default_rng([seed, device, _OWNERSHIP]))
        for device, data in enumerate(clients)
    ]
    for m in modalities:
        if not any(data.has[m].any() for data in left):
            raise DataError(f"{where}: none of {len(clients)} devices has {m}; use more devices or another seed")
    return left


def _take_away(data: Dataset, case: Case, rng: np.random.Generator) -> Dataset:
    there = [m for m in data.modalities if data.has[m].any()]
    most = min(case.most or len(there), len(there))
    number = int(rng.integers(min(case.least, most), most + 1))
    owned = {there[i] for i in rng.permutation(len(there))[:number]}
    has = {}
    for m in data.modalities:
        rows = np.flatnonzero(data.has[m]) if m in owned else np.zeros(0, np.int64)
        kept = max(1, round(rng.uniform(*case.kept) * len(rows))) if len(rows) else 0
        has[m] = np.zeros(len(data.y), np.bool_)
        has[m][rng.permutation(rows)[:kept]] = True
    x = {}
    for m, values in data.x.items():
        x[m] = np.zeros_like(values)  # costs no memory where nothing is written
        x[m][has[m]] = values[has[m]]
    return replace(data, x=x, has=has)


__all__ = ["CASES", "KEPT", "Case", "apply", "case_of"]

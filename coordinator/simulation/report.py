"""What a run has to say: the contract of `edge-coordinator simulate --json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from coordinator.simulation.regret import Running

LAST_VERSIONS = 20  # acc_median looks at this many evaluated versions


@dataclass(frozen=True, slots=True)
class Applied:
    """One update that was applied."""

    device: str
    sequence: int
    base: int  # number of the version it was trained from
    staleness: int
    virtual_s: float


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluated version."""

    version: int
    virtual_s: float
    acc: float
    acc_by_modality: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Trace:
    """What the method said at one update: for plots of rates and imbalance."""

    updates: int  # applied so far
    virtual_s: float
    rates: Mapping[str, float]  # module → rate or weight
    figures: Mapping[str, float]  # of the method's state, e.g. imbalance.<modality>; scalars of the payload
    norms: Mapping[str, float] = field(
        default_factory=dict
    )  # module → ‖Δ‖ of the update; per step and lr: its gradient


@dataclass(frozen=True, slots=True)
class Report:
    """Result of one simulated run; accuracies are fractions in [0, 1] of the test split."""

    method: str
    dataset: str
    seed: int
    devices: int
    updates: int  # client updates applied
    acc: float  # final global model
    acc_by_modality: Mapping[str, float]  # zero-feature: the other features are zeros
    acc_median: float  # over the last evaluated versions
    virtual_seconds: float
    wall_seconds: float
    bytes_up: int  # message bytes with headers, all devices
    bytes_down: int
    mean_staleness: float
    digest: str  # blake2b-128 over the final parameters
    rejected: int = 0
    rounds: int | None = None  # of a synchronous method
    workers: int = 1
    unimodal: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # way of asking → modality → accuracy
    missing: Mapping[str, float] = field(default_factory=dict)  # modality → accuracy of all others together
    running: Running | None = None  # losses round by round, of an online world
    curve: Sequence[Point] = ()
    trace: Sequence[Trace] = ()
    applied: Sequence[Applied] = field(default=(), repr=False)

    def as_json(self) -> dict[str, Any]:
        """Returns plain data; the list of applied updates is left out."""
        data = asdict(self)
        del data["applied"]
        for name in ("rounds", "running"):
            if data[name] is None:
                del data[name]
        return data


def last_median(values: Sequence[float]) -> float:
    """Returns the median over the last evaluated versions; NaN if there is none."""
    return median(values[-LAST_VERSIONS:]) if values else float("nan")


__all__ = ["LAST_VERSIONS", "Applied", "Point", "Report", "Trace", "last_median"]

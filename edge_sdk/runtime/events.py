"""Events that a device tells its observer: frozen dataclasses, one per thing that happened."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.core.messages import Plan
from edge_sdk.core.records import UpdateKey, VersionId


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The connection to the broker came or went."""

    device: str
    connected: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SpecLearnt:
    """The device has joined a federation, or the federation has changed."""

    device: str
    federation: str
    digest: str
    modalities: tuple[str, ...]  # of the spec, those that this device has


@dataclass(frozen=True, slots=True)
class ModelFetched:
    """A published version is here, decoded and verified."""

    device: str
    version: VersionId
    bytes: int  # encoded
    lost_races: int  # times its slot was overwritten while it was fetched


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """The device has the base of a task and begins."""

    device: str
    task: str
    number: int
    base: VersionId
    plan: Plan


@dataclass(frozen=True, slots=True)
class ModalityArrived:
    """A modality is complete in the round set."""

    device: str
    task: str
    modality: str
    count: int  # windows of the round set that have it


@dataclass(frozen=True, slots=True)
class PhaseFinished:
    """One phase of a task is trained."""

    device: str
    task: str
    phase: str
    modalities: tuple[str, ...]
    num_samples: int
    num_steps: int
    loss: float
    train_s: float
    final: bool


@dataclass(frozen=True, slots=True)
class TaskAbandoned:
    """A task ended without an update."""

    device: str
    task: str
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateQueued:
    """An update is encoded and lies in the outbox."""

    device: str
    task: str
    key: UpdateKey
    base: VersionId
    bytes: int  # encoded
    raw_bytes: int  # float32
    replaced: bool = False  # it took the place of one that had not been sent


@dataclass(frozen=True, slots=True)
class UpdateAccepted:
    """The coordinator has applied an update."""

    device: str
    key: UpdateKey
    version: VersionId | None  # the version it made


@dataclass(frozen=True, slots=True)
class UpdateRefused:
    """The coordinator did not apply an update."""

    device: str
    key: UpdateKey
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class PredictionMade:
    """A window was predicted."""

    device: str
    index: int  # of the window
    label: str
    confidence: float
    latency_ms: float  # from the window in hand to the prediction in hand
    late_ms: float  # from the window's end on the device's clock to the prediction, deadline included
    modalities: tuple[str, ...]
    version: VersionId | None
    refined: bool = False  # once more, after its deadline, with more modalities


@dataclass(frozen=True, slots=True)
class EngineSwapped:
    """Predictions now come from another model."""

    device: str
    version: VersionId | None  # None: the device's own model
    swap_ms: float  # decoded tensors in hand → new engine in place
    parity_error: float  # greatest difference of logits; NaN where there was nothing to compare with
    degraded: str = ""  # why it does not run on what the configuration asks for


@dataclass(frozen=True, slots=True)
class SwapRefused:
    """A new engine did not pass; the old one serves on."""

    device: str
    version: VersionId | None
    reason: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The engine failed, and the one before it serves again."""

    device: str
    failed: VersionId | None
    version: VersionId | None  # that serves now
    reason: str


@dataclass(frozen=True, slots=True)
class TrainingWaits:
    """Training pauses, or goes on again (reason "")."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class TrainingEased:
    """A phase is trained more gently than its plan says, or as the plan says again (reasons empty)."""

    device: str
    reasons: tuple[str, ...]
    batch_size: int
    frozen: tuple[str, ...]  # modules left as they are
    precision: str


__all__ = [
    "EngineSwapped",
    "LinkChanged",
    "ModalityArrived",
    "ModelFetched",
    "PhaseFinished",
    "PredictionMade",
    "RolledBack",
    "SpecLearnt",
    "SwapRefused",
    "TaskAbandoned",
    "TaskStarted",
    "TrainingEased",
    "TrainingWaits",
    "UpdateAccepted",
    "UpdateQueued",
    "UpdateRefused",
]

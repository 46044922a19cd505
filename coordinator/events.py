"""What a coordinator tells its observer; plain records, so that a log, a live view or a test can read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Recovered:
    """The store held a model, and it was brought up to date."""

    version: int  # number of the model now
    replayed: int  # updates that were replayed from the journal
    same_bits: bool  # False: another kernel or CPU class made the journal; equal to about 1e-6 only


@dataclass(frozen=True, slots=True)
class DeviceSeen:
    """A device's status changed."""

    device: str
    state: str  # "online" | "offline" | "paused"
    modalities: tuple[str, ...]
    software: str = ""
    board: str = ""
    notes: tuple[str, ...] = ()  # what it cannot do, which sensor looks broken, which model it did not take


@dataclass(frozen=True, slots=True)
class DeviceRefused:
    """A second device uses an id, or a device is not enrolled."""

    device: str
    detail: str


@dataclass(frozen=True, slots=True)
class TaskGiven:
    """A device was sent a task."""

    device: str
    task: str
    number: int  # counts the device's tasks
    base: int  # number of the version it starts from
    modalities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TaskLapsed:
    """No update came before the task's deadline."""

    device: str
    task: str


@dataclass(frozen=True, slots=True)
class RoundStarted:
    """A synchronous round asks or trains: one event for each of the two stages."""

    round: int  # number of the version it starts from
    stage: str  # "query" | "train"
    devices: tuple[str, ...]  # that were given a task


@dataclass(frozen=True, slots=True)
class RoundClosed:
    """A synchronous round is over."""

    version: int  # number it made; the one before where it was abandoned
    devices: tuple[str, ...]  # whose updates were averaged; none: abandoned
    late: tuple[str, ...]  # that were selected and sent no usable update in time


@dataclass(frozen=True, slots=True)
class UpdateApplied:
    """An update was mixed into the model."""

    device: str
    sequence: int
    base: int  # number of the version it was trained from
    staleness: int
    rates: Mapping[str, float]  # module → rate
    version: int  # number it made
    bytes_up: int  # its chunks, preambles included
    raw_bytes: int  # the same tensors as float32 and int64
    modalities: tuple[str, ...]
    num_samples: int
    num_steps: int
    applied: int  # updates applied so far, rollbacks not counted
    train_s: float = 0.0
    wait_s: float = 0.0
    payload: Mapping[str, float] = field(default_factory=dict)  # scalars of the update's payload
    figures: Mapping[str, float] = field(default_factory=dict)  # what the method says of its state: imbalance, …
    norms: Mapping[str, float] = field(default_factory=dict)  # module → ‖Δ‖ over params; asynchronous methods only
    latency_s: float = 0.0  # last chunk seen → reply handed to the transport


@dataclass(frozen=True, slots=True)
class UpdateRejected:
    """An update was not taken."""

    device: str
    sequence: int  # −1: not even its header could be read
    reason: str  # core.errors.Reason value
    detail: str


@dataclass(frozen=True, slots=True)
class Published:
    """A version is out: chunks and head are with the broker."""

    version: int
    size: int  # bytes of the encoded object
    bytes_down: int  # its chunks, preambles included
    codec: str
    digest: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A published version was tested on held-out data."""

    version: int
    acc: float  # fused, [0, 1]
    acc_by_modality: Mapping[str, float]  # zero-feature, [0, 1]
    n: int  # rows
    best: bool  # the best published version so far


@dataclass(frozen=True, slots=True)
class ModelSent:
    """Chunks of a version were sent to one device that asked for them."""

    device: str
    version: int
    chunks: int
    bytes_down: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Another coordinator speaks on this federation."""

    other: str  # its id
    detail: str


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The federation is running, paused or finished."""

    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """The store could not write; said once until it works again."""

    detail: str


__all__ = [
    "Conflict",
    "DeviceRefused",
    "DeviceSeen",
    "Evaluated",
    "ModelSent",
    "Published",
    "Recovered",
    "RoundClosed",
    "RoundStarted",
    "StateChanged",
    "StoreFailed",
    "TaskGiven",
    "TaskLapsed",
    "UpdateApplied",
    "UpdateRejected",
]

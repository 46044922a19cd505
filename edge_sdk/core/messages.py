"""Messages: the small records that cross the wire as one msgpack map each (`docs/protocol.md`).

Large objects (updates, model versions) travel as chunks instead; see `edge_sdk.codecs.wire`.
`codecs.wire.encode(message)` / `decode(cls, bytes)` check every field against these annotations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edge_sdk.core.records import UpdateKey, VersionId

PROTOCOL = 1
QUERY = "query"  # kind of a task that asks for an answer and sends no tensors


@dataclass(frozen=True, slots=True)
class Plan:
    """How a task is to be trained."""

    modalities: tuple[str, ...]  # modalities to use
    epochs: int  # local epochs E
    lr: float  # learning rate of this task, decay included
    batch_size: int
    phase: str = ""  # a method's own name for the stage it is in; "" = the method's only one


@dataclass(frozen=True, slots=True)
class Task:
    """Work for one device."""

    id: str
    kind: str  # "train" | "query" | "stop"
    base: VersionId  # version to start from
    plan: Plan
    number: int  # counts this device's tasks; keys its random streams
    deadline_s: float  # s after receipt at which the task lapses; 0 = never
    extras: dict[str, bytes] = field(default_factory=dict)  # the method's extras: name → wire.pack_array bytes


@dataclass(frozen=True, slots=True)
class Status:
    """What a device says of itself; retained; the last will is the same with state "offline"."""

    device: str
    state: str  # "online" | "offline" | "paused"
    incarnation: int
    spec_digest: str  # "" before the device has a spec
    modalities: tuple[str, ...]
    software: str = ""
    board: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fetch:
    """A device's question to the coordinator; `want` says which of the optional fields count."""

    want: str  # "task" | "model" | "update" (what became of it?)
    version: VersionId | None = None  # want == "model"
    chunks: tuple[int, ...] = ()  # want == "model": chunk numbers lacking; () = all
    key: UpdateKey | None = None  # want == "update"
    digest: str = ""  # want == "update": digest of the encoded update


@dataclass(frozen=True, slots=True)
class Reply:
    """The coordinator's answer to an update or a fetch."""

    kind: str  # "accepted" | "rejected" | "missing" | "unknown" | "no_task"
    key: UpdateKey | None = None
    reason: str = ""  # core.errors.Reason value, when rejected
    detail: str = ""
    version: VersionId | None = None  # accepted: version made; rejected: newest published version
    chunks: tuple[int, ...] = ()  # kind == "missing": chunk numbers the coordinator lacks


@dataclass(frozen=True, slots=True)
class Published:
    """Where one published version can be fetched."""

    id: VersionId
    size: int  # bytes of the encoded object
    chunks: int
    slot: int  # topic slot, published number mod 4
    object_digest: str  # blake2b-128 of the encoded object
    codec: str  # "fp32" …; a chain that starts with delta names its key frame in `base`
    base: VersionId | None = None  # the version a delta is against


@dataclass(frozen=True, slots=True)
class Head:
    """Newest (and best) published version; retained."""

    newest: Published
    spec_digest: str
    best: Published | None = None
    state: str = "running"  # "running" | "paused" | "finished"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prediction of a device."""

    device: str
    label: str
    confidence: float  # softmax probability of the label, [0, 1]
    utc_ns: int  # start of the window
    utc_err_ns: int
    modalities: tuple[str, ...]  # modalities that were there
    version: VersionId | None = None  # None: a model that no coordinator made


@dataclass(frozen=True, slots=True)
class LabelMessage:
    """A label that somebody gives to a device."""

    label: str
    start_utc_ns: int
    end_utc_ns: int
    utc_err_ns: int = 0


@dataclass(frozen=True, slots=True)
class SpecMessage:
    """The federation's spec; retained. `spec` is FederationSpec as canonical JSON."""

    spec: str
    digest: str
    coordinator: str  # random id of the running coordinator: two on one federation refuse each other
    stats: dict[str, Any] = field(default_factory=dict)


__all__ = [
    "PROTOCOL",
    "QUERY",
    "Fetch",
    "Head",
    "LabelMessage",
    "Plan",
    "Prediction",
    "Published",
    "Reply",
    "SpecMessage",
    "Status",
    "Task",
]

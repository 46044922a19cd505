"""Records that travel inside one process: sensor data, windows, labels, model tensors, data sets.

All frozen and slotted. Times are integer nanoseconds: `t_ns` on the host's monotonic clock (the stream clock of a
replay), `utc_ns` on the wire. Model tensors are plain numpy buffers, so that a device which only senses and predicts
needs no torch; `edge_sdk.learn` views the same memory as torch tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of consecutive samples of one stream, as a driver read them."""

    stream: str  # modality name
    seq: int  # counts up by one per chunk of a stream, from 0 at open()
    t_ns: int  # host monotonic time of the first sample, ns
    data: Array  # (n, channels…), SI units
    period_ns: int = 0  # sample period, ns; 0: see times_ns
    times_ns: Int64 | None = None  # (n,) per-sample times, ns, where the driver knows them
    t_err_ns: int = 0  # uncertainty of t_ns, ns
    gap_before: bool = False  # samples were lost, or a new segment starts, before this chunk
    flags: int = 0  # driver specific, 0 = nothing to say


@dataclass(frozen=True, slots=True)
class Window:
    """What had arrived for one index of the federation's time grid when its deadline passed."""

    index: int  # k: the window covers [k·hop, k·hop + length) on the stream clock
    t_ns: int  # start of the window on the stream clock, ns
    length_ns: int
    data: Mapping[str, Float32]  # modality → array of the spec's shape; absent modalities have no key
    age_s: Mapping[str, float]  # deadline − newest sample, s
    quality: Mapping[str, float]  # share of samples measured, times that of channels that look as learned once assessed


@dataclass(frozen=True, slots=True)
class LatePart:
    """One modality of a window that was complete only after the window's deadline."""

    index: int
    t_ns: int  # start of the window on the stream clock, ns
    modality: str
    data: Float32  # array of the spec's shape
    quality: float = 1.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A modality is now present for (nearly) the whole round set."""

    modality: str
    t_ns: int  # when it became complete, stream clock, ns
    count: int  # windows of the round set that have it


@dataclass(frozen=True, slots=True)
class Label:
    """A class name for a span of time on the stream clock."""

    start_ns: int
    end_ns: int
    name: str


@dataclass(frozen=True, slots=True)
class RoundData:
    """The windows that one task trains on, row i of every array belonging to indices[i]."""

    indices: Int64  # (n,) window indices (simulation: sample numbers)
    y: Int64  # (n,) class numbers; −1: not labelled yet
    x: Mapping[str, Float32]  # modality → (n, *shape); rows without the modality hold zeros
    has: Mapping[str, NDArray[np.bool_]]  # modality → (n,) is the row real?
    quality: Mapping[str, Float32] = field(default_factory=dict)  # modality → (n,) [0, 1], 0 where not real; no key: 1


@dataclass(frozen=True, slots=True)
class Segments:
    """The tensors of one module, flattened in the order of its layout (sorted tensor names)."""

    params: Float32  # (P,) trainable values; what codecs compress
    stats: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))  # (S,) running means and variances
    counters: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))  # (K,) newest wins


ModelTensors = Mapping[str, Segments]  # module name ("encoder.acc", "fusion", …) → its tensors


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one named tensor lies inside its segment."""

    name: str  # name in the module's state dict
    shape: tuple[int, ...]
    segment: str  # "params" | "stats" | "counters"
    offset: int  # first element inside the segment


@dataclass(frozen=True, slots=True)
class ModuleLayout:
    """The tensors of one module in order, and the sizes of its three segments (elements)."""

    tensors: tuple[TensorSpec, ...]
    params: int
    stats: int
    counters: int


ModelLayout = Mapping[str, ModuleLayout]  # module name → layout; sorted by name


@dataclass(frozen=True, slots=True, order=True)
class VersionId:
    """Identity of a model version; two versions are the same only if all three agree."""

    lineage: str  # random, drawn when a store is created or restored (32 hex digits)
    number: int  # updates applied so far; only grows
    digest: str  # blake2b-128 of the tensors (32 hex digits)


@dataclass(frozen=True, slots=True, order=True)
class UpdateKey:
    """Identity of an update: the device, the life of its outbox file, and a counter."""

    device: str
    incarnation: int  # 64 random bits made with the outbox file
    sequence: int


@dataclass(frozen=True, slots=True)
class Update:
    """What a client rule hands to the codec, and what the coordinator gets back from it."""

    key: UpdateKey
    task: str  # id of the task it answers
    base: VersionId  # version it was trained from
    spec_digest: str
    kind: str  # "delta" (trained − base) | "full" (trained tensors)
    tensors: Mapping[str, Segments]  # only the modules that were trained
    num_samples: int
    num_steps: int
    modalities: tuple[str, ...]  # modalities trained
    payload: Mapping[str, Array] = field(default_factory=dict)  # as the method's PayloadSchema declares
    train_s: float = 0.0  # time spent training, s
    wait_s: float = 0.0  # time spent waiting for modalities, s


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model as the coordinator published it."""

    id: VersionId
    tensors: ModelTensors
    extras: Mapping[str, Array] = field(default_factory=dict)  # the method's broadcast extras


@dataclass(frozen=True, slots=True)
class Dataset:
    """A labelled multi-modal data set in memory; every loader returns this."""

    name: str
    x: Mapping[str, Array]  # modality → (n, *shape) float32
    y: Int64  # (n,) class numbers in [0, C)
    classes: tuple[str, ...]  # C class names
    has: Mapping[str, NDArray[np.bool_]]  # modality → (n,) True where the row has the modality
    rate_hz: Mapping[str, float] = field(default_factory=dict)  # sampling rates of time series
    subject: Int64 | None = None  # (n,) person, speaker, video … a natural client
    split: NDArray[np.str_] | None = None  # (n,) "train" | "test"

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modality names in their fixed order."""
        return tuple(self.x)

    def take(self, rows: Int64) -> Dataset:
        """Returns the rows with these numbers as a data set of its own."""
        return Dataset(
            name=self.name,
            x={m: a[rows] for m, a in self.x.items()},
            y=self.y[rows],
            classes=self.classes,
            has={m: a[rows] for m, a in self.has.items()},
            rate_hz=self.rate_hz,
            subject=None if self.subject is None else self.subject[rows],
            split=None if self.split is None else self.split[rows],
        )


__all__ = [
    "Array",
    "Arrival",
    "Chunk",
    "Dataset",
    "Float32",
    "Int64",
    "Label",
    "LatePart",
    "ModelLayout",
    "ModelTensors",
    "ModelVersion",
    "ModuleLayout",
    "RoundData",
    "Segments",
    "TensorSpec",
    "Update",
    "UpdateKey",
    "VersionId",
    "Window",
]

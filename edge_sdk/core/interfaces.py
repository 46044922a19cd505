"""The seams: what a driver, a transport, an engine, a codec step and a label source must do.

Implementations are found by entry point (`edge_sdk.core.registry`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edge_sdk.core.clock import monotonic_ns
from edge_sdk.core.compute import Compute, InlineCompute
from edge_sdk.core.records import Arrival, Chunk, Float32, Int64, Label, ModelTensors, RoundData


@dataclass(frozen=True, slots=True)
class Found:
    """A device that a driver sees."""

    driver: str
    id: str  # stable across reboots: by-id path, serial number
    description: str
    toml: str  # lines to paste into a device's configuration


class Driver(ABC):
    """One sensor stream. Everything but `read` may be left as it is.

    `streams.pump` owns the thread that calls these; a driver needs no lock.

    Args:
        stream: modality name that chunks carry.
        options: the driver's own keys of `[sensors.<modality>]`.
    """

    paced: ClassVar[bool] = True  # read() itself waits for real time; False: the driver is always ready

    def __init__(self, stream: str, options: Mapping[str, Any]) -> None:
        self.stream = stream
        self.options = options
        self.now_ns: Callable[[], int] = monotonic_ns  # the pump puts the device's stream clock here
        self.speed = 1.0  # seconds of the stream clock per second of the host; the pump sets it
        self.epoch_ns: int | None = None  # replays: where a device's replayed time begins; the pump sets it

    @abstractmethod
    def open(self) -> None:
        """Opens the device; SensorUnavailable says what to do when it cannot."""

    @abstractmethod
    def read(self, timeout_s: float) -> Chunk | None:
        """Blocks for at most `timeout_s`; None: nothing new. EOFError: a finite source is exhausted."""

    @abstractmethod
    def close(self) -> None:
        """Closes the device; may be called twice."""

    @property
    def columns(self) -> Mapping[str, slice]:
        """Where each quantity lies among the columns of the data, for modalities that share a device; {}: no names."""
        return {}

    @staticmethod
    def detect() -> list[Found]:
        """Returns what is connected; never prompts, never blocks for more than a second."""
        return []


@dataclass(frozen=True, slots=True)
class Message:
    """A message that arrived."""

    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True, slots=True)
class Connected:
    """The transport is connected (again); retained state and subscriptions of the peer are gone."""

    count: int  # 1 for the first connection


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The transport lost its connection and is trying to come back."""

    reason: str


TransportEvent = Message | Connected | Disconnected


class Transport(ABC):
    """Publish and subscribe with at-least-once delivery while connected, and nothing kept while not.

    Connecting, reconnecting with back-off and re-subscribing happen inside; `events()` is the one ordered
    stream of what happened.
    """

    @abstractmethod
    async def start(self) -> None:
        """Begins to connect; returns at once."""

    @abstractmethod
    async def aclose(self) -> None:
        """Disconnects for good."""

    @property
    @abstractmethod
    def connected(self) -> bool:
        """True between Connected and Disconnected."""

    @abstractmethod
    async def subscribe(self, *filters: str) -> None:
        """Subscribes now and after every reconnect."""

    @abstractmethod
    async def unsubscribe(self, *filters: str) -> None:
        """Takes subscriptions back."""

    @abstractmethod
    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Returns when the broker has it (QoS 1); NotConnected if the connection is or goes down."""

    @abstractmethod
    def events(self) -> AsyncIterator[TransportEvent]:
        """Yields messages and connection changes in the order in which they happened; one consumer."""

    def defer(self, *topics: str) -> None:  # noqa: B027  a transport need not make use of it
        """Says that messages to these topics may be handed over together with the next event of another kind.

        The order of events stays. It saves waking a consumer that would only note what they say; a transport that
        gains nothing by it hands them over at once.
        """


@dataclass(frozen=True, slots=True)
class GraphInfo:
    """What an exported graph says of itself; written beside it as JSON."""

    modalities: tuple[str, ...]  # graph inputs in this order: <modality> float32 (B, *shape), then mask (B, M)
    shapes: Mapping[str, tuple[int, ...]]
    classes: tuple[str, ...]
    layout_digest: str  # digest of the model layout its weights come from
    shape_digest: str = ""  # FederationSpec.shape_digest of the spec it was exported for


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is asked to run on; one that cannot do it refuses, or says that it is degraded."""

    provider: str = "cpu"  # "cpu" | "cuda" | "tensorrt"
    fallback: bool = False  # the CPU may serve where the provider does not work; the engine is then degraded
    precision: str = "fp32"  # "fp32" | "fp16"
    threads: int = 1  # of one prediction, on the CPU
    max_batch: int = 64  # rows that a built engine takes at once
    cache: Path | None = None  # folder for built engines; None: they are built anew
    build_limit_s: float = 1800.0  # for building one


DEFAULT_OPTIONS = EngineOptions()


class Engine(ABC):
    """Runs the fused model: any subset of modalities, one graph.

    `open` is the uniform factory of the group `edge_sdk.engines`. `run` may be called from several threads, also while
    the next engine is built with `with_tensors`; an engine never changes after it was made.
    """

    provider: str  # what really runs it, e.g. "CPUExecutionProvider"
    info: GraphInfo  # what the engine's graph says of itself
    degraded: str = ""  # why it does not run on what was asked for

    @classmethod
    @abstractmethod
    def open(cls, graph: Path, tensors: ModelTensors, options: EngineOptions = DEFAULT_OPTIONS) -> Engine:
        """Returns an engine for the graph that `exporters.onnx` wrote (the JSON beside it included).

        Raises:
            EngineError: graph or sidecar are missing, corrupt or do not belong together; or what was asked for is not
                here.
            ShapeMismatch: the tensors do not fit the layout of the graph.
        """

    @classmethod
    def takes_long(cls, options: EngineOptions) -> bool:
        """Says whether making an engine may take minutes, so that something else should predict meanwhile."""
        return False

    @abstractmethod
    def run(self, x: Mapping[str, Float32], mask: Float32) -> Float32:
        """Returns logits float32 (B, C).

        Args:
            x: modality → float32 (B, *shape); rows whose mask is 0 may hold anything finite.
            mask: float32 (B, M), 1 where the modality is there, in the order of the spec.
        """

    @abstractmethod
    def with_tensors(self, tensors: ModelTensors) -> Engine:
        """Returns a new engine with these weights beside this one, without a new export."""


class CodecStep(ABC):
    """One step of a codec chain; stateless. Bytes and arrays in, bytes and arrays out."""

    name: ClassVar[str]


class LabelSource(ABC):
    """Where labels come from."""

    compute: Compute = InlineCompute()  # the device puts its own here; what may block, as opening a port, goes there

    @abstractmethod
    def labels(self) -> AsyncIterator[Label]:
        """Yields labels on the device's stream clock as they become known; ends or waits for ever."""


class RoundSet(ABC):
    """The windows frozen for one task."""

    indices: Int64  # (n,)

    @abstractmethod
    async def next_arrival(self) -> Arrival | None:
        """Waits for the next modality to become complete; None: no further one will come (`wait_limit_s`)."""

    @abstractmethod
    def data(self, modalities: tuple[str, ...]) -> RoundData:
        """Returns what has arrived of these modalities, labelled rows only.

        Under `incomplete = "drop"` rows that lack one of these modalities are left out.
        """


class RoundSource(ABC):
    """Where a trainer gets its data: the live reservoir, or the simulator's script."""

    @abstractmethod
    async def freeze(self, task_number: int, modalities: tuple[str, ...]) -> RoundSet:
        """Waits until there is enough to train on, then returns the round set of this task."""


def spans(widths: Iterable[tuple[str, int]]) -> dict[str, slice]:
    """Returns name → columns of quantities that stand side by side, from (name, number of columns)."""
    found, at = {}, 0
    for name, width in widths:
        found[name] = slice(at, at + width)
        at += width
    return found


def mask_row(present: tuple[str, ...], modalities: tuple[str, ...]) -> Float32:
    """Returns float32 (1, M): 1 for every modality in `present`."""
    return np.array([[1.0 if m in present else 0.0 for m in modalities]], np.float32)


__all__ = [
    "DEFAULT_OPTIONS",
    "CodecStep",
    "Connected",
    "Disconnected",
    "Driver",
    "Engine",
    "EngineOptions",
    "Found",
    "GraphInfo",
    "LabelSource",
    "Message",
    "RoundSet",
    "RoundSource",
    "Transport",
    "TransportEvent",
    "mask_row",
    "spans",
]

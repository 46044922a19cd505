"""What a store keeps: a journal of decisions, checkpoints, published versions, open tasks and receipts.

The journal holds *decisions, not their causes*: which update, in its compressed form, was mixed at which rates by which
kernel, and what changed in the method's state. Replay does elementwise arithmetic only; it never runs admission or a
rule again. Recovery is the newest checkpoint plus the entries after it.

In synchronous rounds an update is admitted first (`Received`, durable before its device hears of it) and weighed with
its cohort later (`RoundEntry`); the round under way is remembered too (`OpenRound`), so that a restart goes on with it.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.messages import Published
from edge_sdk.core.records import ModelTensors, UpdateKey, VersionId

Floats = NDArray[np.float64]

RECEIPTS = 4  # newest accepted updates of a device whose reply can be repeated; an outbox sends one after the other
CHECKPOINTS = 2  # kept for recovery: the newest, and one before it


def new_lineage() -> str:
    """Returns the random name of a new line of versions, 32 hex digits."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision: this update was mixed in, and how."""

    version: int  # number it made
    key: UpdateKey
    task: str
    base: VersionId
    digest: str  # of the encoded update
    chain: str  # codec chain of the body
    kernel: str  # name and version of the arithmetic
    op: str  # "mix" | "add"
    rates: Mapping[str, float]  # module → rate, float64
    patch: Mapping[str, Floats]  # entries of the rule's state that changed
    staleness: int
    num_samples: int
    num_steps: int
    modalities: tuple[str, ...]
    norm: float  # root mean square of the change, over params
    utc_ns: int
    body: bytes  # the encoded update as it came; b"" once no replay needs it


@dataclass(frozen=True, slots=True)
class Received:
    """An admitted update of a round: a member of its cohort, or an answer to a query."""

    version: int  # number that its round makes
    kind: str  # "train" | "query"
    key: UpdateKey
    task: str
    base: VersionId
    digest: str  # of the encoded update
    chain: str  # codec chain of the body
    num_samples: int
    num_steps: int
    modalities: tuple[str, ...]
    norm: float  # root mean square of the change, over params; 0 for an answer
    utc_ns: int
    body: bytes  # the encoded update as it came; b"" once no replay needs it


@dataclass(frozen=True, slots=True)
class RoundEntry:
    """One decision about a whole cohort: these updates were averaged with these weights."""

    version: int  # number it made
    base: VersionId  # what everybody trained from
    kernel: str  # name and version of the arithmetic
    weights: Mapping[str, Mapping[str, float]]  # block → device → weight, float64; see learn.records.Weights
    keep: Mapping[str, float]  # block → weight of the value before
    replaced: ModelTensors  # modules that the rule made itself
    patch: Mapping[str, Floats]  # entries of the rule's state that changed
    utc_ns: int
    members: tuple[Received, ...]  # sorted by device


@dataclass(frozen=True, slots=True)
class OpenRound:
    """A synchronous round under way."""

    version: int  # number that it is going to make
    spec_digest: str  # what it was planned for
    stage: str  # "query" | "train"
    patch: Mapping[str, Floats] = field(default_factory=dict)  # of the rule's state, from answers


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an accepted update was answered, so that the answer can be given again."""

    key: UpdateKey
    digest: str  # of the encoded update
    version: int  # number it made
    lineage: str


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task that a device has been given and has not answered."""

    id: str
    device: str
    number: int  # counts the device's tasks
    base: VersionId
    expires_utc_ns: int  # 0: never
    modalities: tuple[str, ...]
    epochs: int
    lr: float
    batch_size: int
    kind: str = "train"  # "train" | "query"
    phase: str = ""  # plan.phase as a synchronous rule planned it


@dataclass(frozen=True, slots=True)
class Stored:
    """A published version that is held."""

    published: Published
    order: int  # counts published versions; order mod 4 is the slot
    updates: int = 0  # updates applied when it was made
    acc: float | None = None  # held-out accuracy, where it was evaluated

    @property
    def id(self) -> VersionId:
        """Its identity."""
        return self.published.id


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The model and the rule's state at one version."""

    number: int
    updates: int  # updates applied so far, rollbacks not counted
    tensors: ModelTensors  # own memory, writable
    state: Mapping[str, Floats]


@dataclass(frozen=True, slots=True)
class Rollback:
    """Versions in (target, made) were undone: version `made` has the tensors of `target`."""

    made: int
    target: int


@dataclass(frozen=True, slots=True)
class About:
    """What a store says of itself."""

    federation: str
    spec: str  # canonical JSON
    shape_digest: str
    kernel: str
    capability: str  # CPU capability class that the arithmetic ran on


@dataclass(frozen=True, slots=True)
class Journal:
    """Small facts that are read once at start."""

    tasks: tuple[OpenTask, ...] = ()
    receipts: tuple[Receipt, ...] = ()
    versions: tuple[Stored, ...] = ()
    rollbacks: tuple[Rollback, ...] = ()
    task_numbers: Mapping[str, int] = field(default_factory=dict)  # device → tasks given
    sequences: Mapping[tuple[str, int], int] = field(default_factory=dict)  # (device, incarnation) → highest applied
    norms: tuple[float, ...] = ()  # of the newest accepted updates, oldest first
    round: OpenRound | None = None
    received: tuple[Received, ...] = ()  # of the open round, sorted by device


class Store(ABC):
    """Where a coordinator keeps what must survive it.

    Methods block; the service calls them on one ordered lane. Whatever cannot be written raises StoreError and
    leaves the store as it was.
    """

    lineage: str

    @abstractmethod
    def open(self) -> About | None:
        """Takes the store for this process; returns what it holds, None if it is new.

        Raises:
            StoreError: another process has it, or it cannot be read.
        """

    @abstractmethod
    def create(self, about: About, checkpoint: Checkpoint) -> None:
        """Makes a new store, with a lineage of its own and a first checkpoint."""

    @abstractmethod
    def amend(self, about: About) -> None:
        """Replaces what the store says of itself: a changed spec, another machine."""

    @abstractmethod
    def journal(self) -> Journal:
        """Returns the small facts."""

    @abstractmethod
    def newest_checkpoint(self) -> Checkpoint:
        """Returns the newest checkpoint that is whole."""

    @abstractmethod
    def entries(self, after: int) -> Iterator[Entry | RoundEntry]:
        """Yields the journal after a version number, in order."""

    @abstractmethod
    def commit(self, entry: Entry) -> None:
        """Makes a decision durable: journal entry and receipt are added and the task is closed, or nothing happens."""

    @abstractmethod
    def admit(self, received: Received) -> None:
        """Makes an update of the open round durable: with its receipt, its task closed, or nothing happens."""

    @abstractmethod
    def commit_round(self, entry: RoundEntry) -> None:
        """Makes a decision about admitted updates durable; the round is not open any more."""

    @abstractmethod
    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint and drops what the keep policy does not need any more."""

    @abstractmethod
    def open_tasks(self, tasks: tuple[OpenTask, ...], stage: OpenRound | None = None) -> None:
        """Remembers tasks before they are sent, all or none, and the stage of a round that they make up.

        A first stage ("query", or "train" where no query came before) forgets what an abandoned attempt received.
        """

    @abstractmethod
    def close_tasks(self, ids: tuple[str, ...]) -> None:
        """Forgets tasks that lapsed or were answered with a refusal."""

    @abstractmethod
    def save_version(self, stored: Stored, tensors: ModelTensors, data: bytes) -> None:
        """Keeps a published version: decoded tensors and encoded object."""

    @abstractmethod
    def save_accuracy(self, number: int, acc: float) -> None:
        """Remembers how a published version did."""

    @abstractmethod
    def tensors(self, version: VersionId) -> ModelTensors:
        """Returns the tensors of a held version, memory-mapped where the store has files; StoreError if not held."""

    @abstractmethod
    def data(self, version: VersionId) -> bytes:
        """Returns the encoded object of a held version; StoreError if not held."""

    @abstractmethod
    def prune(self, keep: frozenset[int], *, newest: int, budget_bytes: int) -> tuple[frozenset[int], bool]:
        """Drops published versions that nothing needs; none where everything is kept.

        Args:
            keep: numbers named by open tasks, the best, key frames in use: dropped only over budget, oldest first.
            newest: so many newest ones always stay.
            budget_bytes: for all of them together.

        Returns:
            The numbers that are still held, and whether the journal alone keeps the store over budget, so that a
            checkpoint would help.
        """

    @abstractmethod
    def roll_back(self, rollback: Rollback, checkpoint: Checkpoint) -> None:
        """Undoes versions: the checkpoint (number `made`, tensors of `target`) counts from now on.

        Tasks that start from an undone version are closed.
        """

    @abstractmethod
    def enrolled(self) -> frozenset[str]:
        """Returns the devices that were enrolled by hand."""

    def note(self, state: str) -> None:  # noqa: B027  nothing to write where nobody can look
        """Tells those who look at the store from outside what its holder does; "" while it is not serving."""

    @abstractmethod
    def close(self) -> None:
        """Lets the store go; may be called twice."""


__all__ = [
    "CHECKPOINTS",
    "RECEIPTS",
    "About",
    "Checkpoint",
    "Entry",
    "Floats",
    "Journal",
    "OpenRound",
    "OpenTask",
    "Receipt",
    "Received",
    "Rollback",
    "RoundEntry",
    "Store",
    "Stored",
    "new_lineage",
]

"""Records of local training: batches, phases, the jobs that carry them into another process, and what rules see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_sdk.core.messages import Plan
from edge_sdk.core.records import Array, Arrival, ModelLayout, ModelTensors, RoundData
from edge_sdk.core.spec import FederationSpec

Memory = dict[str, Array]  # a client rule's private tensors; numpy, so that it can be stored and cross processes


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a round set."""

    x: Mapping[str, torch.Tensor]  # modality → float32 (B, *shape)
    y: torch.Tensor  # int64 (B,)
    mask: torch.Tensor  # float32 (B, M), 1 where the modality is there; columns in the order of the spec
    rows: torch.Tensor  # int64 (B,) row numbers in RoundData: the key of anchors and other per-sample memory


@dataclass(frozen=True, slots=True)
class Out:
    """What a forward pass gives."""

    features: Mapping[str, torch.Tensor]  # modality → (B, D)
    logits: torch.Tensor  # (B, C)
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method needs of the model besides encoders and fusion; `models.build` makes it."""

    heads: bool = False  # shared uni-modal heads: modules "head.<modality>", linear D → C
    gates: bool = False  # module "gates", see models.gates; between encoders that can be cut, with a head per modality
    mlp: bool = False  # heads and fusion have a hidden layer of `spec.model.hidden` units, whatever the spec's fusion
    cosine_head: bool = False  # fusion with normalised class vectors


NO_NEEDS = Needs()


class FusedModel(Protocol):
    """What rules may do with the model. Modules: "encoder.<m>", "fusion", and "head.<m>" and "gates" where needed."""

    modalities: tuple[str, ...]
    training: bool

    def encode(
        self, x: Mapping[str, torch.Tensor], only: tuple[str, ...] = (), mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        """Returns features (B, D) of the given modalities (all of x if `only` is empty), normalisation included.

        `mask` (B, M) says what gates may see; by default all of what is encoded. Without gates it changes nothing.
        """

    def fuse(self, features: Mapping[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, C); features that are absent or masked count as zeros."""

    def concatenated(self, features: Mapping[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """Returns what the fusion reads, (B, M·D): the masked features side by side."""

    def module(self, name: str) -> nn.Module:
        """Returns a module by its name in the federation's layout."""

    def train(self, mode: bool = True) -> Any:  # noqa: FBT001, FBT002 (torch's signature)
        """Switches all modules to training mode, or to evaluation mode."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One stage of a local round. A round ends with the phase whose `final` is true."""

    name: str  # the method's word for it: "anchor", "fused", …
    modalities: tuple[str, ...]  # modalities it reads
    train: tuple[str, ...]  # modules of the shared model that it trains
    epochs: int
    final: bool = False  # its tensors are the update
    keep: tuple[str, ...] = ()  # modules taken from earlier phases' results instead of the start version
    asks: bool = False  # it answers a query: `ClientRule.answer` speaks, and no tensor is sent
    send: tuple[str, ...] | None = None  # final: trained modules that the update carries; None: all of `train`
    steps: int = 0  # optimiser steps, in the place of `epochs`: the last pass over the rows may be cut short; 0: epochs


@dataclass(frozen=True, slots=True)
class RoundView:
    """What `ClientRule.schedule` decides from; called again after every arrival and every finished phase."""

    plan: Plan
    arrivals: tuple[Arrival, ...]  # in order of completion
    absent: tuple[str, ...]  # planned modalities that will not come in this round
    finished: tuple[Phase, ...]

    @property
    def here(self) -> tuple[str, ...]:
        """Modalities that have arrived, in order of arrival."""
        return tuple(a.modality for a in self.arrivals)

    @property
    def in_order(self) -> tuple[str, ...]:
        """Planned modalities that have arrived, by time of arrival, ties by the order of the plan."""
        planned = self.plan.modalities
        arrivals = [a for a in self.arrivals if a.modality in planned]
        return tuple(a.modality for a in sorted(arrivals, key=lambda a: (a.t_ns, planned.index(a.modality))))

    @property
    def waiting(self) -> tuple[str, ...]:
        """Planned modalities that may still come."""
        return tuple(m for m in self.plan.modalities if m not in self.here and m not in self.absent)


@dataclass(frozen=True, slots=True)
class Effort:
    """How gently a phase is trained, as the device's budget has it."""

    frozen: tuple[str, ...] = ()  # modules of phase.train that are left as they are, and not sent
    precision: Literal["float32", "bfloat16"] = "float32"  # of the forward pass; parameters and losses are float32


FULL = Effort()


@dataclass(frozen=True, slots=True)
class PhaseJob:
    """Everything a phase needs; crosses a process border."""

    spec: FederationSpec
    method: str  # registry name, resolved again in the worker
    phase: Phase
    view: RoundView
    plan: Plan
    start: ModelTensors  # the published version the task starts from
    current: ModelTensors  # `tensors` of the previous phase's result, empty at first
    data: RoundData
    memory: Memory  # kept across rounds
    carry: Memory  # kept across the phases of one round
    extras: Mapping[str, Array]  # what the server rule sent for this task
    seed: int  # derived from (seed, device, task number), one for all phases: the loop keys its streams by phase
    effort: Effort = FULL


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """What comes back from a phase."""

    tensors: ModelTensors  # full values after training: phase.train; before the final phase also what earlier ones did
    memory: Memory
    carry: Memory
    payload: Mapping[str, Array]  # of the final phase
    num_samples: int
    num_steps: int
    loss: float  # mean of the last epoch
    train_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Samples:
    """The round set as tensors, made once per phase; row i everywhere is row i of RoundData."""

    x: Mapping[str, torch.Tensor]  # modality of the phase → float32 (n, *shape)
    y: torch.Tensor  # int64 (n,)
    mask: torch.Tensor  # float32 (n, M); columns of modalities that the phase does not read are 0
    rows: torch.Tensor  # int64 (r,) rows to train on: labelled, with at least one modality of the phase

    def batch(self, rows: torch.Tensor) -> Batch:
        """Returns these rows as a batch."""
        x = {m: a.index_select(0, rows) for m, a in self.x.items()}  # half the time of a[rows] for windows and images
        return Batch(x, self.y[rows], self.mask[rows], rows)


@dataclass(slots=True)
class ClientContext:
    """What the hooks of a client rule work on during one phase."""

    job: PhaseJob
    model: FusedModel  # live; starts at job.start (and job.current for phase.keep)
    samples: Samples
    rng: torch.Generator  # the rule's own; batches are drawn from another one
    memory: Memory  # change in `begin` and `end`
    carry: Memory
    own: nn.ModuleDict = field(default_factory=nn.ModuleDict)  # private modules, trained by the same optimiser
    scratch: dict[str, Any] = field(default_factory=dict)  # a rule's own notes within the phase
    epoch: int = 0  # of this phase, from 0
    num_steps: int = 0  # optimiser steps done in this phase

    @property
    def spec(self) -> FederationSpec:
        """The federation's spec."""
        return self.job.spec

    @property
    def phase(self) -> Phase:
        """The phase being trained."""
        return self.job.phase

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.job.spec.classes)


State = Mapping[str, NDArray[np.float64]]  # a server rule's state: flat table, so that a change of it is a patch


@dataclass(frozen=True, slots=True)
class UpdateView:
    """What a server rule sees of an update: its header, never its tensors."""

    device: str
    version: int  # t: the server's version before this update
    staleness: int  # t − base version
    modules: tuple[str, ...]  # modules that the update carries
    modalities: tuple[str, ...]
    num_samples: int
    num_steps: int
    payload: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Rates:
    """What an async rule decides: θ_k ← θ_k + r_k(base + Δ − θ_k) ("mix") or θ_k ← θ_k + r_k Δ ("add")."""

    by_module: Mapping[str, float]
    op: str = "mix"

    @classmethod
    def same(cls, modules: tuple[str, ...], rate: float, op: str = "mix") -> Rates:
        """One rate for every module."""
        return cls(dict.fromkeys(modules, rate), op)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that waits for work when a synchronous round begins."""

    device: str
    modalities: tuple[str, ...]  # of the spec that it has, in the order of the spec


@dataclass(frozen=True, slots=True)
class Query:
    """What a device is asked before the round."""

    device: str
    phase: str = ""  # what is asked, `plan.phase` there; a method's own word
    epochs: int = 0  # local epochs before the answer; 0: none
    modalities: tuple[str, ...] = ()  # to look at; (): all that the device has


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device said to a query."""

    device: str
    modalities: tuple[str, ...]  # looked at
    num_samples: int
    payload: Mapping[str, Array]  # as `Method.answers` declares


@dataclass(frozen=True, slots=True)
class Pool:
    """Whom a synchronous rule selects from."""

    round: int  # version number that the round starts from: rounds done so far
    fleet: tuple[Candidate, ...]  # waiting devices, sorted by id
    answers: tuple[Answer, ...]  # to this round's queries, sorted by device
    size: int  # K: devices to select, at least 1 and at most len(fleet)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who trains what in a round."""

    device: str
    modalities: tuple[str, ...]  # to train; at least one that the device has
    phase: str = ""  # the method's word for what this device does, `plan.phase` there
    epochs: int = 0  # local epochs; 0: the spec's
    lr_scale: float = 1.0  # times the learning rate of the round


@dataclass(frozen=True, slots=True)
class Member:
    """One update of a cohort, tensors included: synchronous rules may look at them."""

    device: str
    modalities: tuple[str, ...]  # trained
    num_samples: int
    num_steps: int
    payload: Mapping[str, Array]
    tensors: ModelTensors  # full values after training, of the modules that the update carries


@dataclass(frozen=True, slots=True)
class Cohort:
    """The updates of one synchronous round."""

    round: int  # version number that everybody trained from
    start: ModelTensors  # that version: as published, so exactly what everybody began with
    members: tuple[Member, ...]  # sorted by device; at least one
    layout: ModelLayout = field(default_factory=dict)  # of the model: where the tensors of a module lie


@dataclass(frozen=True, slots=True)
class Weights:
    """What a synchronous rule decides: θ_b ← keep_b θ_b + Σ_k w_{b,k} θ_{k,b} for every block b.

    A block is a module ("encoder.acc") or one tensor of it ("encoder.acc:conv.weight"). Modules of which no block is
    named stay as they are; where one tensor of a module is named, those not named stay too.
    """

    by_block: Mapping[str, Mapping[str, float]]  # block → device → weight; devices that carry the module
    keep: Mapping[str, float] = field(default_factory=dict)  # block → weight of the present value; missing: 0


__all__ = [
    "FULL",
    "NO_NEEDS",
    "Answer",
    "Assignment",
    "Batch",
    "Candidate",
    "ClientContext",
    "Cohort",
    "Effort",
    "FusedModel",
    "Member",
    "Memory",
    "Needs",
    "Out",
    "Phase",
    "PhaseJob",
    "PhaseResult",
    "Pool",
    "Query",
    "Rates",
    "RoundView",
    "Samples",
    "State",
    "UpdateView",
    "Weights",
]

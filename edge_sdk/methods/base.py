"""What a method is: a client rule, a server rule, and a description of what they say to each other.

Rules hold equations only. The local loop stands in `learn.local_training` and calls the client hooks; the arithmetic
on the global parameters stands in `learn.blending` and does what `Rates` say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)

from edge_sdk.core import registry
from edge_sdk.core.config import parse
from edge_sdk.core.errors import ConfigError, Reason, UpdateRejected
from edge_sdk.core.records import Array, ModelTensors
from edge_sdk.core.spec import FederationSpec, Model
from edge_sdk.learn import aggregation
from edge_sdk.learn.records import (
    NO_NEEDS,
    Answer,
    Assignment,
    Batch,
    Candidate,
    ClientContext,
    Cohort,
    Needs,
    Out,
    Phase,
    Pool,
    Query,
    Rates,
    RoundView,
    State,
    UpdateView,
    Weights,
)

C = TypeVar("C", bound=Model)


class NoConfig(Model):
    """A rule without options."""


class ClientRule(Generic[C]):
    """What a method does on a device. Every hook has the plain fused training as its default.

    Args:
        config: the method's options.
    """

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    def held_out(self) -> float:
        """Share of a device's windows that the method holds out to judge by, [0, 1); 0: it needs none."""
        return 0.0

    def schedule(self, view: RoundView) -> tuple[Phase, ...]:
        """Returns the phases to run now, in order, finished ones left out; () waits for the next arrival."""
        return () if view.waiting else (fused_phase(view),)

    def stacks(self, phase: Phase) -> bool:
        """Returns True if the phase may be trained for several devices at once (`learn.stacked_training`).

        `forward` and `loss_terms` are then called for all of them together, under `torch.func.vmap`: they may read the
        model, `ctx.own`, the batch and what all devices have in common, and must not look at the numbers (`if`,
        `float()`) nor note anything. `after_backward` and `end_epoch` are not called. Only `begin` draws at random.
        """
        return False

    def begin(self, ctx: ClientContext) -> None:
        """Before the first batch of a phase: private modules into `ctx.own`, notes into `ctx.scratch`."""

    def forward(self, ctx: ClientContext, batch: Batch) -> Out:
        """Returns features and logits of a batch."""
        features = ctx.model.encode(batch.x, ctx.phase.modalities, batch.mask)
        return Out(features, ctx.model.fuse(features, batch.mask))

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        """Yields (weight, scalar tensor) terms of the loss."""
        yield 1.0, F.cross_entropy(out.logits, batch.y)

    def after_backward(self, ctx: ClientContext, batch: Batch, out: Out) -> None:
        """Between backward and the optimiser's step: gradients may be changed."""

    def end_epoch(self, ctx: ClientContext) -> None:
        """After every epoch."""

    def end(self, ctx: ClientContext) -> None:
        """After the last epoch of a phase: what has to outlive it goes into `ctx.memory` or `ctx.carry`."""

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        """After the final phase: what is sent besides the tensors, as `Method.uploads` declares."""
        return {}

    def inquire(self, view: RoundView) -> tuple[Phase, ...]:
        """Returns the phases that answer a query, as `schedule` does for a training task; `plan.phase` says which."""
        return () if view.waiting else (query_phase(view),)

    def answer(self, ctx: ClientContext) -> dict[str, Array]:
        """After the last phase of a query: what is answered, as `Method.answers` declares."""
        return {}


class AsyncServerRule(Generic[C]):
    """What a method does with one update. Pure: state in, rates and a patch of the state out.

    Args:
        config: the method's options.
        spec: the federation's spec.
    """

    def __init__(self, config: C, spec: FederationSpec) -> None:
        self.config = config
        self.spec = spec

    def init(self) -> State:
        """Returns the state before the first update."""
        return {}

    def initial(self, tensors: ModelTensors) -> ModelTensors:
        """Returns version 0 from a freshly built model; a rule changes what its options say the model begins with."""
        return tensors

    def extras(self, state: State, device: str) -> dict[str, Array]:
        """Returns what goes down with a task for this device."""
        return {}

    def stage(self, state: State, device: str) -> str:
        """Returns the stage that this device's next task is in, `plan.phase` there; "" where a method has only one."""
        return ""

    def rates(self, state: State, update: UpdateView) -> tuple[Rates, State]:
        """Returns one rate per module of the update, and the entries of the state that change.

        Raises:
            UpdateRejected: the method drops this update; nothing changes then.
        """
        raise ConfigError(f"{type(self).__qualname__} must define rates(state, update)")

    def figures(self, state: State) -> dict[str, float]:
        """Returns what a live view may show of the state, e.g. {"imbalance.acc": 0.1}."""
        return {}


class SyncServerRule(Generic[C]):
    """What a method does in rounds. Pure: state in, decisions and a patch of the state out.

    A round: `query` → the devices' answers → `answered` → `select` → `extras` for each task → the cohort's updates →
    `weights` and `replaced`. The cohort is whoever came in time; it may be smaller than what was selected. Every
    default is FedAvg's.

    Args:
        config: the method's options.
        spec: the federation's spec.
    """

    def __init__(self, config: C, spec: FederationSpec) -> None:
        self.config = config
        self.spec = spec

    def init(self) -> State:
        """Returns the state before the first round."""
        return {}

    def initial(self, tensors: ModelTensors) -> ModelTensors:
        """Returns version 0 from a freshly built model; a rule changes what its options say the model begins with."""
        return tensors

    def query(
        self, state: State, fleet: tuple[Candidate, ...], size: int, rng: np.random.Generator
    ) -> tuple[Query, ...]:
        """Returns what is asked before the selection; () asks nothing. `size` is K of `Pool`."""
        return ()

    def answered(self, state: State, answers: tuple[Answer, ...]) -> State:
        """Returns the entries of the state that the answers change; `select` sees the state after it."""
        return {}

    def select(self, state: State, pool: Pool, rng: np.random.Generator) -> tuple[Assignment, ...]:
        """Returns who trains what; by default K devices uniformly without replacement, each with all that it has."""
        chosen = sorted(rng.choice(len(pool.fleet), pool.size, replace=False).tolist())
        return tuple(Assignment(pool.fleet[i].device, pool.fleet[i].modalities) for i in chosen)

    def extras(self, state: State, task: Assignment | Query) -> dict[str, Array]:
        """Returns what goes down with a task; asked again if the task has to be sent again."""
        return {}

    def weights(self, state: State, cohort: Cohort) -> tuple[Weights, State]:
        """Returns the weights of the cohort's updates, and the entries of the state that change."""
        return aggregation.modality_wise(cohort), {}

    def replaced(self, state: State, cohort: Cohort) -> ModelTensors:
        """Returns modules whose new values no weights can say, whole; they win over `weights`. A rule says why.

        `state` is what `weights` saw: that before the round, without the entries that `weights` changed.
        """
        return {}

    def figures(self, state: State) -> dict[str, float]:
        """Returns what a live view may show of the state."""
        return {}


def query_phase(view: RoundView) -> Phase:
    """Returns the one phase of a query: a look at everything that is here, after plan.epochs of fused training."""
    fused = fused_phase(view)
    return replace(fused, name="query", train=fused.train if view.plan.epochs else (), asks=True)


def fused_phase(view: RoundView, *, keep: tuple[str, ...] = ()) -> Phase:
    """Returns the fused training of everything that is here, as the final phase."""
    here = tuple(m for m in view.plan.modalities if m in view.here)
    modules = (*(f"encoder.{m}" for m in here), "fusion")
    return Phase("fused", here, modules, view.plan.epochs, final=True, keep=keep)


@dataclass(frozen=True, slots=True)
class PayloadField:
    """One array of a payload; `{modality}` in the name stands for every modality of the spec."""

    name: str
    shape: tuple[
        str | int, ...
    ] = ()  # "C" classes, "D" feature size, "M" modalities, "M*D", "M+1", a number; "*" any size
    dtype: str = "float32"
    low: float = -np.inf
    high: float = np.inf
    required: bool = False


@dataclass(frozen=True, slots=True)
class PayloadSchema:
    """Everything a method sends up besides tensors; admission checks it."""

    fields: tuple[PayloadField, ...] = ()

    def check(self, payload: Mapping[str, Array], spec: FederationSpec) -> None:
        """Raises UpdateRejected(PAYLOAD) if an array is undeclared, missing, of wrong shape or out of range."""
        known = {
            f.name.format(modality=m): f
            for f in self.fields
            for m in (spec.modality_names if "{modality}" in f.name else ("",))
        }
        for name in payload.keys() - known.keys():
            raise UpdateRejected(Reason.PAYLOAD, f"{name!r} is not declared by the method; declared: {sorted(known)}")
        for name, field in known.items():
            if name in payload:
                _check_field(name, field, payload[name], spec)
            elif field.required:
                raise UpdateRejected(Reason.PAYLOAD, f"{name!r} is missing")


def _check_field(name: str, field: PayloadField, value: Array, spec: FederationSpec) -> None:
    sizes: dict[str | int, int] = {
        "C": len(spec.classes), "D": spec.model.feature_dim, "M": len(spec.modalities),
        "M*D": len(spec.modalities) * spec.model.feature_dim, "M+1": len(spec.modalities) + 1,
    }  # fmt: skip
    sizes["*"] = value.shape[-1] if value.ndim else 0  # only a last axis may be free; the wire bounds it
    shape = tuple(n if isinstance(n, int) else sizes[n] for n in field.shape)
    if value.shape != shape or value.dtype != np.dtype(field.dtype):
        raise UpdateRejected(
            Reason.PAYLOAD, f"{name!r}: expected {field.dtype} {shape}, found {value.dtype} {value.shape}"
        )
    if not bool(np.isfinite(value).all()):
        raise UpdateRejected(Reason.PAYLOAD, f"{name!r}: not finite")
    if not bool(np.all((value >= field.low) & (value <= field.high))):
        raise UpdateRejected(Reason.PAYLOAD, f"{name!r}: outside [{field.low:g}, {field.high:g}]")


@dataclass(frozen=True, slots=True)
class Method:
    """A registered method."""

    name: str
    config: type[Model]
    client: type[ClientRule[Any]]
    server: type[AsyncServerRule[Any]] | type[SyncServerRule[Any]]
    source: str  # paper
    uploads: PayloadSchema = PayloadSchema()
    needs: Needs = NO_NEEDS
    answers: PayloadSchema = PayloadSchema()  # what is said to the server's queries
    asked: type[ClientRule[Any]] | None = None  # whose `inquire` and `answer` speak; None: the client's own
    server_config: type[Model] | None = None  # where the two halves are configured apart
    sends: tuple[str, ...] = ()  # what its server says and its clients cannot do without

    @property
    def mode(self) -> str:
        """Says "sync" for a server that works in rounds, else "async"."""
        return "sync" if issubclass(self.server, SyncServerRule) else "async"

    def client_rule(self, options: Mapping[str, Any]) -> ClientRule[Any]:
        """Returns the client rule; ConfigError names a wrong option."""
        return self.client(parse(_half(self, options, "client"), self.config, f"method.{self.name}"))

    def query_rule(self, options: Mapping[str, Any]) -> ClientRule[Any]:
        """Returns the client rule that answers the server's queries: in a composition, that of the server's method."""
        if self.asked is None:
            return self.client_rule(options)
        kind = self.server_config or self.config
        return self.asked(parse(_half(self, options, "server"), kind, f"method.{self.name}"))

    def server_rule(
        self, options: Mapping[str, Any], spec: FederationSpec
    ) -> AsyncServerRule[Any] | SyncServerRule[Any]:
        """Returns the server rule; ConfigError names a wrong option."""
        kind = self.server_config or self.config
        return self.server(parse(_half(self, options, "server"), kind, f"method.{self.name}"), spec)


def _half(method: Method, options: Mapping[str, Any], side: str) -> Mapping[str, Any]:
    """Returns the options of a side: {"client": {…}, "server": {…}} where the halves are configured apart, else all."""
    if method.server_config is None:
        return options
    unknown = sorted(set(options) - {"client", "server"})
    if unknown:
        raise ConfigError(
            f"method.{method.name}:{unknown[0]}: options of a composition go under client and server, found {unknown}"
        )
    half: Mapping[str, Any] = options.get(side, {})
    return half


def find(name: str) -> Method:
    """Returns a method by registry name, or the composition `client+server` of two.

    Raises:
        PluginError: a name is not registered.
        ConfigError: the composition makes no sense; says why.
    """
    first, plus, second = name.partition("+")
    method: Method = registry.load("methods", first)
    return compose(method, registry.load("methods", second)) if plus else method


def compose(first: Method, second: Method) -> Method:
    """Returns the clients of one method with the server of another.

    A server rule lives on what its own clients report, a client rule on what its own server says: either must find it.

    Raises:
        ConfigError: the two cannot work together; says why.
    """
    name, a, b = f"{first.name}+{second.name}", first.name, second.name
    unsaid = sorted(set(first.sends) - set(second.sends))
    if unsaid:
        raise ConfigError(f"{name}: the clients of {a} need the server's {', '.join(unsaid)}, which {b} does not send")
    unheard = sorted({f.name for f in second.uploads.fields} - {f.name for f in first.uploads.fields})
    if unheard:
        raise ConfigError(
            f"{name}: the server of {b} lives on {', '.join(unheard)} from its clients, which {a} does not report"
        )
    ignored = sorted(set(second.sends) - set(first.sends))
    if ignored:
        raise ConfigError(f"{name}: the server of {b} sends its {', '.join(ignored)}, which the clients of {a} ignore")
    if second.needs != NO_NEEDS and first.needs != second.needs:
        raise ConfigError(
            f"{name}: the server of {b} needs a model with {_words(second.needs)}, which {a} does not train"
        )
    return replace(
        first, name=name, server=second.server, server_config=second.server_config or second.config,
        answers=second.answers, asked=second.asked or second.client, source=f"{first.source}; {second.source}",
    )  # fmt: skip


def _words(needs: Needs) -> str:
    return ", ".join(name for name in needs.__dataclass_fields__ if getattr(needs, name))


__all__ = [
    "AsyncServerRule",
    "ClientRule",
    "Method",
    "NoConfig",
    "PayloadField",
    "PayloadSchema",
    "SyncServerRule",
    "compose",
    "find",
    "fused_phase",
    "query_phase",
]

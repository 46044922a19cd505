"""The model and how it came to be: decisions are committed to the store, then carried out, in one order.

The commit comes before the arithmetic: if the disk refuses, the model has not changed; if the program is killed in
between, replay does the arithmetic. Both do it from the same journal entry with the same kernel, so a recovered model
is bit-identical to one that was never interrupted.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from coordinator.store import (
    About,
    Checkpoint,
    Entry,
    Journal,
    OpenTask,
    Received,
    Rollback,
    RoundEntry,
    Store,
)  # fmt: skip
from coordinator.store.base import Floats
from edge_sdk.codecs.chain import Chain
from edge_sdk.core.errors import ConfigError, StoreError
from edge_sdk.core.messages import QUERY
from edge_sdk.core.records import Array, ModelLayout, ModelTensors, Segments, Update, VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn import aggregation, params
from edge_sdk.learn.aggregation import MEAN_KERNEL
from edge_sdk.learn.blending import KERNEL, TORCH, Kernels, blend, kernels
from edge_sdk.learn.records import Assignment, Cohort, Query, Rates, State, UpdateView, Weights
from edge_sdk.methods.base import AsyncServerRule, Method, SyncServerRule, find
from edge_sdk.models.build import initial_tensors, layout

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """How the store was found."""

    new: bool
    replayed: int  # updates
    same_bits: bool
    journal: Journal


class Ledger:
    """Owns θ, the rule's state and the version number. Methods that touch the store block.

    Args:
        spec: the federation's spec.
        store: where decisions go.
    """

    def __init__(self, spec: FederationSpec, store: Store) -> None:
        self.spec = spec
        self.method: Method = find(spec.method.name)
        rule = self.method.server_rule(spec.method.config, spec)
        self._async = rule if isinstance(rule, AsyncServerRule) else None
        self._sync = rule if isinstance(rule, SyncServerRule) else None
        self._rule = rule
        self.layout: ModelLayout = layout(spec, self.method.needs)
        self.chain = Chain(spec.codec.up, self.layout)
        self._chains: dict[str, Chain] = {self.chain.text: self.chain}
        self.number = 0
        self.updates = 0
        self._store = store
        self._theta: dict[str, Segments] = {}
        self._state: dict[str, Floats] = {}
        self._checkpoint_number = 0
        self._kernels: Kernels = TORCH

    def open(self, init: ModelTensors | None, seed: int) -> Opened:
        """Takes the store and brings the model up to date.

        Args:
            init: the first version of a new store; None: drawn from `seed`.
            seed: of the initial values.

        Raises:
            StoreError: the store is in use, broken, or belongs to another federation.
        """
        found = self._store.open()
        self._kernels = kernels(sum(module.params for module in self.layout.values()))
        about = self._about()
        if found is None:
            self._create(about, init, seed)
            return Opened(new=True, replayed=0, same_bits=True, journal=self._store.journal())
        self._check(found)
        replayed, same_bits = self._recover(found)
        if found != about:
            self._amend(found, about)
        return Opened(new=False, replayed=replayed, same_bits=same_bits, journal=self._store.journal())

    def _about(self) -> About:
        capability = torch.backends.cpu.get_cpu_capability()
        return About(self.spec.name, self.spec.canonical(), self.spec.shape_digest, KERNEL, capability)

    def _create(self, about: About, init: ModelTensors | None, seed: int) -> None:
        if init is None:
            init = self._rule.initial(initial_tensors(self.spec, self.method.needs, seed))
        params.check(self.layout, init)
        if sorted(init) != sorted(self.layout):
            raise ConfigError(f"the first version has modules {sorted(init)}, the model {sorted(self.layout)}")
        self._theta = params.copy(init)
        self._state = _state(self._rule.init())
        self._store.create(about, self._snapshot())

    def _check(self, found: About) -> None:
        if found.federation != self.spec.name or found.shape_digest != self.spec.shape_digest:
            raise StoreError(
                f"this store holds federation {found.federation!r} with other shapes, classes or name than "
                f"{self.spec.name!r}; give the new federation another name and a store of its own"
            )

    def _recover(self, found: About) -> tuple[int, bool]:
        checkpoint = self._store.newest_checkpoint()
        self.number, self.updates = checkpoint.number, checkpoint.updates
        self._theta, self._state = dict(checkpoint.tensors), {**_state(self._rule.init()), **checkpoint.state}
        self._checkpoint_number = checkpoint.number
        params.check(self.layout, self._theta)
        replayed, same = 0, found.capability == self._about().capability
        for entry in self._store.entries(checkpoint.number):
            base = self._store.tensors(entry.base)
            if isinstance(entry, RoundEntry):
                self._carry_out_round(entry, {r.key.device: self.decode(r, base)[1] for r in entry.members})
                replayed, same = replayed + len(entry.members), same and entry.kernel == MEAN_KERNEL
            else:
                self._carry_out(entry, self._chain(entry.chain).decode_update(entry.body), base)
                replayed, same = replayed + 1, same and entry.kernel == KERNEL
        if replayed and not same:
            log.warning(
                "the journal was made by another kernel or CPU class: the model equals the old one to 1e-6 only"
            )
        return replayed, same or not replayed

    def _chain(self, text: str) -> Chain:
        if text not in self._chains:
            self._chains[text] = Chain(text, self.layout)
        return self._chains[text]

    def decode(self, received: Received, base: ModelTensors) -> tuple[Update, ModelTensors]:
        """Returns a member's update again, and the full values of what it trained."""
        update = self._chain(received.chain).decode_update(received.body)
        return update, full_values(update, base)

    def _amend(self, found: About, about: About) -> None:
        """Takes over a changed spec; the state of another method means nothing to this one."""
        before = json.loads(found.spec).get("method", {}).get("name")
        if before != self.spec.method.name:
            self._state = _state(self._rule.init())
        self._store.checkpoint(self._snapshot())
        self._store.amend(about)

    @property
    def rounds(self) -> SyncServerRule[Any] | None:
        """The rule of a synchronous method; None for an asynchronous one."""
        return self._sync

    @property
    def state(self) -> State:
        """The rule's state now."""
        return self._state

    def learn(self, patch: State) -> None:
        """Takes over entries of the state from the round under way; the journal gets them with its decision."""
        self._state.update(_state(patch))

    def decide_round(self, cohort: Cohort) -> tuple[Weights, Mapping[str, Floats], ModelTensors]:
        """Returns what a synchronous rule says of a cohort: weights, changed entries of its state, replaced modules."""
        assert self._sync is not None, "only synchronous methods decide about cohorts"
        weights, patch = self._sync.weights(self._state, cohort)
        replaced = self._sync.replaced(self._state, cohort)
        params.check(self.layout, replaced)
        return aggregation.checked(weights), _state(patch), replaced

    def decide(self, view: UpdateView) -> tuple[Rates, Mapping[str, Floats]]:
        """Returns what an asynchronous rule says of an update."""
        assert self._async is not None, "only asynchronous methods decide about single updates"
        rates, patch = self._async.rates(self._state, view)
        odd = [m for m in view.modules if not np.isfinite(rates.by_module.get(m, np.nan))]
        if odd:
            raise ConfigError(f"method {self.spec.method.name!r} gave no usable rate for {', '.join(odd)}")
        return rates, _state(patch)

    def extras(self, task: OpenTask) -> dict[str, Array]:
        """Returns what the method sends down with a task."""
        if self._async is not None:
            return self._async.extras(self._state, task.device)
        assert self._sync is not None
        if task.kind == QUERY:
            return self._sync.extras(self._state, Query(task.device, task.phase, task.epochs, task.modalities))
        return self._sync.extras(self._state, Assignment(task.device, task.modalities, task.phase, task.epochs))

    def stage(self, task: OpenTask) -> str:
        """Returns the stage that the method is in for a task's device."""
        return task.phase if self._async is None else self._async.stage(self._state, task.device)

    def figures(self) -> dict[str, float]:
        """Returns what the method says of its state."""
        return self._rule.figures(self._state)

    @property
    def tensors(self) -> ModelTensors:
        """The model now; it changes with the next update."""
        return self._theta

    def apply(self, entry: Entry, update: Update, base: ModelTensors) -> None:
        """Commits a decision and carries it out.

        Raises:
            StoreError: it could not be made durable; nothing has changed.
        """
        self._store.commit(entry)
        self._carry_out(entry, update, base)

    def _carry_out(self, entry: Entry, update: Update, base: ModelTensors) -> None:
        blend(self._theta, base, update, Rates(entry.rates, entry.op), self._kernels)
        self._state.update(entry.patch)
        self.number = entry.version
        self.updates += 1

    def apply_round(self, entry: RoundEntry, members: Mapping[str, ModelTensors]) -> None:
        """Commits a decision about a cohort and carries it out.

        Raises:
            StoreError: it could not be made durable; nothing has changed.
        """
        self._store.commit_round(entry)
        self._carry_out_round(entry, members)

    def _carry_out_round(self, entry: RoundEntry, members: Mapping[str, ModelTensors]) -> None:
        aggregation.combine(self._theta, self.layout, members, Weights(entry.weights, entry.keep))
        self._theta.update(params.copy(entry.replaced))
        self._state.update(entry.patch)
        self.number = entry.version
        self.updates += len(entry.members)

    def copy(self) -> dict[str, Segments]:
        """Returns the model now, with memory of its own."""
        return params.copy(self._theta)

    def checkpoint(self) -> None:
        """Writes model and state as a whole."""
        self._store.checkpoint(self._snapshot())
        self._checkpoint_number = self.number

    def roll_back(self, target: VersionId) -> int:
        """Makes the tensors of a held version the next one; returns its number.

        The rule's state stays: it says something about the clients, not about the model.

        Raises:
            StoreError: the version is not held any more.
        """
        tensors = params.copy(self._store.tensors(target))
        params.check(self.layout, tensors)
        made = Checkpoint(self.number + 1, self.updates, tensors, self._state)
        self._store.roll_back(Rollback(made.number, target.number), made)
        self._theta, self.number, self._checkpoint_number = tensors, made.number, made.number
        return made.number

    @property
    def since_checkpoint(self) -> int:
        """Versions made since the last checkpoint."""
        return self.number - self._checkpoint_number

    def _snapshot(self) -> Checkpoint:
        return Checkpoint(self.number, self.updates, self._theta, self._state)


def full_values(update: Update, base: ModelTensors) -> ModelTensors:
    """Returns the trained values of an update's modules."""
    return params.add(base, update.tensors) if update.kind == "delta" else update.tensors


def _state(values: Mapping[str, Array]) -> dict[str, Floats]:
    return {name: np.array(value, np.float64) for name, value in values.items()}


__all__ = ["Ledger", "Opened", "full_values"]

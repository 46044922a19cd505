"""The one local training loop.

Read a method's client rule beside `train`: the hooks are the lines that its paper adds.

Nothing here draws from torch's global generator, or leaves a trace in it: batches are drawn from a generator keyed by
(job seed, phase), rules have another one, and whatever a network draws itself (dropout) comes from a third. So what a
method does in its early phases cannot change the batches of its last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count, islice, takewhile
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import deterministic

from edge_sdk.core.errors import TrainingError
from edge_sdk.core.records import Array, ModelTensors, RoundData
from edge_sdk.learn import generators, params
from edge_sdk.learn.records import Batch, ClientContext, FusedModel, Out, Phase, PhaseJob, PhaseResult, Samples
from edge_sdk.learn.sgd import Sgd

EVAL_BATCH = 256


class Rule(Protocol):
    """The hooks that the loop calls; `methods.base.ClientRule` has a default for each."""

    def begin(self, ctx: ClientContext) -> None:
        """Before the first batch."""

    def forward(self, ctx: ClientContext, batch: Batch) -> Out:
        """Returns features and logits."""

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Iterator[tuple[float, torch.Tensor]]:
        """Yields (weight, scalar) terms of the loss."""

    def after_backward(self, ctx: ClientContext, batch: Batch, out: Out) -> None:
        """Between backward and the optimiser's step."""

    def end_epoch(self, ctx: ClientContext) -> None:
        """After every epoch."""

    def end(self, ctx: ClientContext) -> None:
        """After the last epoch."""

    def payload(self, ctx: ClientContext) -> dict[str, Array]:
        """After the final phase."""

    def answer(self, ctx: ClientContext) -> dict[str, Array]:
        """After the final phase of a query."""


def train(job: PhaseJob, rule: Rule, model: FusedModel) -> PhaseResult:
    """Trains one phase and returns what came of it; the model is left at the trained values.

    Raises:
        TrainingError: there is no row to train on, or the loss is no longer finite.
        ShapeMismatch: the start version does not fit the model.
    """
    training, key = job.spec.training, stream_key(job)
    with generators.seeded(*key, "network"):
        order = generators.generator(*key, "batches")
        ctx = context(job, model)
        rule.begin(ctx)
        set_modes(ctx)
        optimiser = Sgd(_trainable(ctx), job.plan.lr, momentum=training.momentum, weight_decay=training.weight_decay)
        loss, numbers = 0.0, epochs(ctx)
        for ctx.epoch in numbers:
            loss, seen = 0.0, 0
            for rows in batches_left(ctx, order):
                batch = ctx.samples.batch(rows)
                optimiser.zero_grad()
                out = _forward(rule, ctx, batch)
                objective = total(rule.loss_terms(ctx, batch, out))
                loss, seen = loss + _finite(objective, ctx) * len(rows), seen + len(rows)
                objective.backward()  # type: ignore[no-untyped-call]
                rule.after_backward(ctx, batch, out)
                optimiser.step()
                ctx.num_steps += 1
            loss /= seen
            rule.end_epoch(ctx)
        return result(ctx, rule, loss)


def stream_key(job: PhaseJob) -> tuple[object, ...]:
    """Returns what the random streams of a phase are keyed by, besides their purpose."""
    return (job.seed, job.phase.name, *job.phase.modalities, job.view.finished.count(job.phase))


def result(ctx: ClientContext, rule: Rule, loss: float) -> PhaseResult:
    """Returns what came of a phase whose last step is done; `loss` is the mean of its last epoch."""
    rule.end(ctx)
    say = rule.answer if ctx.phase.asks else rule.payload
    payload = say(ctx) if ctx.phase.final else {}
    return PhaseResult(
        tensors=_trained(ctx),
        memory=ctx.memory,
        carry=ctx.carry,
        payload=payload,
        num_samples=len(ctx.samples.rows),
        num_steps=ctx.num_steps,
        loss=loss,
    )


def epochs(ctx: ClientContext) -> Iterator[int]:
    """Yields the numbers of the epochs of a phase: as many as it says, or as its steps take."""
    if not ctx.phase.steps:
        yield from range(ctx.phase.epochs)
    else:
        yield from takewhile(lambda _: ctx.num_steps < ctx.phase.steps, count())


def batches_left(ctx: ClientContext, order: torch.Generator) -> Iterator[torch.Tensor]:
    """Yields the batches of the next epoch, as many as the phase has steps left."""
    left = ctx.phase.steps - ctx.num_steps if ctx.phase.steps else None
    return islice(batches(ctx.samples.rows, ctx.job.plan.batch_size, order), left)


def batches(rows: torch.Tensor, size: int, order: torch.Generator) -> Iterator[torch.Tensor]:
    """Yields all rows once in a new random order; a last batch of one row is joined to the one before.

    Normalisation over a batch (BatchNorm) cannot train on a single row.
    """
    shuffled = rows[torch.randperm(len(rows), generator=order)]
    parts = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    yield from parts


def steps_of_pass(rows: int, size: int) -> int:
    """Returns how many batches `batches` makes of so many rows."""
    parts = -(-rows // size)
    return parts - (parts > 1 and rows - size * (parts - 1) == 1)


def full_pass(ctx: ClientContext, fn: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
    """Returns fn(batch) over all rows of the phase in order, one value (or row) each; evaluation mode, no gradient."""
    set_modes(ctx, train=False)
    with torch.no_grad():
        parts = [fn(ctx.samples.batch(rows)) for rows in torch.split(ctx.samples.rows, EVAL_BATCH)]
    set_modes(ctx)
    return torch.cat(parts)


def encoded(ctx: ClientContext, modality: str) -> torch.Tensor:
    """Returns h_m (n, D) of a modality over all rows of the phase in order; evaluation mode, no gradient."""
    return full_pass(ctx, lambda batch: ctx.model.encode(batch.x, (modality,))[modality])


def single_thread() -> None:
    """Makes this process train on one thread with deterministic algorithms; the initialiser of simulation workers.

    Training and reductions differ in the last bits between one and two threads. The debug mode "error" is the switch
    behind `use_deterministic_algorithms`, which would import torch's compiler besides: 1.5 s and 100 MB per process.
    That torch then fills all new memory finds reads of what was never written, and costs a small model 3 % of a step.
    """
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # of the module's class


def samples(data: RoundData, phase: Phase, modalities: tuple[str, ...]) -> Samples:
    """Returns the round set as tensors for a phase.

    Args:
        data: the round set; x must hold every modality of the phase.
        phase: what is going to be trained.
        modalities: all of the federation, in the order of the spec.

    Raises:
        TrainingError: a modality is not there, or no row can be trained on.
    """
    missing = [m for m in phase.modalities if m not in data.x]
    if missing:
        raise TrainingError(
            f"phase {phase.name!r} reads {missing[0]!r}, the round set has {', '.join(data.x) or 'nothing'}"
        )
    mask = torch.zeros(len(data.y), len(modalities))
    for m in phase.modalities:
        mask[:, modalities.index(m)] = _tensor(data.has[m]).float()
    y = _tensor(data.y)
    rows = torch.from_numpy(rows_to_train(data, phase))
    if len(rows) == 0:
        raise TrainingError(
            f"phase {phase.name!r}: none of {len(data.y)} windows has a label and one of {', '.join(phase.modalities)}"
        )
    return Samples({m: _tensor(data.x[m]) for m in phase.modalities}, y, mask, rows)


def rows_to_train(data: RoundData, phase: Phase) -> NDArray[np.int64]:
    """Returns the numbers of the rows that have a label and one of the phase's modalities."""
    there = np.logical_or.reduce([data.has[m] for m in phase.modalities])
    return np.flatnonzero(there & (data.y >= 0))


def _tensor(array: Array) -> torch.Tensor:
    """Returns the array as a tensor, sharing memory where it is writable (torch warns of memory that is not)."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def context(job: PhaseJob, model: FusedModel) -> ClientContext:
    """Puts the values that a phase begins with into the model and returns what the hooks work on.

    Raises:
        TrainingError: there is no row to train on.
        ShapeMismatch: the start version does not fit the model.
    """
    params.load({name: model.module(name) for name in job.start}, job.start)
    kept = {name: job.current[name] for name in job.phase.keep if name in job.current}
    params.load({name: model.module(name) for name in kept}, kept)
    data = samples(job.data, job.phase, job.spec.modality_names)
    rng = generators.generator(*stream_key(job), "rule")
    return ClientContext(job, model, data, rng, memory=dict(job.memory), carry=dict(job.carry))


def _forward(rule: Rule, ctx: ClientContext, batch: Batch) -> Out:
    """Returns features and logits in float32, whatever they were computed in: hooks and losses see nothing else."""
    if ctx.job.effort.precision == "float32":
        return rule.forward(ctx, batch)
    with torch.autocast(ctx.samples.y.device.type, torch.bfloat16):
        out = rule.forward(ctx, batch)
    features = {m: feature.float() for m, feature in out.features.items()}
    return Out(features, out.logits.float(), {name: extra.float() for name, extra in out.extra.items()})


def learned(job: PhaseJob) -> tuple[str, ...]:
    """Returns the modules that a phase changes."""
    return tuple(name for name in job.phase.train if name not in job.effort.frozen)


def set_modes(ctx: ClientContext, *, train: bool = True) -> None:
    """Only modules of the phase train; the others neither get gradients nor move running statistics."""
    if ctx.model.training:
        ctx.model.train(mode=False)
    learning = learned(ctx.job)
    for name in ctx.job.start:
        module, learns = ctx.model.module(name), name in learning
        mode = learns and train  # mostly what the last phase left
        if any(part.training is not mode for part in module.modules()):
            module.train(mode)
        for p in module.parameters():
            if p.requires_grad is not learns:
                p.requires_grad_(learns)
    ctx.own.train(train)


def _trainable(ctx: ClientContext) -> list[nn.Parameter]:
    shared = [p for name in learned(ctx.job) for p in ctx.model.module(name).parameters()]
    return [*shared, *ctx.own.parameters()]


def total(terms: Iterator[tuple[float, torch.Tensor]]) -> torch.Tensor:
    """Returns Σ weight · term; a weight of 1 leaves its term as it is, to the last bit."""
    weighted = [term if weight == 1.0 else weight * term for weight, term in terms]
    return weighted[0] if len(weighted) == 1 else torch.stack(weighted).sum()


def _finite(objective: torch.Tensor, ctx: ClientContext) -> float:
    loss = float(objective.detach())
    if not math.isfinite(loss):
        raise diverged(ctx.job, loss, ctx.num_steps)
    return loss


def diverged(job: PhaseJob, loss: float, steps: int) -> TrainingError:
    """Returns the error of a loss that is no longer finite."""
    return TrainingError(
        f"phase {job.phase.name!r}: the loss is {loss} after {steps} steps at learning rate "
        f"{job.plan.lr:g}; lower training.lr, or look for extreme values in the data"
    )


def _trained(ctx: ClientContext) -> ModelTensors:
    job, phase = ctx.job, ctx.phase
    sent = () if phase.asks else phase.train if phase.send is None else phase.send
    kept = [name for name in (sent if phase.final else phase.train) if name not in job.effort.frozen]
    trained = params.read({name: ctx.model.module(name) for name in kept})
    return trained if phase.final else {**job.current, **trained}


__all__ = [
    "EVAL_BATCH",
    "Rule",
    "batches",
    "batches_left",
    "context",
    "diverged",
    "encoded",
    "epochs",
    "full_pass",
    "learned",
    "result",
    "rows_to_train",
    "samples",
    "set_modes",
    "single_thread",
    "steps_of_pass",
    "stream_key",
    "total",
    "train",
]

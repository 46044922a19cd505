"""The local training loop for several devices at once: the same steps as in `local_training`, on stacked tensors.

Every value of the model has one more dimension, the device. The rule's `forward` and `loss_terms` run under
`torch.func.vmap`; autograd stays outside, because the gradient of a sum over devices is each device's own, and its
backward pass is then the plain one on stacked tensors. With `vmap(grad(…))` a step of eight devices took 1.4 (1-D CNN)
to 1.6 times (two linear layers) as long.

Batches are those of the loop: every device draws from its own generators. Results agree with the loop's up to rounding,
sums are taken in another order. `begin`, `end` and `payload` are called for one device after the other on the live
model. All devices have as many steps per pass over their rows; where their last batches differ in length, those of one
length are computed together.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.func import functional_call, vmap

from edge_sdk.core.errors import TrainingError
from edge_sdk.learn import generators
from edge_sdk.learn import local_training as loop
from edge_sdk.learn.records import FULL, Batch, ClientContext, FusedModel, Phase, PhaseJob, PhaseResult
from edge_sdk.learn.sgd import Sgd

log = logging.getLogger(__name__)

LEAST = 4  # devices; fewer are not faster together on a CPU

Values = dict[str, torch.Tensor]  # name → (K, *shape) of K devices


class Rule(loop.Rule, Protocol):
    """The hooks of the loop, and whether they can be called for a stack."""

    def stacks(self, phase: Phase) -> bool:
        """Returns True if the phase can be trained for several devices at once."""


def key(job: PhaseJob, rule: Rule, model: FusedModel) -> Hashable | None:
    """Returns what jobs must have in common to be trained together; None: this one is trained by itself."""
    phase, changed = job.phase, loop.learned(job)
    if not changed or phase.asks or job.effort != FULL or not rule.stacks(phase):
        return None
    if any(m not in job.data.x for m in phase.modalities) or obstacle(model, changed):
        return None
    rows = len(loop.rows_to_train(job.data, phase))
    size = job.plan.batch_size
    steps = loop.steps_of_pass(rows, size)
    # The last batches may differ in length: where a pass has others besides, that costs less than smaller stacks do.
    return (job.spec.digest, job.method, phase, size, steps, steps == 1 and rows) if rows else None


def obstacle(model: FusedModel, changed: tuple[str, ...]) -> str:
    """Returns why these modules cannot be trained for several devices at once, "" if they can; the log says it once."""
    known = _obstacles.setdefault(model, {})
    if changed not in known:
        _note(model, changed, next((why for name in changed if (why := _obstacle(name, model.module(name)))), ""))
    return known[changed]


_obstacles: WeakKeyDictionary[FusedModel, dict[tuple[str, ...], str]] = WeakKeyDictionary()


def _note(model: FusedModel, changed: tuple[str, ...], why: str) -> None:
    _obstacles.setdefault(model, {})[changed] = why
    if why:
        log.warning("devices are trained one by one, not as one computation: %s", why)


def _obstacle(name: str, module: nn.Module) -> str:
    parameters = dict(module.named_parameters())
    if any(value not in parameters for value in module.state_dict()):
        return f"{name} keeps running statistics"
    if any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules()):
        return f"{name} has dropout"
    return ""


def train(
    jobs: Sequence[PhaseJob], rule: Rule, model: FusedModel, place: str = "cpu"
) -> list[PhaseResult | TrainingError]:  # fmt: skip
    """Trains phases with equal keys together, and returns for each what came of it.

    Fewer than LEAST on a CPU are trained one by one, and those of a model that vmap refuses: the log says so.

    Args:
        jobs: the phases.
        rule: whose hooks are called.
        model: on the CPU.
        place: torch device that the steps are done on.

    Raises:
        ShapeMismatch: a start version does not fit the model.
    """
    changed = loop.learned(jobs[0])
    if (len(jobs) >= LEAST or place != "cpu") and not obstacle(model, changed):
        try:
            return _together(jobs, rule, model, torch.device(place))
        except RuntimeError as error:  # vmap's have no type of their own; what is not its fault is raised again below
            _note(model, changed, str(error).partition("\n")[0])
    return [_alone(job, rule, model) for job in jobs]


def _alone(job: PhaseJob, rule: Rule, model: FusedModel) -> PhaseResult | TrainingError:
    try:
        return loop.train(job, rule, model)
    except TrainingError as error:
        return error


def _together(
    jobs: Sequence[PhaseJob], rule: Rule, model: FusedModel, place: torch.device
) -> list[PhaseResult | TrainingError]:  # fmt: skip
    devices, starts = [], []
    for job in jobs:
        with generators.seeded(*loop.stream_key(job), "network"):
            ctx = loop.context(job, model)
            rule.begin(ctx)
        devices.append(_Device(ctx, rule))
        starts.append({name: t.detach().clone() for name, t in devices[-1].state_dict().items()})
    loop.set_modes(devices[0].ctx)
    learns = {name for name, p in devices[0].named_parameters() if p.requires_grad}
    stacked = {name: torch.stack([start[name] for start in starts]).to(place) for name in starts[0]}
    values: Values = {name: nn.Parameter(t) if name in learns else t for name, t in stacked.items()}
    losses, sizes = _descend(devices, values, place)
    trained = {name: value.detach().cpu() for name, value in values.items()}
    return [_ended(device, trained, k, losses[:, k], sizes[:, k]) for k, device in enumerate(devices)]


class _Device(nn.Module):
    """Everything of one device that has values in a phase.

    Args:
        ctx: what its hooks work on; the shared model holds the values of whoever was loaded last.
        rule: whose hooks are called.
    """

    def __init__(self, ctx: ClientContext, rule: Rule) -> None:
        super().__init__()
        self.shared = nn.ModuleList([ctx.model.module(name) for name in sorted(ctx.job.start)])
        self.own = ctx.own
        self.ctx = ctx
        self.rule = rule
        self.order = generators.generator(*loop.stream_key(ctx.job), "batches")

    def forward(self, batch: Batch) -> torch.Tensor:
        """Returns the loss of one device's batch, a scalar."""
        return loop.total(self.rule.loss_terms(self.ctx, batch, self.rule.forward(self.ctx, batch)))


class _Data:
    """The samples of all devices, one after the other.

    Args:
        devices: whose samples.
        place: where they go.
    """

    def __init__(self, devices: Sequence[_Device], place: torch.device) -> None:
        parts = [device.ctx.samples for device in devices]  # K × (n, …) -> (Σn, …)
        self._x = {m: torch.cat([part.x[m] for part in parts]).to(place) for m in parts[0].x}
        self._y = torch.cat([part.y for part in parts]).to(place)
        self._mask = torch.cat([part.mask for part in parts]).to(place)
        counts = torch.tensor([0, *(len(part.y) for part in parts[:-1])], device=place)
        self._first = counts.cumsum(0)[:, None]  # (K, 1)

    def batch(
        self, members: Sequence[int], rows: torch.Tensor
    ) -> tuple[Values, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns x, y, mask and rows of a batch, (k, B, …) each, for the row numbers (k, B) of some devices (k,)."""
        rows = rows.to(self._y.device)
        places, flat = rows.shape, (rows + self._first[list(members)]).flatten()
        x = {m: a.index_select(0, flat).view(*places, *a.shape[1:]) for m, a in self._x.items()}
        return x, self._y[flat].view(places), self._mask[flat].view(*places, -1), rows


class _Sgd(Sgd):
    """SGD on stacked values, with a learning rate for each device.

    Args:
        values: what is trained, (K, *shape) each.
        rates: learning rates, (K,).
        momentum: as in Sgd.
        weight_decay: as in Sgd.
    """

    def __init__(
        self, values: Sequence[nn.Parameter], rates: list[float], *, momentum: float, weight_decay: float
    ) -> None:  # fmt: skip
        super().__init__(values, 1.0, momentum=momentum, weight_decay=weight_decay)
        self._rates = torch.tensor(rates, device=values[0].device)

    def _move(self, moved: list[torch.Tensor], directions: list[torch.Tensor]) -> None:
        rates = [self._rates.view(-1, *(1 for _ in p.shape[1:])) for p in moved]
        torch._foreach_sub_(moved, torch._foreach_mul(directions, rates))


def _descend(
    devices: Sequence[_Device], values: Values, place: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Trains the values; returns the losses of all steps (S, K), and the rows of each of the last pass (s, K)."""
    lead, training = devices[0], devices[0].ctx.spec.training
    trained = [p for p in values.values() if isinstance(p, nn.Parameter)]
    rates = [device.ctx.job.plan.lr for device in devices]
    optimiser = _Sgd(trained, rates, momentum=training.momentum, weight_decay=training.weight_decay)

    def loss(one: Values, x: Values, y: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(
            lead, {**constants, **one}, (Batch(x, y, mask, rows),), tie_weights=False
        )  # fmt: skip
        return found

    constants = (
        {name: b.to(place) for name, b in lead.named_buffers() if name not in values} if place.type != "cpu" else {}
    )
    data = _Data(devices, place)
    losses, sizes = list[torch.Tensor](), list[list[int]]()
    for epoch in loop.epochs(lead.ctx):
        sizes.clear()
        for rows in zip(*(loop.batches_left(device.ctx, device.order) for device in devices), strict=True):
            optimiser.zero_grad()
            objectives = _objectives(loss, values, data, rows)
            objectives.sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(objectives.detach())
            sizes.append([len(part) for part in rows])
            for device in devices:
                device.ctx.epoch, device.ctx.num_steps = epoch, len(losses)
    return torch.stack(losses).cpu(), torch.tensor(sizes)


def _objectives(
    loss: Callable[..., torch.Tensor], values: Values, data: _Data, rows: Sequence[torch.Tensor]
) -> torch.Tensor:  # fmt: skip
    """Returns every device's loss of its next batch, (K,).

    The last batches of a pass may have different lengths. Those of one length are computed together, or one by one if
    they are few: taking some devices out of the stack and putting their gradients back costs more than it gains then.
    """
    each, lengths = vmap(loss, randomness="error"), [len(part) for part in rows]
    if len(set(lengths)) == 1:
        objectives: torch.Tensor = each(values, *data.batch(range(len(rows)), torch.stack(list(rows))))
        return objectives
    found, alone = dict[int, torch.Tensor](), {name: value.unbind() for name, value in values.items()}
    for length in dict.fromkeys(lengths):
        members = [k for k, n in enumerate(lengths) if n == length]
        x, *others = data.batch(members, torch.stack([rows[k] for k in members]))
        if len(members) >= LEAST:
            some = {name: value[members] for name, value in values.items()}
            found.update(zip(members, each(some, x, *others), strict=True))
        else:
            for i, k in enumerate(members):
                one = {name: value[k] for name, value in alone.items()}
                found[k] = loss(one, {m: a[i] for m, a in x.items()}, *(other[i] for other in others))
    return torch.stack([found[k] for k in range(len(rows))])


def _ended(
    device: _Device, values: Values, k: int, losses: torch.Tensor, sizes: torch.Tensor
) -> PhaseResult | TrainingError:  # fmt: skip
    """Puts the k-th values into the live model, and returns what came of that phase; losses (S,), batch sizes (s,)."""
    for step, loss in enumerate(losses.tolist()):
        if not math.isfinite(loss):
            return loop.diverged(device.ctx.job, loss, step)
    with torch.no_grad():
        for name, live in device.state_dict().items():
            live.copy_(values[name][k])
    loop.set_modes(device.ctx)
    mean = float((losses[-len(sizes) :] * sizes).sum() / sizes.sum())
    return loop.result(device.ctx, device.rule, mean)


__all__ = ["LEAST", "Rule", "key", "obstacle", "train"]

"""Mixing updates into the global model, in place: the only arithmetic between an update and a new version.

    full, mix    θ ← θ + r(θₙ − θ)
    delta, mix   θ ← θ + r(base + Δ − θ)   computed as (θ + r(base − θ)) + rΔ
    delta, add   θ ← θ + rΔ
    full, add    θ ← θ + r(θₙ − base)

`stats` are mixed with their module's rate, `counters` are copied: the newest win. Both travel as values, in delta
updates too.

Determinism. Every kernel is elementwise, and torch's `lerp_` and `add_(alpha=)` compute vector bodies and scalar tails
with the same fused multiply-add, so results are bitwise equal for any number of threads and any block size (a test
holds this). Other formulas for the same mixing differ by up to 5e-7, and CPUs without FMA round differently: the
journal therefore records `KERNEL`, and promises equal bits only for one kernel on one CPU capability class.

Blocks of 4 MiB keep θ in cache between the two passes of the delta kernel; smaller ones lose more to torch's cost per
call, and to a barrier of its threads per call, than nearer caches give back. torch has no operation that adds three
vectors in one pass: `docs/benchmarks.md` says what the second pass costs, and what the barriers do on a busy machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from edge_sdk.core.errors import ShapeMismatch
from edge_sdk.core.records import Array, ModelTensors, Segments, Update
from edge_sdk.learn.records import Rates

KERNEL = "torch-lerp-1"
BLOCK = 1 << 20  # elements per block, 4 MiB of float32

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], None]


def _mix_full(theta: torch.Tensor, new: torch.Tensor, _base: torch.Tensor, rate: float) -> None:
    theta.lerp_(new, rate)


def _mix_delta(theta: torch.Tensor, change: torch.Tensor, base: torch.Tensor, rate: float) -> None:
    for t, d, b in zip(torch.split(theta, BLOCK), torch.split(change, BLOCK), torch.split(base, BLOCK), strict=True):
        t.lerp_(b, rate).add_(d, alpha=rate)


def _add_delta(theta: torch.Tensor, change: torch.Tensor, _base: torch.Tensor, rate: float) -> None:
    theta.add_(change, alpha=rate)


def _add_full(theta: torch.Tensor, new: torch.Tensor, base: torch.Tensor, rate: float) -> None:
    for t, n, b in zip(torch.split(theta, BLOCK), torch.split(new, BLOCK), torch.split(base, BLOCK), strict=True):
        t.add_(n, alpha=rate).add_(b, alpha=-rate)


# (rates.op, update.kind) → kernel and whether it reads the base
_KERNELS: Mapping[tuple[str, str], tuple[Kernel, bool]] = {
    ("mix", "full"): (_mix_full, False),
    ("mix", "delta"): (_mix_delta, True),
    ("add", "delta"): (_add_delta, False),
    ("add", "full"): (_add_full, True),
}


def blend(theta: Mapping[str, Segments], base: ModelTensors | None, update: Update, rates: Rates) -> None:
    """Mixes an update into `theta` in place, each module with its own rate.

    Args:
        theta: the global model; its arrays are changed, and must be writable.
        base: the version the update was trained from; may be None where the kernel does not read it.
        update: decoded update, full or delta.
        rates: what the server rule decided.

    Raises:
        ShapeMismatch: tensors that do not fit; nothing has been changed then.
    """
    kernel, reads_base = _KERNELS[rates.op, update.kind]
    bases = _bases(base, update, reads_base=reads_base)
    for name, new in update.tensors.items():
        _check(name, theta, new, bases[name])
    with torch.inference_mode():
        for name, new in update.tensors.items():
            rate = float(rates.by_module[name])
            if rate != 0.0:
                _blend_module(kernel, theta[name], new, base=bases[name], rate=rate)


def _bases(base: ModelTensors | None, update: Update, *, reads_base: bool) -> ModelTensors:
    """Returns what stands for the base per module: the update's own tensors where no kernel looks at it."""
    if not reads_base:
        return update.tensors
    missing = sorted(update.tensors.keys() - (base or {}).keys())
    if base is None or missing:
        raise ShapeMismatch(f"a {update.kind} update needs its base version's {', '.join(missing)}")
    return base


def _check(name: str, theta: Mapping[str, Segments], new: Segments, base: Segments) -> None:
    if name not in theta:
        raise ShapeMismatch(f"unknown module {name!r}; the model has {', '.join(sorted(theta))}")
    ours = theta[name]
    pairs = (
        ("params", ours.params, new.params), ("params of the base", ours.params, base.params),
        ("stats", ours.stats, new.stats), ("counters", ours.counters, new.counters),
    )  # fmt: skip
    for what, mine, other in pairs:
        if mine.shape != other.shape or mine.dtype != other.dtype:
            found = f"{other.dtype} {other.shape}"
            raise ShapeMismatch(f"{name}: {what}: expected {mine.dtype} {mine.shape}, found {found}")


def _blend_module(kernel: Kernel, theta: Segments, new: Segments, *, base: Segments, rate: float) -> None:
    kernel(torch.from_numpy(theta.params), _read(new.params), _read(base.params), rate)
    if theta.stats.size:
        torch.from_numpy(theta.stats).lerp_(_read(new.stats), min(rate, 1.0))
    np.copyto(theta.counters, new.counters)


def _read(array: Array) -> torch.Tensor:
    """Returns the array's memory as a tensor for reading.

    Published bases are mapped from files and arrays of a decoded message are read-only; torch warns of both, though
    nothing here writes to them, so their memory is entered through a pointer that says nothing of it.
    """
    if array.flags.writeable:
        return torch.from_numpy(array)
    interface = dict(array.__array_interface__)
    interface["data"] = (interface["data"][0], False)
    return torch.from_numpy(np.asarray(_Holder(interface, array)))


class _Holder:
    """Carries an array interface, and keeps the memory alive."""

    def __init__(self, interface: dict[str, object], owner: Array) -> None:
        self.__array_interface__ = interface
        self.owner = owner


__all__ = ["BLOCK", "KERNEL", "blend"]

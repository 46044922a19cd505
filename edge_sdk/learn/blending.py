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

Two implementations of the same arithmetic, one name in the journal. torch has no operation that adds three vectors in
one pass; blocks of 4 MiB keep θ in cache between the two that a delta update takes. `fused` takes one, and does without
torch's barrier per call. `kernels` loads it for models large enough to pay for that, if numba is installed and every
bit of a trial is torch's; so a store written with either recovers to the same bits with the other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from edge_sdk.core.compute import Crew
from edge_sdk.core.errors import ShapeMismatch
from edge_sdk.core.records import Array, ModelTensors, Segments, Update
from edge_sdk.learn.records import Rates

KERNEL = "torch-lerp-1"
BLOCK = 1 << 20  # elements per block of a two-pass kernel, 4 MiB of float32
FUSED_FROM = 1 << 22  # parameters of a model: below, a second's start and 120 MB would save less than 0.1 ms per update
SHARED_FROM = 1 << 21  # parameters of a module: below, waking a helper takes longer than it saves

Kernel = Callable[[Array, Array, Array, float], None]  # θ, the update, its base, rate
Kernels = Mapping[tuple[str, str], Kernel]  # (rates.op, update.kind) → kernel

log = logging.getLogger(__name__)


def _mix_full(theta: Array, new: Array, _base: Array, rate: float) -> None:
    torch.from_numpy(theta).lerp_(_read(new), rate)


def _mix_delta(theta: Array, change: Array, base: Array, rate: float) -> None:
    vectors = (torch.from_numpy(theta), _read(change), _read(base))
    for t, d, b in zip(*(torch.split(v, BLOCK) for v in vectors), strict=True):
        t.lerp_(b, rate).add_(d, alpha=rate)


def _add_delta(theta: Array, change: Array, _base: Array, rate: float) -> None:
    torch.from_numpy(theta).add_(_read(change), alpha=rate)


def _add_full(theta: Array, new: Array, base: Array, rate: float) -> None:
    vectors = (torch.from_numpy(theta), _read(new), _read(base))
    for t, n, b in zip(*(torch.split(v, BLOCK) for v in vectors), strict=True):
        t.add_(n, alpha=rate).add_(b, alpha=-rate)


TORCH: Kernels = {
    ("mix", "full"): _mix_full,
    ("mix", "delta"): _mix_delta,
    ("add", "delta"): _add_delta,
    ("add", "full"): _add_full,
}
_READS_BASE = frozenset((("mix", "delta"), ("add", "full")))


def kernels(size: int) -> Kernels:
    """Returns the fastest kernels for a model of so many parameters; may compile, which takes seconds."""
    return _fused() if size >= FUSED_FROM else TORCH


def _fused() -> Kernels:
    """Returns numba's kernels where it is installed and this CPU gives torch's bits."""
    try:
        from edge_sdk.learn import fused
    except ImportError as error:
        log.info("a large model's delta updates are mixed in two passes, not one: %s", error)
        return TORCH
    crew = Crew((os.cpu_count() or 1) - 1)
    made: Kernels = {case: partial(_share, crew, loop, TORCH[case]) for case, loop in fused.LOOPS.items()}
    if not _same_bits(made):
        log.info(
            "a large model's delta updates are mixed in two passes, not one: numba rounds unlike torch on this CPU"
        )
        return TORCH
    return made


def _share(
    crew: Crew, loop: Callable[..., None], torch_kernel: Kernel, theta: Array, new: Array, base: Array, rate: float
) -> None:  # fmt: skip
    if not all(a.dtype == np.float32 and a.flags.c_contiguous and a.flags.aligned for a in (theta, new, base)):
        return torch_kernel(theta, new, base, rate)
    claimed = np.zeros(1, np.uint64)
    crew.run(torch.get_num_threads() if theta.size >= SHARED_FROM else 1, loop, claimed, theta, new, base, rate)
    return None


def _same_bits(made: Kernels) -> bool:
    """Returns whether these kernels give torch's bits: in vector bodies and tails, from both ends of a lerp, beyond."""
    theta, new, base = np.random.default_rng(0).standard_normal((3, 1021), dtype=np.float32)
    for case, kernel in made.items():
        for rate in (0.1, 0.4999, 0.5, 0.9, 1.0, 1.7, -0.3):
            ours, torchs = theta.copy(), theta.copy()
            kernel(ours, new, base, rate)
            TORCH[case](torchs, new, base, rate)
            if ours.tobytes() != torchs.tobytes():
                return False
    return True


def blend(
    theta: Mapping[str, Segments], base: ModelTensors | None, update: Update, rates: Rates, kernels: Kernels = TORCH
) -> None:  # fmt: skip
    """Mixes an update into `theta` in place, each module with its own rate.

    Args:
        theta: the global model; its arrays are changed, and must be writable.
        base: the version the update was trained from; may be None where the kernel does not read it.
        update: decoded update, full or delta.
        rates: what the server rule decided.
        kernels: what to compute with; the bits are the same.

    Raises:
        ShapeMismatch: tensors that do not fit; nothing has been changed then.
    """
    case = (rates.op, update.kind)
    bases = _bases(base, update, reads_base=case in _READS_BASE)
    for name, new in update.tensors.items():
        _check(name, theta, new, bases[name])
    with torch.inference_mode():
        for name, new in update.tensors.items():
            rate = float(rates.by_module[name])
            if rate != 0.0:
                _blend_module(kernels[case], theta[name], new, base=bases[name], rate=rate)


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
    kernel(theta.params, new.params, base.params, rate)
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


__all__ = ["BLOCK", "FUSED_FROM", "KERNEL", "TORCH", "Kernel", "Kernels", "blend", "kernels"]

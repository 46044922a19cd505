"""The mixing formulas in one pass over memory each, compiled by numba; `blending` has the formulas and their reasons.

Bits: every step is an explicit fused multiply-add, in the order of torch's `lerp_` and `add_(alpha=)`, so that results
are equal to theirs wherever torch uses FMA too; `blending.kernels` compares them before it uses these. torch's lerp
starts from the nearer end: with |r| < 1/2 it is t + r(x − t), from there on x + (r − 1)(x − t).

Threads: everybody who helps with a vector calls the same loop once, without the GIL, and takes the next block from an
atomic counter until none is left. Who loses his core delays one block, where a barrier per block delays all of them;
numba's own parallel loops would end the process when two threads start one at the same time, or after a fork.

Importing this compiles (a second), or loads what was compiled before where numba finds a folder to write to: beside
this file or in the user's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from edge_sdk.core.records import Array

BLOCK = np.uint64(1 << 19)  # elements, 2 MiB of float32: 12 to 18 % of a millisecond each
_HALF, _ONE = np.float32(0.5), np.float32(1)
_READ = types.Array(types.float32, 1, "C", readonly=True)
_SIGNATURE = types.void(types.uint64[::1], types.float32[::1], _READ, _READ, types.float32)

# (counter of claimed elements, θ, the update, its base, rate)
Loop = Callable[[Array, Array, Array, Array, np.float32], None]


def _build_fma(_context: Any, _x: Any, _y: Any, _z: Any) -> tuple[Any, Any]:
    return types.float32(types.float32, types.float32, types.float32), lambda _, builder, __, xyz: builder.fma(*xyz)


def _build_claim(_context: Any, counter: Any) -> tuple[Any, Any]:
    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.atomic_rmw("add", data, context.get_constant(types.uint64, int(BLOCK)), "monotonic")

    return types.uint64(counter), build


_fma: Any = intrinsic(_build_fma)  # x·y + z, rounded once
_claim: Any = intrinsic(_build_claim)  # claims the next block; returns where it starts


def _compiled(loop: Loop) -> Loop:
    made: Loop
    try:
        made = numba.njit([_SIGNATURE], nogil=True, cache=True)(loop)
    except (RuntimeError, OSError):  # no folder to keep it in
        made = numba.njit([_SIGNATURE], nogil=True)(loop)
    return made


@_compiled
def _mix_full(counter: Array, theta: Array, new: Array, base: Array, rate: np.float32) -> None:
    near = abs(rate) < _HALF
    step = rate if near else rate - _ONE
    size, start = np.uint64(theta.size), _claim(counter)
    while start < size:
        for i in range(start, min(start + BLOCK, size)):
            theta[i] = _fma(step, new[i] - theta[i], theta[i] if near else new[i])
        start = _claim(counter)


@_compiled
def _mix_delta(counter: Array, theta: Array, change: Array, base: Array, rate: np.float32) -> None:
    near = abs(rate) < _HALF
    step = rate if near else rate - _ONE
    size, start = np.uint64(theta.size), _claim(counter)
    while start < size:
        for i in range(start, min(start + BLOCK, size)):
            theta[i] = _fma(rate, change[i], _fma(step, base[i] - theta[i], theta[i] if near else base[i]))
        start = _claim(counter)


@_compiled
def _add_delta(counter: Array, theta: Array, change: Array, base: Array, rate: np.float32) -> None:
    size, start = np.uint64(theta.size), _claim(counter)
    while start < size:
        for i in range(start, min(start + BLOCK, size)):
            theta[i] = _fma(rate, change[i], theta[i])
        start = _claim(counter)


@_compiled
def _add_full(counter: Array, theta: Array, new: Array, base: Array, rate: np.float32) -> None:
    size, start = np.uint64(theta.size), _claim(counter)
    while start < size:
        for i in range(start, min(start + BLOCK, size)):
            theta[i] = _fma(-rate, base[i], _fma(rate, new[i], theta[i]))
        start = _claim(counter)


LOOPS: Mapping[tuple[str, str], Loop] = {
    ("mix", "full"): _mix_full,
    ("mix", "delta"): _mix_delta,
    ("add", "delta"): _add_delta,
    ("add", "full"): _add_full,
}

__all__ = ["BLOCK", "LOOPS", "Loop"]

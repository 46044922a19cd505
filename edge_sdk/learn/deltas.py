"""Encoder deltas and gradients as vectors of a fixed size, the same on a device and on the server.

A change start − trained of a model has as many numbers as the model. Methods that compare clients need only the
distances between such changes, so every coordinate i is added, with a random sign, to one of 4096 places: a count
sketch. It keeps squared distances up to a relative error of about √(2/4096) = 2 % (one standard deviation), costs one
pass and no matrix, and is linear: the sketch of all encoders is the sum of theirs. Place and sign are random bits of i,
not of a generator. A model of up to 4096 parameters is not projected at all: i is its own place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.records import Float32, ModelTensors
from edge_sdk.learn import seeds

SIZE = 4096  # numbers of a vector; a power of two
_BLOCK = 1 << 20  # coordinates at a time: 24 MB of intermediate arrays


def sketch(trained: ModelTensors, start: ModelTensors, modules: Sequence[str]) -> NDArray[np.float64]:
    """Returns start − trained over the `params` of modules, as float64 (SIZE,).

    Args:
        trained: values after training; a module that is not among them has not moved.
        start: values before; has all of `modules`.
        modules: coordinates are counted over these, in this order: it must be the same wherever vectors are compared.
    """
    total = sum(start[name].params.size for name in modules)
    vector, first = np.zeros(SIZE), 0
    for name in modules:
        size = start[name].params.size
        if name in trained:
            _add(vector, start[name].params, trained[name].params, first=first, whole=total <= SIZE)
        first += size
    return vector


def encoders(trained: ModelTensors, start: ModelTensors, modalities: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Returns the change of every encoder that was trained, by modality; they add up to that of all of them together.

    Args:
        trained: values after training.
        start: values before, of the whole model.
        modalities: to look at.
    """
    names = [name for name in sorted(start) if name.startswith("encoder.")]
    moved = {m: f"encoder.{m}" for m in modalities if f"encoder.{m}" in trained}
    return {m: sketch({name: trained[name]}, start, names) for m, name in moved.items()}


def _add(vector: NDArray[np.float64], start: Float32, trained: Float32, *, first: int, whole: bool) -> None:
    if whole:
        vector[first : first + start.size] += start.astype(np.float64) - trained
        return
    for begin in range(0, start.size, _BLOCK):
        part = slice(begin, begin + _BLOCK)
        change = start[part].astype(np.float64) - trained[part]
        bits = seeds.scramble(np.arange(first + begin, first + begin + change.size, dtype=np.uint64))
        np.negative(change, out=change, where=bits >> np.uint64(63) == 1)
        vector += np.bincount((bits % np.uint64(SIZE)).astype(np.int64), change, SIZE)


__all__ = ["SIZE", "encoders", "sketch"]

"""The map from a model's tensors to the initialisers of its graph, and its arithmetic: numpy only.

A graph is exported once; its initialisers are marked external and filled from the tensors of whatever version a device
runs. Nearly all are a tensor as it is. Where the graph holds a convolution (or linear layer) that has swallowed the
BatchNorm behind it, the fold is done here, for every new version:

    scale = γ / √(σ² + ε),   w' = w · scale (per output channel),   b' = β + (b − μ) · scale
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_sdk.core.errors import ShapeMismatch
from edge_sdk.core.records import Array, Float32, ModelLayout, ModelTensors, ModuleLayout, Segments


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """A tensor of the model."""

    module: str  # name in the federation's layout, "encoder.acc"
    tensor: str  # name in the module's state dict, "body.0.0.weight"


@dataclass(frozen=True, slots=True)
class Weight:
    """One initialiser, and how it is made."""

    name: str  # of the initialiser in the graph
    shape: tuple[int, ...]
    transform: str  # key of TRANSFORMS
    sources: tuple[Source, ...]  # what the transform takes, in its order
    eps: float = 0.0  # ε of the BatchNorm


def _identity(sources: Sequence[Float32], _: float) -> Float32:
    return sources[0]


def _scale(gamma: Float32, variance: Float32, eps: float) -> Array:
    return gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + eps)


def _fold_weight(sources: Sequence[Float32], eps: float) -> Float32:
    """Sources: w (O, …), γ (O,), σ² (O,)."""
    w, gamma, variance = sources
    scale = _scale(gamma, variance, eps).astype(np.float32)
    return w * scale.reshape(-1, *(1,) * (w.ndim - 1))


def _fold_bias(sources: Sequence[Float32], eps: float) -> Float32:
    """Sources: β (O,), γ (O,), μ (O,), σ² (O,), and the layer's own bias (O,) where it has one."""
    beta, gamma, mean, variance, *bias = sources
    before = bias[0] if bias else np.zeros_like(mean)
    return (beta + (before.astype(np.float64) - mean) * _scale(gamma, variance, eps)).astype(np.float32)


TRANSFORMS: Mapping[str, Callable[[Sequence[Float32], float], Float32]] = {
    "fold_bias": _fold_bias,
    "fold_weight": _fold_weight,
    "identity": _identity,
}


class WeightMap:
    """Makes the initialisers of one graph from model tensors.

    Args:
        layout: of the model that the graph was exported from.
        weights: the initialisers.
    """

    def __init__(self, layout: ModelLayout, weights: Sequence[Weight]) -> None:
        self.layout = layout
        self.weights = tuple(weights)
        self.modules = tuple(sorted({s.module for w in weights for s in w.sources}))  # that the graph reads

    def apply(self, tensors: ModelTensors) -> dict[str, Float32]:
        """Returns initialiser name → value, in memory of its own: later changes of `tensors` do not reach it.

        Raises:
            ShapeMismatch: a module is unknown or missing, or a segment has another size or type.
        """
        self._check(tensors)
        state = {m: _views(self.layout[m], tensors[m]) for m in self.modules}
        return {w.name: self._value(w, state) for w in self.weights}

    def _value(self, weight: Weight, state: Mapping[str, Mapping[str, Float32]]) -> Float32:
        sources = [state[s.module][s.tensor] for s in weight.sources]
        value = TRANSFORMS[weight.transform](sources, weight.eps).reshape(weight.shape)
        return np.array(value, np.float32, order="C")  # a copy: decoded buffers may be shared, or lie unaligned

    def _check(self, tensors: ModelTensors) -> None:
        for name in self.modules:
            if name not in tensors:
                raise ShapeMismatch(f"module {name!r} is missing; the graph needs {', '.join(self.modules)}")
        for name, values in tensors.items():
            if name not in self.layout:
                raise ShapeMismatch(f"unknown module {name!r}; the graph was made for {', '.join(self.layout)}")
            _check_module(name, self.layout[name], values)


def _check_module(name: str, layout: ModuleLayout, values: Segments) -> None:
    expected = {"params": layout.params, "stats": layout.stats}  # counters never reach a graph
    for segment, array in (("params", values.params), ("stats", values.stats)):
        if array.shape != (expected[segment],) or array.dtype != np.float32:
            raise ShapeMismatch(
                f"{name}.{segment}: expected float32 ({expected[segment]},), found {array.dtype} {array.shape};"
                " the tensors are of another model than the graph"
            )


def _views(layout: ModuleLayout, values: Segments) -> dict[str, Float32]:
    arrays = {"params": values.params, "stats": values.stats}
    return {
        t.name: arrays[t.segment][t.offset : t.offset + int(np.prod(t.shape, dtype=np.int64))].reshape(t.shape)
        for t in layout.tensors
        if t.segment in arrays
    }


__all__ = ["TRANSFORMS", "Source", "Weight", "WeightMap"]

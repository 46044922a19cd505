"""Arithmetic on a model's named tensors, grouped by module and laid out flat.

Every module of the federation ("encoder.acc", "fusion", …) has three segments: trainable values, running statistics
and integer counters, each the concatenation of its tensors in the order of their sorted names. `Flat` makes the live
torch module a set of views into such segments, so that reading, loading and mixing are operations on one buffer.
Constants that are not learned (input means) are non-persistent buffers: no state dict, no layout, no federation.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from edge_sdk.core.errors import ShapeMismatch
from edge_sdk.core.records import Array, ModelLayout, ModelTensors, ModuleLayout, Segments, TensorSpec

SEGMENTS = ("params", "stats", "counters")
DTYPES: Mapping[str, torch.dtype] = {"params": torch.float32, "stats": torch.float32, "counters": torch.int64}


def module_layout(module: nn.Module) -> ModuleLayout:
    """Returns where each tensor of a module lies in its segments.

    Raises:
        ShapeMismatch: a tensor has a type that no segment takes, or two names share one tensor.
    """
    return _layout(_state(module))


def _layout(state: Iterable[tuple[str, torch.Tensor]]) -> ModuleLayout:
    sizes = dict.fromkeys(SEGMENTS, 0)
    tensors = []
    for name, tensor in state:
        segment = _segment(name, tensor)
        tensors.append(TensorSpec(name, tuple(tensor.shape), segment, sizes[segment]))
        sizes[segment] += tensor.numel()
    return ModuleLayout(tuple(tensors), sizes["params"], sizes["stats"], sizes["counters"])


def model_layout(modules: Mapping[str, nn.Module]) -> ModelLayout:
    """Returns the layout of all modules, sorted by name."""
    return {name: module_layout(modules[name]) for name in sorted(modules)}


def layout_digest(layout: ModelLayout) -> str:
    """Returns blake2b-128 over names, shapes and segments of a layout, 32 hex digits."""
    rows = [(m, t.name, t.shape, t.segment) for m in sorted(layout) for t in layout[m].tensors]
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


def _state(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Returns the persistent tensors of a module by sorted name, live ones, not copies."""
    state = module.state_dict(keep_vars=True)
    places: dict[int, str] = {}
    for name, tensor in state.items():
        if tensor.numel() and places.setdefault(id(tensor), name) != name:
            raise ShapeMismatch(f"{name!r} and {places[id(tensor)]!r} are one tensor; tied tensors cannot be laid out")
    return sorted(state.items())


def _segment(name: str, tensor: torch.Tensor) -> str:
    inexact = "params" if isinstance(tensor, nn.Parameter) else "stats"
    segment = inexact if tensor.is_floating_point() else "counters"
    if tensor.dtype != DTYPES[segment]:
        raise ShapeMismatch(f"{name!r}: {segment} must be {DTYPES[segment]}, found {tensor.dtype}")
    return segment


class Flat:
    """Makes the tensors of live modules views into three contiguous segments per module.

    The binding is made again by itself where something (`.to()`, a checkpoint) has put other memory under the
    modules; segments handed out before that are then stale.

    Args:
        modules: module name → live module.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = {name: modules[name] for name in sorted(modules)}
        self.layout = model_layout(self.modules)
        self._buffers: dict[str, dict[str, torch.Tensor]] = {}
        self.bind()

    def bind(self) -> None:
        """Makes every tensor a view of its segment again; values stay."""
        for name, module in self.modules.items():
            self._bind(name, module)

    def _bind(self, name: str, module: nn.Module) -> None:
        layout, live = self.layout[name], dict(_state(module))
        device = next((t.device for t in live.values()), torch.device("cpu"))
        sizes = {"params": layout.params, "stats": layout.stats, "counters": layout.counters}
        buffers = {s: torch.empty(sizes[s], dtype=DTYPES[s], device=device) for s in SEGMENTS}
        for spec in layout.tensors:
            view = _view(buffers[spec.segment], spec)
            with torch.no_grad():
                view.copy_(live[spec.name])
            live[spec.name].data = view
        self._buffers[name] = buffers

    def bound(self, name: str) -> bool:
        """Returns True if every tensor of the module still lies where its segment has it."""
        live = dict(_state(self.modules[name]))
        buffers = self._buffers[name]
        return all(
            live[t.name].data_ptr() == _view(buffers[t.segment], t).data_ptr() for t in self.layout[name].tensors
        )

    def segments(self, name: str) -> Mapping[str, torch.Tensor]:
        """Returns the live segments of a module: "params", "stats", "counters"."""
        if not self.bound(name):
            self._bind(name, self.modules[name])
        return self._buffers[name]

    def read(self, names: Iterable[str] | None = None) -> ModelTensors:
        """Returns copies of the values of some modules, of all by default."""
        return {name: _copy(self.segments(name)) for name in sorted(self.modules if names is None else names)}

    def load(self, tensors: ModelTensors) -> None:
        """Puts values into the live modules that `tensors` names; the others stay.

        Raises:
            ShapeMismatch: an unknown module, or a segment of another size; nothing has been changed then.
        """
        check({name: self.layout[name] for name in self.layout}, tensors)
        for name, values in tensors.items():
            live = self.segments(name)
            for segment, array in _arrays(values).items():
                live[segment].copy_(_tensor(array))


def _view(buffer: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    size = math.prod(spec.shape)
    return buffer[spec.offset : spec.offset + size].view(spec.shape)


def _copy(live: Mapping[str, torch.Tensor]) -> Segments:
    params, stats, counters = (live[s].detach().cpu().numpy().copy() for s in SEGMENTS)
    return Segments(params, stats, counters)


def _tensor(array: Array) -> torch.Tensor:
    """Returns the array as a tensor; read-only memory (a file mapped in) is copied, torch would warn."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _arrays(values: Segments) -> dict[str, Array]:
    return {"params": values.params, "stats": values.stats, "counters": values.counters}


def read(modules: Mapping[str, nn.Module]) -> ModelTensors:
    """Returns copies of the values of live modules, without binding them to anything."""
    out = {}
    for name in sorted(modules):
        parts: dict[str, list[torch.Tensor]] = {segment: [] for segment in SEGMENTS}
        for key, tensor in _state(modules[name]):
            parts[_segment(key, tensor)].append(tensor.detach().reshape(-1))
        out[name] = _copy({s: torch.cat(p) if p else torch.empty(0, dtype=DTYPES[s]) for s, p in parts.items()})
    return out


def load(modules: Mapping[str, nn.Module], tensors: ModelTensors) -> None:
    """Puts values into live modules; those that `tensors` lacks stay.

    Raises:
        ShapeMismatch: an unknown module, or a segment of another size; nothing has been changed then.
    """
    states = {name: _state(modules[name]) for name in sorted(modules)}
    layout = {name: _layout(state) for name, state in states.items()}
    check(layout, tensors)
    live: list[torch.Tensor] = []
    given: list[torch.Tensor] = []
    for name, values in tensors.items():
        segments = {segment: _tensor(array) for segment, array in _arrays(values).items()}
        live += [tensor for _, tensor in states[name]]
        given += [_view(segments[spec.segment], spec) for spec in layout[name].tensors]
    if live:  # in one call: this is done before every phase
        with torch.no_grad():
            torch._foreach_copy_(live, given)


def check(layout: ModelLayout, tensors: ModelTensors) -> None:
    """Raises ShapeMismatch if a module is unknown, or a segment has another size or type than the layout says."""
    for name, values in tensors.items():
        if name not in layout:
            raise ShapeMismatch(f"unknown module {name!r}; the model has {', '.join(sorted(layout))}")
        expected = layout[name]
        sizes = (expected.params, expected.stats, expected.counters)
        for (segment, array), size in zip(_arrays(values).items(), sizes, strict=True):
            kind = np.int64 if segment == "counters" else np.float32
            if array.shape != (size,) or array.dtype != kind:
                raise ShapeMismatch(
                    f"{name}.{segment}: expected {np.dtype(kind).name} ({size},), found {array.dtype} {array.shape}"
                )


def named_arrays(layout: ModuleLayout, values: Segments) -> dict[str, Array]:
    """Returns the tensors of a module by state dict name, shaped, as views of its segments."""
    arrays = _arrays(values)
    out = {}
    for spec in layout.tensors:
        size = int(np.prod(spec.shape, dtype=np.int64))
        out[spec.name] = arrays[spec.segment][spec.offset : spec.offset + size].reshape(spec.shape)
    return out


def copy(tensors: ModelTensors) -> dict[str, Segments]:
    """Returns tensors with memory of their own, contiguous and writable."""
    return {n: Segments(s.params.copy(), s.stats.copy(), s.counters.copy()) for n, s in sorted(tensors.items())}


def delta(trained: ModelTensors, base: ModelTensors) -> dict[str, Segments]:
    """Returns trained − base in `params`; `stats` and `counters` stay the trained values, as an update carries them."""
    return {n: Segments(s.params - base[n].params, s.stats, s.counters) for n, s in sorted(trained.items())}


def add(base: ModelTensors, change: ModelTensors) -> dict[str, Segments]:
    """Returns base + change in `params` for the modules of `change`: the inverse of `delta` up to rounding."""
    return {n: Segments(base[n].params + s.params, s.stats, s.counters) for n, s in sorted(change.items())}


def norm(tensors: ModelTensors) -> float:
    """Returns the L2 norm over all `params`, summed in float64."""
    return float(np.sqrt(sum(float(np.dot(p, p)) for s in tensors.values() if (p := s.params.astype(np.float64)).size)))


def finite(tensors: ModelTensors) -> bool:
    """Returns True if no float value is NaN or infinite."""
    return all(bool(np.isfinite(s.params).all() and np.isfinite(s.stats).all()) for s in tensors.values())


def digest(tensors: ModelTensors) -> str:
    """Returns blake2b-128 over names and little-endian values, in sorted order, 32 hex digits."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        state.update(name.encode() + b"\0")
        for array, kind in zip(_arrays(tensors[name]).values(), ("<f4", "<f4", "<i8"), strict=True):
            state.update(np.ascontiguousarray(array, dtype=kind).data)
    return state.hexdigest()


def sq_dist(live: Iterable[torch.Tensor], fixed: Iterable[torch.Tensor]) -> torch.Tensor:
    """Returns Σ‖w − w₀‖² over pairs of tensors, a scalar with gradient in `live`."""
    terms = [((w - w0) ** 2).sum() for w, w0 in zip(live, fixed, strict=True)]
    return torch.stack(terms).sum() if terms else torch.zeros(())


__all__ = [
    "DTYPES",
    "SEGMENTS",
    "Flat",
    "add",
    "check",
    "copy",
    "delta",
    "digest",
    "finite",
    "layout_digest",
    "load",
    "model_layout",
    "module_layout",
    "named_arrays",
    "norm",
    "read",
    "sq_dist",
]

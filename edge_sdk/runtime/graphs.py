"""Where a device's inference graph comes from, and what its sidecar says of the model's layout.

A device that trains can export a graph by itself, in the training child. One that only predicts is given a graph; the
JSON beside it holds the layout that models are decoded by, so that no torch is needed.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from edge_sdk.core.errors import EngineError
from edge_sdk.core.records import ModelLayout, ModuleLayout, TensorSpec
from edge_sdk.core.spec import FederationSpec

log = logging.getLogger(__name__)


def layout_of(graph: Path) -> ModelLayout:
    """Returns the layout that the sidecar of a graph tells; EngineError if there is none."""
    plain = _sidecar(graph)
    try:
        return {name: _module(module) for name, module in sorted(plain["layout"].items())}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            f"{graph}: the layout in its sidecar is damaged ({error!r}); export the graph again"
        ) from error


def spec_of(graph: Path) -> FederationSpec:
    """Returns the spec that a graph was exported for; EngineError if its sidecar has none."""
    try:
        return FederationSpec.model_validate(_sidecar(graph)["spec"])
    except (KeyError, ValueError) as error:
        raise EngineError(f"{graph}: the spec in its sidecar is damaged ({error!r}); export the graph again") from error


def name_of(spec: FederationSpec) -> str:
    """Returns the name of the graph that a device exports for a spec into its state directory."""
    return f"graph-{spec.shape_digest[:16]}.onnx"


def sidecar_path(graph: Path) -> Path:
    """Returns where the sidecar of a graph lies."""
    return graph.with_name(graph.name + ".json")


def _sidecar(graph: Path) -> dict[str, Any]:
    path = sidecar_path(graph)
    try:
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}; copy it beside the graph") from error
    except ValueError as error:
        raise EngineError(f"{path}: is not JSON: {error}; export the graph again") from error
    return plain


def _module(plain: dict[str, Any]) -> ModuleLayout:
    tensors = tuple(
        TensorSpec(str(t["name"]), tuple(int(n) for n in t["shape"]), str(t["segment"]), int(t["offset"]))
        for t in plain["tensors"]
    )
    return ModuleLayout(tensors, int(plain["params"]), int(plain["stats"]), int(plain["counters"]))


__all__ = ["layout_of", "name_of", "sidecar_path", "spec_of"]

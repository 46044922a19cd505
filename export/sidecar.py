"""The JSON beside an exported graph: what the graph is, and how its initialisers are made from a model version.

`<graph>.json` holds everything an engine needs besides the graph and the tensors, so that a device without torch can
run new model versions. Reading checks every field and the graph's digest: a graph and a sidecar that do not belong
together are refused before any session is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_sdk.core.errors import EngineError
from edge_sdk.core.interfaces import GraphInfo
from edge_sdk.core.records import ModelLayout, ModuleLayout, TensorSpec
from edge_sdk.core.spec import FederationSpec
from export.weights import TRANSFORMS, Source, Weight, WeightMap

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Contents of `<graph>.json`."""

    spec: FederationSpec
    needs: Mapping[str, bool]  # fields of learn.records.Needs
    layout: ModelLayout
    layout_digest: str  # learn.params.layout_digest
    graph_digest: str  # blake2b-128 of the graph file
    weights: tuple[Weight, ...]

    @property
    def info(self) -> GraphInfo:
        """What the graph says of itself."""
        return graph_info(self.spec, self.layout_digest)

    @property
    def map(self) -> WeightMap:
        """Model tensors → initialisers."""
        return WeightMap(self.layout, self.weights)


def graph_info(spec: FederationSpec, layout_digest: str) -> GraphInfo:
    """Returns what an engine for this spec says of itself."""
    return GraphInfo(
        modalities=spec.modality_names,
        shapes={m.name: m.shape for m in spec.modalities},
        classes=spec.classes,
        layout_digest=layout_digest,
        shape_digest=spec.shape_digest,
    )


def path_of(graph: Path) -> Path:
    """Returns where the sidecar of a graph lies."""
    return graph.with_name(graph.name + ".json")


def digest(data: bytes) -> str:
    """Returns blake2b-128, 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def layout_digest(layout: ModelLayout) -> str:
    """Returns the same digest as `learn.params.layout_digest`, where there is no torch; a test holds them together."""
    rows = [(m, t.name, t.shape, t.segment) for m in sorted(layout) for t in layout[m].tensors]
    return digest(json.dumps(rows).encode())


def write(graph: Path, data: bytes, sidecar: Sidecar) -> None:
    """Writes graph and sidecar so that a reader finds either the old pair, the new pair, or one that it refuses."""
    replace(graph, data)
    replace(path_of(graph), (json.dumps(_plain(sidecar), indent=1, sort_keys=True) + "\n").encode())


def replace(path: Path, data: bytes) -> None:
    """Writes a file in one step: a reader finds the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(data)
    draft.replace(path)


def read(graph: Path) -> Sidecar:
    """Reads the sidecar of a graph.

    Raises:
        EngineError: it is missing or not what `write` writes.
    """
    path = path_of(graph)
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}; export the graph again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{path}: not a sidecar of format {FORMAT}: {error!r}; export the graph again") from error


def read_graph(graph: Path, sidecar: Sidecar) -> bytes:
    """Reads a graph and checks that it is the one the sidecar describes.

    Raises:
        EngineError: it is missing, or it is another file.
    """
    try:
        data = graph.read_bytes()
    except OSError as error:
        raise EngineError(f"{graph}: cannot be read: {error.strerror}; export it again") from error
    if digest(data) != sidecar.graph_digest:
        raise EngineError(f"{graph}: is not the graph that {path_of(graph).name} describes; export it again")
    return data


def _plain(sidecar: Sidecar) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "spec": json.loads(sidecar.spec.canonical()),
        "needs": dict(sidecar.needs),
        "layout": {name: asdict(layout) for name, layout in sidecar.layout.items()},
        "layout_digest": sidecar.layout_digest,
        "graph_digest": sidecar.graph_digest,
        "weights": [asdict(weight) for weight in sidecar.weights],
    }


def _parse(plain: dict[str, Any]) -> Sidecar:
    if plain["format"] != FORMAT:
        raise ValueError(f"format {plain['format']!r}")
    layout = {name: _layout(module) for name, module in plain["layout"].items()}
    if layout_digest(layout) != plain["layout_digest"]:
        raise ValueError("the layout does not have the digest it claims")
    return Sidecar(
        spec=FederationSpec.model_validate(plain["spec"]),
        needs={str(name): bool(value) for name, value in plain["needs"].items()},
        layout=layout,
        layout_digest=plain["layout_digest"],
        graph_digest=str(plain["graph_digest"]),
        weights=tuple(_weight(weight, layout) for weight in plain["weights"]),
    )


def _layout(plain: dict[str, Any]) -> ModuleLayout:
    tensors = tuple(TensorSpec(t["name"], tuple(t["shape"]), t["segment"], int(t["offset"])) for t in plain["tensors"])
    return ModuleLayout(tensors, int(plain["params"]), int(plain["stats"]), int(plain["counters"]))


def _weight(plain: dict[str, Any], layout: ModelLayout) -> Weight:
    sources = tuple(Source(s["module"], s["tensor"]) for s in plain["sources"])
    for source in sources:
        if source.tensor not in {t.name for t in layout[source.module].tensors}:
            raise ValueError(f"{plain['name']!r} is made from {source}, which the layout does not have")
    if plain["transform"] not in TRANSFORMS:
        raise ValueError(f"unknown transform {plain['transform']!r}")
    return Weight(plain["name"], tuple(plain["shape"]), plain["transform"], sources, float(plain["eps"]))


__all__ = [
    "FORMAT", "Sidecar", "digest", "graph_info", "layout_digest", "path_of", "read", "read_graph", "replace", "write",
]  # fmt: skip

"""The federated model as an ONNX graph: exported once, run with any version's weights.

    export_onnx        graph with external initialisers, and the sidecar that says how they are made from a version
    export_standalone  one ordinary ONNX file with a version's weights inside, for anything that reads ONNX

The map from tensors to initialisers is proved before anything is written: two different random models are put through
the new graph and compared with torch, at two batch sizes, under every mask. A map that is wrong, or a weight that the
exporter has turned into a constant, shows there and not on a device.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx

from edge_sdk.core import parity
from edge_sdk.core.errors import EngineError, ParityError
from edge_sdk.core.interfaces import GraphInfo
from edge_sdk.core.records import ModelTensors
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn import params
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from export import graphs, sidecar
from export import parity as torch_parity
from export.engines.ort import OrtEngine
from export.sidecar import Sidecar
from export.trace import constants, random_tensors, trace

SEEDS = (1, 2)  # of the two models that the map is proved with; the first one is traced
BATCHES = (1, 5)


def export_onnx(spec: FederationSpec, needs: Needs, path: Path, tensors: ModelTensors | None = None) -> GraphInfo:
    """Writes the federation's graph and its sidecar (`<path>.json`).

    Inputs are the modalities by name, float32 (B, *shape), and `mask`, float32 (B, M); the output is `logits`,
    float32 (B, C). One graph serves any batch and any mask.

    Args:
        spec: the federation.
        needs: what its method needs of the model.
        path: file to write.
        tensors: a version that the graph is proved with too, besides the random ones.

    Raises:
        ConfigError: the spec cannot be built, or a modality's name cannot be a graph input.
        EngineError: the model cannot be exported, or an initialiser depends on the weights in a way that is not known.
        ParityError: the graph says something else than torch.
    """
    layout = build.layout(spec, needs)
    proofs = [random_tensors(layout, seed) for seed in SEEDS]
    proto, weights = trace(spec, needs, proofs[0])
    data = proto.SerializeToString(deterministic=True)
    made = Sidecar(
        spec=spec,
        needs=asdict(needs),
        layout=layout,
        layout_digest=params.layout_digest(layout),
        graph_digest=sidecar.digest(data),
        weights=tuple(weights),
    )
    try:
        _prove(data, made, needs, proofs)
    except ParityError as error:
        raise _blame(made, needs, error) from error
    if tensors is not None:
        _prove(data, made, needs, [tensors])
    sidecar.write(path, data, made)
    return made.info


def _prove(data: bytes, made: Sidecar, needs: Needs, versions: Sequence[ModelTensors]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.onnx"
        sidecar.write(draft, data, made)
        for version in versions:
            engine = OrtEngine(draft, version)
            for batch in BATCHES:
                windows = parity.noise(made.spec, batch, batch)
                torch_parity.check(engine, made.spec, needs, tensors=version, windows=windows)


def _blame(made: Sidecar, needs: Needs, error: ParityError) -> EngineError:
    """Returns what to raise: the initialisers that changed with the weights though no tensor explains them."""
    before, after = (constants(made.spec, needs, random_tensors(made.layout, seed)) for seed in SEEDS)
    same = {n for n in before.keys() & after.keys() if np.array_equal(before[n], after[n])}
    guilty = sorted((before.keys() | after.keys()) - same)
    if not guilty:
        return error
    return EngineError(
        f"initialiser {', '.join(map(repr, guilty))} of the exported graph depends on the weights, but is no tensor of"
        " the model: it would not follow a new version. Compute it inside forward() from the parameters"
    )


def export_standalone(
    spec: FederationSpec,
    needs: Needs,
    tensors: ModelTensors,
    path: Path,
    *,
    version: str = "",
    graph: Path | None = None,
) -> GraphInfo:
    """Writes one ordinary ONNX file with the weights inside.

    Its metadata hold `classes` and `modalities` (JSON), `federation`, `spec_digest`, `layout_digest` and `version`.

    Args:
        spec: the federation.
        needs: what its method needs of the model.
        tensors: the version.
        path: file to write.
        version: the version's name, for the metadata.
        graph: an exported graph of this federation, which saves exporting it again.

    Raises:
        EngineError: as `export_onnx`, or `graph` is of another model.
        ShapeMismatch: the tensors do not fit the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = graph or Path(folder) / "graph.onnx"
        if graph is None:
            export_onnx(spec, needs, source)
        made = sidecar.read(source)
        if made.spec.shape_digest != spec.shape_digest or made.needs != asdict(needs):
            raise EngineError(f"{source}: was exported for another model than federation {spec.name!r} has now")
        proto = onnx.ModelProto.FromString(sidecar.read_graph(source, made))
    graphs.bake(proto.graph, made.map.apply(tensors))
    proto.producer_name = "edge-sdk"
    onnx.helper.set_model_props(proto, metadata(spec, made, version))
    sidecar.replace(path, proto.SerializeToString(deterministic=True))
    return made.info


def metadata(spec: FederationSpec, made: Sidecar, version: str) -> dict[str, str]:
    """Returns what a standalone file says of itself."""
    return {
        "classes": json.dumps(list(spec.classes)),
        "federation": spec.name,
        "layout_digest": made.layout_digest,
        "modalities": json.dumps(list(spec.modality_names)),
        "spec_digest": spec.digest,
        "version": version,
    }


__all__ = ["export_onnx", "export_standalone", "metadata"]

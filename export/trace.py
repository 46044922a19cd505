"""The federated model as an ONNX graph whose weights stay open, and nothing printed on the way.

torch traces the model once. The graph's initialisers are then told apart by *value*, not by name: the model is filled
with random values beforehand, so that an initialiser is the tensor whose bytes it has. What matches none is a constant
of the spec and stays in the graph.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnxscript.optimizer
import torch
from onnx import numpy_helper
from torch import nn

from edge_sdk.core.errors import ConfigError, EngineError
from edge_sdk.core.parity import random_tensors
from edge_sdk.core.records import Array, ModelLayout, ModelTensors
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn import params
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from export import graphs
from export.weights import Source, Weight

IR_VERSION = 10  # the newest that ONNX Runtime and TensorRT of the supported boards read
RESERVED = ("mask", "logits")
CHATTY = ("torch.onnx", "torch.export", "torch.__trace", "onnxscript", "onnx_ir")


class _Positional(nn.Module):
    """The fused model with one argument per modality and the mask last."""

    def __init__(self, model: build.FusedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        *x, mask = inputs
        logits: torch.Tensor = self.model(dict(zip(self.model.modalities, x, strict=True)), mask)
        return logits


def trace(spec: FederationSpec, needs: Needs, tensors: ModelTensors) -> tuple[onnx.ModelProto, list[Weight]]:
    """Returns the optimised graph with empty external initialisers, and how they are made.

    Args:
        spec: the federation.
        needs: what the method needs of the model.
        tensors: values to trace with, see `random_tensors`: no two tensors may be equal.
    """
    proto, weights = _named_graph(spec, needs, tensors)
    graphs.open_weights(proto.graph, weights)  # as inputs, so that the optimiser takes none for a constant
    proto = _optimise(proto)
    weights += graphs.fold_batchnorm(proto.graph, weights)
    used = graphs.close_weights(proto.graph, weights)
    graphs.strip(proto)
    return proto, used


def constants(spec: FederationSpec, needs: Needs, tensors: ModelTensors) -> dict[str, Array]:
    """Returns what the traced graph holds besides the model's tensors, by name: it must not depend on `tensors`."""
    proto, weights = _named_graph(spec, needs, tensors)
    ours = {w.name for w in weights}
    return {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer if i.name not in ours}


def _named_graph(spec: FederationSpec, needs: Needs, tensors: ModelTensors) -> tuple[onnx.ModelProto, list[Weight]]:
    model = build.build(spec, needs)
    params.load(model.named(), tensors)
    proto = _export(model, spec)
    names, weights = _match(proto.graph, _named(params.model_layout(model.named()), tensors))
    graphs.rename(proto.graph, names)
    return proto, weights


def _export(model: build.FusedModel, spec: FederationSpec) -> onnx.ModelProto:
    taken = [m for m in spec.modality_names if m in RESERVED]
    if taken:
        raise ConfigError(f"a modality cannot be called {taken[0]!r} in an exported graph; rename it")
    batch = 3  # not 1: torch would take that for a constant
    inputs = (*(torch.randn(batch, *m.shape) for m in spec.modalities), torch.ones(batch, len(spec.modalities)))
    free = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    try:
        with _quiet():
            program = torch.onnx.export(
                _Positional(model).eval(),
                inputs,
                dynamo=True,
                verbose=False,
                optimize=False,
                input_names=[*spec.modality_names, "mask"],
                output_names=["logits"],
                dynamic_shapes=(free,),
            )
    except (torch.onnx.errors.OnnxExporterError, torch.onnx.errors.UnsupportedOperatorError) as error:
        raise EngineError(f"torch cannot export the model of federation {spec.name!r}: {_reason(error)}") from error
    if program is None:
        raise EngineError("torch.onnx.export returned nothing")
    proto: onnx.ModelProto = program.model_proto
    return proto


def _reason(error: BaseException) -> str:
    """Returns which operator is in the way, else the first line of the first cause: the whole text is a page."""
    while error.__cause__ is not None:
        error = error.__cause__
    operator = re.search(r"op='([\w.]+)'", str(error))
    return f"operator {operator[1]} is not supported" if operator else str(error).partition("\n")[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's remarks on itself (no torchvision, deprecations inside torch) from the user's terminal."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _named(layout: ModelLayout, tensors: ModelTensors) -> dict[Source, Array]:
    return {
        Source(module, name): array
        for module in layout
        for name, array in params.named_arrays(layout[module], tensors[module]).items()
    }


def _match(graph: onnx.GraphProto, named: Mapping[Source, Array]) -> tuple[dict[str, str], list[Weight]]:
    """Returns initialiser name → "<module>:<tensor>", and the tensors that the graph has as they are."""
    by_bytes = {(a.shape, a.tobytes()): source for source, a in named.items() if a.dtype == np.float32}
    names: dict[str, str] = {}
    weights: dict[Source, Weight] = {}
    for initializer in graph.initializer:
        array = numpy_helper.to_array(initializer)
        source = by_bytes.get((array.shape, array.tobytes())) if array.dtype == np.float32 else None
        if source is not None:
            names[initializer.name] = f"{source.module}:{source.tensor}"
            weights[source] = Weight(names[initializer.name], array.shape, "identity", (source,))
    return names, list(weights.values())


def _optimise(proto: onnx.ModelProto) -> onnx.ModelProto:
    with _quiet():
        proto = onnxscript.optimizer.optimize(proto)
    if proto.ir_version > IR_VERSION:
        raise EngineError(f"the exporter wrote IR version {proto.ir_version}; devices read up to {IR_VERSION}")
    return proto


__all__ = ["IR_VERSION", "constants", "random_tensors", "trace"]

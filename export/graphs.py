"""Surgery on ONNX graphs: names, BatchNorm, and weights that are filled in when a session is made.

The exporter's optimiser folds BatchNorm into the convolution before it; what it leaves are initialisers that are no
tensor of the model, and putting the model's tensors there runs without an error and is wrong. So the fold is done here,
where it is written down which tensors went into it, and the optimiser then gets the weights as graph inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.core.records import Float32
from export.weights import Weight

FILLED_LATER = "weights"  # location of the external initialisers; no such file exists


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yields all nodes, those of subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from nodes(inner)


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Gives initialisers new names; two that get the same name become one."""
    kept: dict[str, TensorProto] = {}
    for initializer in graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)
        kept[initializer.name] = initializer
    unique = [TensorProto.FromString(i.SerializeToString()) for i in kept.values()]
    del graph.initializer[:]
    graph.initializer.extend(unique)
    for node in nodes(graph):
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)


def fold_batchnorm(graph: onnx.GraphProto, weights: Sequence[Weight]) -> list[Weight]:
    """Takes every BatchNormalization out that directly follows a convolution or a linear layer.

    Args:
        graph: changed in place, its weights open (`open_weights`).
        weights: the tensors that the graph has as they are.

    Returns:
        The initialisers that now stand in place of layer and BatchNorm; `close_weights` puts them in.
    """
    plain = {w.name: w for w in weights}
    zeros = {i.name for i in graph.initializer if not numpy_helper.to_array(i).any()}
    out: list[Weight] = []
    for norm in [n for n in graph.node if n.op_type == "BatchNormalization"]:
        layer = _foldable(graph, norm)
        if layer is None:
            continue
        tensors = [*norm.input[1:], *(name for name in layer.input[1:] if name not in zeros)]  # no bias: zeros
        if all(name in plain for name in tensors):
            pair = _folded(norm, [plain[name] for name in tensors])
            out += pair
            layer.input[1:] = [w.name for w in pair]
            layer.output[0] = norm.output[0]
            graph.node.remove(norm)
    return out


def _foldable(graph: onnx.GraphProto, norm: onnx.NodeProto) -> onnx.NodeProto | None:
    """Returns the layer before a BatchNormalization if it is linear and nothing else reads it."""
    value = norm.input[0]
    layer: onnx.NodeProto | None = next((n for n in graph.node if value in n.output), None)
    readers = sum(list(n.input).count(value) for n in nodes(graph)) + sum(o.name == value for o in graph.output)
    if layer is None or readers != 1:
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in layer.attribute}
    plain_gemm = attributes.get("transB", 0) == attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1
    if layer.op_type == "Conv" or (layer.op_type == "Gemm" and plain_gemm):
        return layer
    return None


def _folded(norm: onnx.NodeProto, tensors: Sequence[Weight]) -> tuple[Weight, Weight]:
    """Returns weight and bias; `tensors` are γ, β, μ, σ² of the norm, then weight and, if any, bias of the layer."""
    eps = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    gamma, beta, mean, variance, weight, *bias = (t.sources[0] for t in tensors)
    shape, name = tensors[4].shape, tensors[0].name  # named by the norm: a layer may be shared, its norm is not
    return (
        Weight(f"{name}*weight", shape, "fold_weight", (weight, gamma, variance), eps),
        Weight(f"{name}*bias", shape[:1], "fold_bias", (beta, gamma, mean, variance, *bias), eps),
    )


def open_weights(graph: onnx.GraphProto, weights: Sequence[Weight]) -> None:
    """Makes weights graph inputs: no optimiser can then fold one version's values into the graph."""
    names = {w.name for w in weights}
    kept = [i for i in graph.initializer if i.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.input.extend(helper.make_tensor_value_info(w.name, TensorProto.FLOAT, w.shape) for w in weights)


def close_weights(graph: onnx.GraphProto, weights: Sequence[Weight]) -> list[Weight]:
    """Makes weights external initialisers, filled when a session is made; returns those that the graph uses."""
    names = {w.name for w in weights}
    kept = [i for i in graph.input if i.name not in names]
    del graph.input[:]
    graph.input.extend(kept)
    read = {name for node in nodes(graph) for name in node.input}
    used = [w for w in weights if w.name in read]
    graph.initializer.extend(_external(w) for w in used)
    return used


def _external(weight: Weight) -> TensorProto:
    tensor = TensorProto(name=weight.name, dims=weight.shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=FILLED_LATER)
    return tensor


def bake(graph: onnx.GraphProto, values: Mapping[str, Float32]) -> None:
    """Puts values into the external initialisers: a graph that any runtime reads by itself."""
    for initializer in graph.initializer:
        if initializer.name in values:
            initializer.CopyFrom(numpy_helper.from_array(values[initializer.name], initializer.name))


def baked(data: bytes, values: Mapping[str, Float32]) -> bytes:
    """Returns a graph file with values put into its external initialisers."""
    proto = onnx.ModelProto.FromString(data)
    bake(proto.graph, values)
    out: bytes = proto.SerializeToString(deterministic=True)
    return out


def strip(proto: onnx.ModelProto) -> None:
    """Takes out what the exporter notes about itself: two thirds of a small graph, and paths of the machine."""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
    for node in nodes(proto.graph):
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.value_info[:]


__all__ = ["bake", "baked", "close_weights", "fold_batchnorm", "nodes", "open_weights", "rename", "strip"]

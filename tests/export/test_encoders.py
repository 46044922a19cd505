"""The large encoders as graphs: ResNet-18 over one and three channels, BERT and ViT, in one federation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_sdk.core import parity, registry
from edge_sdk.core.interfaces import mask_row
from edge_sdk.core.records import Float32
from edge_sdk.core.spec import FederationSpec, ModalitySpec, ModelSpec
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from export import sidecar
from export.engines.ort import OrtEngine
from export.engines.torch_engine import TorchEngine
from export.trace import IR_VERSION, random_tensors
from tests.export.test_to_onnx import SHAPES
from tests.helpers.exports import exported

pytest.importorskip("transformers", reason="transformers is not installed (extra `text`)")

NEEDS = Needs(heads=True)
WORDS = 50
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {"model_type": "bert", "vocab_size": WORDS, "max_position_embeddings": 12, **LAYERS}
VIT = {"model_type": "vit", "patch_size": 8, **LAYERS}
SPEC = FederationSpec(
    name="large",
    modalities=(
        ModalitySpec(
            name="camera", shape=(3, 33, 47), encoder="resnet18", encoder_config={"width": 8},
            mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3),
        ),
        ModalitySpec(name="sound", shape=(1, 40, 32), encoder="resnet18", encoder_config={"width": 4}),
        ModalitySpec(name="note", shape=(2, 12), encoder="bert", encoder_config={"config": BERT}),
        ModalitySpec(name="picture", shape=(3, 24, 16), encoder="vit", encoder_config={"config": VIT}),
    ),
    classes=("a", "b", "c"),
    model=ModelSpec(feature_dim=64, fusion="mlp", hidden=24),  # 8 · width of the camera: no projection behind it
)  # fmt: skip


@pytest.fixture(scope="module")
def graph() -> Path:
    return exported(SPEC, NEEDS)


def windows(n: int) -> dict[str, Float32]:
    """Noise, but texts of different lengths as the note: token numbers and what of them is there."""
    rng = np.random.default_rng(n)
    there = np.arange(12) < rng.integers(2, 13, (n, 1))  # (n, 12)
    note = np.stack([rng.integers(5, WORDS, (n, 12)) * there, there], axis=1)  # (n, 2, 12)
    return {**parity.noise(SPEC, n, n), "note": note.astype(np.float32)}


def rows() -> dict[str, Float32]:
    pair = mask_row(("sound", "note"), SPEC.modality_names)
    return {**parity.masks(SPEC), "a pair": pair, "nothing": np.zeros((1, 4), np.float32)}


def test_every_encoder_on_offer_is_exported_somewhere() -> None:
    assert {m.encoder for m in SPEC.modalities} | set(SHAPES) == set(registry.names("encoders"))


@pytest.mark.parametrize("batch", [1, 2, 5, 17])
def test_swapped_weights_give_the_logits_of_torch(graph: Path, batch: int) -> None:
    x = windows(batch)
    layout = build.layout(SPEC, NEEDS)
    engine = OrtEngine.open(graph, random_tensors(layout, 1))
    for tensors in (random_tensors(layout, 2), build.initial_tensors(SPEC, NEEDS, 3)):
        truth = TorchEngine(SPEC, NEEDS, tensors)
        report = parity.check(engine.with_tensors(tensors), truth, x, rows=rows(), tolerance=1e-5)
        assert report.agreement == 1.0


def test_what_the_mask_takes_away_does_not_count(graph: Path) -> None:
    engine = OrtEngine.open(graph, random_tensors(build.layout(SPEC, NEEDS), 1))
    x = windows(4)
    mask = np.repeat(mask_row(("camera", "note"), SPEC.modality_names), 4, axis=0)
    kept = {m: x[m] for m in ("camera", "note")}
    np.testing.assert_allclose(engine.run(x, mask), engine.run(kept, mask), atol=1e-6)


def test_every_batchnorm_is_folded_on_the_host(graph: Path) -> None:
    proto = onnx.load(str(graph), load_external_data=False)
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert kinds["BatchNormalization"] == 0
    made = sidecar.read(graph)
    folds = Counter(w.transform for w in made.weights)
    assert folds["fold_weight"] == folds["fold_bias"] == 40  # 20 convolutions in each of the two networks
    assert proto.ir_version <= IR_VERSION
    assert all(i.type.tensor_type.shape.dim[0].dim_param for i in proto.graph.input)  # any batch

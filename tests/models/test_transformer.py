"""BERT and ViT through transformers: tiny random configurations, saved to disk where a source is wanted.

All of it is one file: the first import of transformers takes seconds, once per process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_sdk.codecs.chain import Chain
from edge_sdk.core.errors import ConfigError, PluginError, ShapeMismatch
from edge_sdk.core.records import RoundData
from edge_sdk.core.spec import FederationSpec, MethodSpec, ModalitySpec, ModelSpec, TrainingSpec
from edge_sdk.learn import params
from edge_sdk.models import build
from edge_sdk.models.transformer import Bert, Vit
from tests.helpers import learning
from tests.helpers.codec_examples import make_update

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `text`)")

LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT: dict[str, Any] = {"model_type": "bert", "vocab_size": 50, "max_position_embeddings": 12, **LAYERS}
VIT: dict[str, Any] = {"model_type": "vit", "patch_size": 8, **LAYERS}
NOTE = ModalitySpec(name="note", shape=(2, 12), encoder="bert", encoder_config={"config": BERT})
IMAGE = ModalitySpec(name="camera", shape=(3, 24, 16), encoder="vit", encoder_config={"config": VIT})


def spec(note: ModalitySpec = NOTE, **changes: Any) -> FederationSpec:
    return FederationSpec(
        name="t", modalities=(note, IMAGE), classes=("a", "b"),
        **{"model": ModelSpec(feature_dim=6), "training": TrainingSpec(lr=0.1, epochs=3, batch_size=8), **changes},
    )  # fmt: skip


def notes(n: int, seed: int = 0, length: int = 12) -> torch.Tensor:
    """Token numbers and mask of texts of different lengths, (n, 2, length)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, length + 1, (n, 1), generator=generator)
    mask = (torch.arange(length) < sizes).float()
    return torch.stack([torch.randint(5, 50, (n, length), generator=generator) * mask, mask], dim=1)


def saved(folder: Path, config: dict[str, Any], **changes: Any) -> Any:
    """Saves a random model as the library does; returns it."""
    torch.manual_seed(3)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**{**config, **changes}))
    model.save_pretrained(folder)
    return model


def source(folder: Path, **config: Any) -> ModalitySpec:
    return NOTE.model_copy(update={"encoder_config": {"source": str(folder), **config}})


def test_sizes() -> None:
    hidden, wide = 16, 32
    layer = 4 * (hidden * hidden + hidden) + 2 * hidden * wide + hidden + wide + 4 * hidden
    bert = (50 + 12 + 2) * hidden + 2 * hidden + 2 * layer  # words, positions, segments, their norm
    vit = hidden + 7 * hidden + 3 * 8 * 8 * hidden + hidden + 2 * layer + 2 * hidden
    layout = build.layout(spec())
    assert layout["encoder.note"].params == bert + hidden * 6 + 6
    assert layout["encoder.camera"].params == vit + hidden * 6 + 6
    assert all(m.stats == m.counters == 0 for m in layout.values())
    base = transformers.AutoConfig.for_model("bert")
    with torch.device("meta"):
        body = transformers.AutoModel.from_config(base)
    pooler = sum(p.numel() for p in body.pooler.parameters())
    assert sum(p.numel() for p in body.parameters()) - pooler == 108_891_648  # BERT-base, 109 482 240 with its pooler


def test_every_value_learns() -> None:
    model = build.build(spec())
    x = {"note": notes(4), "camera": torch.randn(4, 3, 24, 16)}
    features = model.encode(x)
    assert {m: tuple(h.shape) for m, h in features.items()} == {"note": (4, 6), "camera": (4, 6)}
    sum(h.square().sum() for h in features.values()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.encoders.parameters())


def test_what_lies_behind_the_mask_changes_nothing_and_what_is_before_it_does() -> None:
    encoder, x = build.build(spec()).eval().encoders["encoder_note"], notes(5)
    with torch.no_grad():
        h = encoder(x)
        behind, before = x.clone(), x.clone()
        behind[:, 0] += 7 * (1 - x[:, 1])
        before[:, 0, 1] = (before[:, 0, 1] + 1) % 50
        assert torch.allclose(encoder(behind), h, atol=1e-5)
        assert not torch.allclose(encoder(before), h, atol=1e-5)
        assert torch.allclose(encoder(x[1:2]), h[1:2], atol=1e-5)


@pytest.mark.parametrize("x", [torch.zeros(3, 2, 12), torch.full((3, 2, 12), -1e9), torch.randn(3, 2, 12) * 1e6])
def test_whatever_a_masked_row_holds_is_finite(x: torch.Tensor) -> None:
    assert bool(build.build(spec()).encoders["encoder_note"](x).isfinite().all())


def test_version_0_begins_with_a_folders_values_and_the_table_alone_gives_the_same_layers(tmp_path: Path) -> None:
    theirs = saved(tmp_path, BERT)
    ours = spec(source(tmp_path))
    layout = build.layout(ours)["encoder.note"]
    made = params.named_arrays(layout, build.initial_tensors(ours)["encoder.note"])
    expected = {f"body.{n}": t.numpy() for n, t in theirs.state_dict().items() if not n.startswith("pooler.")}
    assert set(made) == {*expected, "out.weight", "out.bias"}
    assert all(np.array_equal(made[n], t) for n, t in expected.items())
    assert layout == build.layout(spec())["encoder.note"]
    model, x = build.build(ours).eval(), notes(3)
    params.load(model.named(), build.initial_tensors(ours))
    with torch.no_grad():
        states = theirs.eval()(input_ids=x[:, 0].long(), attention_mask=x[:, 1].long()).last_hidden_state[:, 0]
        out = model.encoders["encoder_note"].out
        assert torch.allclose(model.encode({"note": x})["note"], torch.relu(out(states)), atol=1e-5)


def test_a_device_needs_no_values(tmp_path: Path) -> None:
    saved(tmp_path, BERT)
    (tmp_path / "model.safetensors").unlink()
    ours = spec(source(tmp_path))
    assert build.layout(ours) == build.layout(spec())
    with pytest.raises(ConfigError, match=r"modality note: encoder_config.source: .*set pretrained = false"):
        build.initial_tensors(ours)
    assert build.initial_tensors(spec(source(tmp_path, pretrained=False))).keys() == build.layout(ours).keys()


def test_half_precision_values_are_widened(tmp_path: Path) -> None:
    saved(tmp_path, BERT).half().save_pretrained(tmp_path)
    values = build.initial_tensors(spec(source(tmp_path)))["encoder.note"].params
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


def test_pickled_values_are_not_read(tmp_path: Path) -> None:
    model = saved(tmp_path, BERT)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="holds no such model"):
        build.initial_tensors(spec(source(tmp_path)))


def test_a_folder_whose_values_are_not_all_there(tmp_path: Path) -> None:
    saved(tmp_path, BERT, num_hidden_layers=1)
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    with pytest.raises(ConfigError, match=r"lacks 16 of \d+ tensors, first 'encoder.layer.1"):
        build.initial_tensors(spec(source(tmp_path)))


def test_a_damaged_file(tmp_path: Path) -> None:
    saved(tmp_path, BERT)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match=r"modality note: encoder_config.source: .*holds no such model"):
        build.initial_tensors(spec(source(tmp_path)))


def test_a_vision_source_says_which_images_it_takes(tmp_path: Path) -> None:
    saved(tmp_path, VIT, image_size=16)

    def camera(shape: tuple[int, ...], **config: Any) -> Vit:
        return Vit(ModalitySpec(name="camera", shape=shape), 6, source=str(tmp_path), **config)

    with pytest.raises(ConfigError, match=r"takes images of \(3, 16, 16\), the shape is \(3, 48, 16\)"):
        camera((3, 48, 16))
    encoder = camera((3, 16, 16))
    encoder.load_weights()
    expected = transformers.AutoModel.from_pretrained(tmp_path).state_dict()["layernorm.weight"]
    assert torch.equal(encoder.body.layernorm.weight, expected)
    assert camera((1, 48, 16), pretrained=False)(torch.zeros(1, 1, 48, 16)).shape == (1, 6)


def test_training_predicting_and_travelling() -> None:
    """Two classes, told apart by a word and a colour: a training round learns them; the update survives the codecs."""
    ours = spec(method=MethodSpec(name="fedasync"))
    n = 48
    y = np.arange(n) % 2
    note = notes(n, seed=1).numpy()
    note[:, 0, 1] = np.where(y == 1, 7, 9)
    camera = np.random.default_rng(0).normal(size=(n, 3, 24, 16)).astype(np.float32) * 0.3 + y[:, None, None, None]
    x = {"note": note.astype(np.float32), "camera": camera.astype(np.float32)}
    data = RoundData(np.arange(n), y, x, {m: np.ones(n, np.bool_) for m in x})
    start = build.initial_tensors(ours)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        result, _ = learning.train_round(ours, ("note", "camera"), data=data, start=start)
        again, _ = learning.train_round(ours, ("note", "camera"), data=data, start=start)
    finally:
        torch.use_deterministic_algorithms(before)
    assert learning.equal(result.tensors, again.tensors)
    model = build.build(ours).eval()
    params.load(model.named(), result.tensors)
    with torch.no_grad():
        logits = model({m: torch.from_numpy(a) for m, a in x.items()}, torch.ones(n, 2))
    assert (logits.argmax(1).numpy() == y).mean() > 0.9

    layout = build.layout(ours)
    chain = Chain("delta|int8|zstd", layout)
    change = params.delta(result.tensors, start)
    encoded = chain.encode_update(make_update(change))
    found = chain.decode_update(encoded.data).tensors
    assert params.norm(params.delta(found, change)) <= 0.02 * params.norm(change)


def test_tied_values_are_refused() -> None:
    encoder = build.build(spec()).encoders["encoder_note"]
    first, second = encoder.body.encoder.layer
    second.output.dense.weight = first.output.dense.weight
    with pytest.raises(ShapeMismatch, match="one tensor"):
        params.module_layout(encoder)


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((3, 12), {"config": BERT}, r"expected a shape \(2, length\), tokens and mask, found \(3, 12\)"),
        ((12,), {"config": BERT}, r"expected a shape \(2, length\), found \(12,\)"),
        ((2, 13), {"config": BERT}, r"windows of 13 tokens, but the encoder has 12 positions"),
        ((2, 12), {}, r"encoder_config needs a source \(folder or name on the hub\) or a config"),
        ((2, 12), {"config": LAYERS}, r"encoder_config.config: model_type is missing"),
        ((2, 12), {"config": {"model_type": "bort"}}, r"encoder_config.config: transformers refuses it"),
        ((2, 12), {"source": "/no/such/folder"}, r"encoder_config.source: there is no folder '/no/such/folder'"),
        ((2, 12), {"source": "a/b/c"}, r"encoder_config.source: there is no folder 'a/b/c'"),
    ],
)
def test_wrong_configurations_are_named(shape: tuple[int, ...], config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"modality note: {message}"):
        Bert(ModalitySpec(name="note", shape=shape), 6, **config)


def test_wrong_image_configurations_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"modality x: \(24, 20\) pixels are no whole patches of 8"):
        Vit(ModalitySpec(name="x", shape=(3, 24, 20)), 6, config=VIT)
    with pytest.raises(ConfigError, match=r"expected a shape \(channels, height, width\)"):
        Vit(ModalitySpec(name="x", shape=(3, 24)), 6, config=VIT)
    with pytest.raises(ConfigError, match="holds no such model"):
        Vit(ModalitySpec(name="x", shape=(3, 24, 16)), 6, source=str(tmp_path))


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PluginError, match=r"modality note: .*pip install 'edge-sdk\[text\]'"):
        build.build(spec())

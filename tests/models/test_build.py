from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_sdk.core.errors import ConfigError, PluginError
from edge_sdk.core.spec import FederationSpec, ModalitySpec, ModelSpec
from edge_sdk.learn import params
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from edge_sdk.models.encoders import Cnn1d, Cnn2d, Mlp
from edge_sdk.models.fusion import CosineFusion, LinearFusion, MlpFusion
from tests.helpers import learning
from tests.helpers.specs import har_spec, tri_spec


def rows(spec: FederationSpec, n: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {m.name: torch.randn(n, *m.shape, generator=generator) for m in spec.modalities}


def test_auto_chooses_by_the_number_of_dimensions() -> None:
    model = build.build(tri_spec())
    kinds = {name: type(module) for name, module in model.named().items()}
    assert kinds == {"encoder.imu": Cnn1d, "encoder.camera": Cnn2d, "encoder.audio": Mlp, "fusion": MlpFusion}
    assert type(build.build(har_spec()).fusion) is LinearFusion


def test_needs() -> None:
    model = build.build(har_spec(), Needs(heads=True, cosine_head=True))
    assert type(model.fusion) is CosineFusion
    assert list(model.named()) == ["encoder.acc", "encoder.gyro", "fusion", "head.acc", "head.gyro"]
    assert list(build.layout(har_spec(), Needs(heads=True))) == list(model.named())


def test_layout_and_initial_tensors_agree() -> None:
    spec = tri_spec()
    params.check(build.layout(spec), build.initial_tensors(spec))


def test_the_seed_alone_decides_the_values_and_the_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    one = build.initial_tensors(har_spec(), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert learning.equal(one, build.initial_tensors(har_spec(), seed=1))
    assert not learning.equal(one, build.initial_tensors(har_spec(), seed=2))


def test_shared_heads_do_not_change_the_other_modules_values() -> None:
    plain, more = build.initial_tensors(har_spec()), build.initial_tensors(har_spec(), Needs(heads=True))
    assert learning.equal(plain, {name: more[name] for name in plain})


def test_a_masked_modality_counts_as_zero_features() -> None:
    spec = har_spec()
    model, x = build.build(spec).eval(), rows(spec)
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    with torch.no_grad():
        h = model.encode(x)
        logits = model(x, mask)
        both = model.fusion(torch.cat([h["acc"], h["gyro"]], dim=1))
        only = [model.fusion.unimodal_logits(m, h[m]) for m in ("acc", "gyro")]
        bias = model.fusion.linear.bias / 2
    assert torch.allclose(logits[0], both[0], atol=1e-6)
    assert torch.allclose(logits[1], only[0][1] + bias, atol=1e-6)
    assert torch.allclose(logits[2], only[1][2] + bias, atol=1e-6)


def test_an_absent_modality_is_the_same_as_a_masked_one() -> None:
    spec = tri_spec()
    model, x = build.build(spec).eval(), rows(spec)
    mask = torch.tensor([[1.0, 0.0, 1.0]] * 3)
    with torch.no_grad():
        assert torch.equal(model({m: a for m, a in x.items() if m != "camera"}, mask), model(x, mask))


def test_encode_only() -> None:
    spec = tri_spec()
    assert list(build.build(spec).encode(rows(spec), ("audio", "imu"))) == ["imu", "audio"]  # order of the spec


def test_any_identifier_is_a_possible_modality_name() -> None:
    names = ("keys", "type", "forward", "encoder-1")
    spec = FederationSpec(
        name="t", modalities=tuple(ModalitySpec(name=n, shape=(4,)) for n in names), classes=("a", "b")
    )
    assert set(build.build(spec, Needs(heads=True)).named()) == {
        "fusion", *(f"encoder.{n}" for n in names), *(f"head.{n}" for n in names)
    }  # fmt: skip


def test_the_default_har_model_is_small_and_a_benchmark_model_can_be_asked_for() -> None:
    def size(config: dict) -> int:
        modalities = tuple(ModalitySpec(name=m, shape=(3, 128), encoder_config=config) for m in ("acc", "gyro"))
        spec = FederationSpec(name="t", modalities=modalities, classes=tuple("abcdef"))
        return sum(layout.params for layout in build.layout(spec).values())

    assert size({}) <= 60_000
    assert 210_000 <= size({"width": 56}) <= 230_000


def test_errors_name_the_modality() -> None:
    def spec(**changes: object) -> FederationSpec:
        return FederationSpec(
            name="t", modalities=(ModalitySpec(name="acc", shape=(3, 8), **changes),), classes=("a", "b")
        )

    with pytest.raises(ConfigError, match=r"modality acc: encoder 'cnn1d' refuses its encoder_config.*depth"):
        build.build(spec(encoder_config={"depth": 3}))
    with pytest.raises(PluginError, match=r"no plug-in 'cnn9d' among edge_sdk.encoders"):
        build.build(spec(encoder="cnn9d"))
    with pytest.raises(ConfigError, match=r"it has encoder.acc, fusion"):
        build.build(spec()).module("encoder.gyro")


def test_hidden_size_of_the_mlp_fusion() -> None:
    spec = tri_spec(model=ModelSpec(feature_dim=4, fusion="mlp", hidden=9))
    assert build.layout(spec)["fusion"].params == 12 * 9 + 9 + 9 * 4 + 4
    assert np.isfinite(build.initial_tensors(spec)["fusion"].params).all()

"""ResNet-18: sizes, torchvision's names, checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import FederationSpec, ModalitySpec, ModelSpec
from edge_sdk.learn import params
from edge_sdk.models import build
from edge_sdk.models.resnet import ResNet18
from tests.helpers import learning

IMAGE = ModalitySpec(name="camera", shape=(3, 40, 33))


def torchvision_names() -> list[str]:
    """The state dict of torchvision.models.resnet18, its classifier `fc` left out, worked out by its rule."""

    def norm(name: str) -> list[str]:
        return [f"{name}.{t}" for t in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    names = ["conv1.weight", *norm("bn1")]
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            at = f"layer{layer}.{block}"
            names += [f"{at}.conv1.weight", *norm(f"{at}.bn1"), f"{at}.conv2.weight", *norm(f"{at}.bn2")]
            if layer > 1 and block == 0:
                names += [f"{at}.downsample.0.weight", *norm(f"{at}.downsample.1")]
    return names


def count(encoder: nn.Module) -> int:
    return sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    ("shape", "feature_dim", "expected"),
    [
        ((3, 224, 224), 512, 11_176_512),  # torchvision's 11 689 512 without its classifier 512 → 1000
        ((1, 257, 300), 512, 11_176_512 - 64 * 2 * 49),
        ((3, 224, 224), 64, 11_176_512 + 512 * 64 + 64),
    ],
)
def test_sizes_are_the_papers(norm: str, shape: tuple[int, ...], feature_dim: int, expected: int) -> None:
    assert count(ResNet18(ModalitySpec(name="x", shape=shape), feature_dim, norm=norm)) == expected


def test_names_and_shapes_are_torchvisions() -> None:
    state = ResNet18(IMAGE, 512).state_dict()
    assert sorted(state) == sorted(torchvision_names())
    assert tuple(state["conv1.weight"].shape) == (64, 3, 7, 7)
    assert tuple(state["layer3.0.downsample.0.weight"].shape) == (256, 128, 1, 1)
    assert tuple(state["layer4.1.conv2.weight"].shape) == (512, 512, 3, 3)


def test_batchnorm_has_stats_and_counters_and_groupnorm_has_none() -> None:
    batch = params.module_layout(ResNet18(IMAGE, 32, width=8))
    group = params.module_layout(ResNet18(IMAGE, 32, width=8, norm="group"))
    channels = 8 + 4 * 8 + 5 * 16 + 5 * 32 + 5 * 64  # of the 20 normalisations
    assert (batch.stats, batch.counters) == (2 * channels, 20)
    assert (group.stats, group.counters) == (0, 0)
    assert batch.params == group.params


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("shape", "batch"), [((3, 224, 224), 2), ((1, 257, 300), 2), ((3, 33, 40), 1)])
def test_features_and_gradients(norm: str, shape: tuple[int, ...], batch: int) -> None:
    torch.manual_seed(0)
    encoder = ResNet18(ModalitySpec(name="x", shape=shape), 12, width=8, norm=norm)
    h = encoder(torch.randn(batch, *shape))
    assert h.shape == (batch, 12)
    h.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in encoder.parameters())


def test_the_shapes_on_the_way_are_the_papers() -> None:
    encoder = ResNet18(IMAGE, 64, width=8).eval()
    x = torch.zeros(1, 3, 224, 224)
    h = encoder.maxpool(torch.relu(encoder.bn1(encoder.conv1(x))))
    sizes = [tuple(h.shape[1:])]
    for layer in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        h = layer(h)
        sizes.append(tuple(h.shape[1:]))
    assert sizes == [(8, 56, 56), (8, 56, 56), (16, 28, 28), (32, 14, 14), (64, 7, 7)]


def test_a_block_by_its_equation() -> None:
    torch.manual_seed(0)
    block = ResNet18(IMAGE, 64, width=8).eval().layer1[0]
    x = torch.randn(2, 8, 9, 9)
    f = nn.functional
    h = f.relu(f.conv2d(x, block.conv1.weight, padding=1) / (1 + 1e-5) ** 0.5)  # fresh statistics: mean 0, variance 1
    h = f.conv2d(h, block.conv2.weight, padding=1) / (1 + 1e-5) ** 0.5
    assert torch.allclose(block(x), f.relu(h + x), atol=1e-5)


def spec(weights: object, channels: int = 3, **config: object) -> FederationSpec:
    camera = ModalitySpec(
        name="camera", shape=(channels, 40, 33), encoder="resnet18",
        encoder_config={"width": 8, "weights": str(weights), **config},
    )  # fmt: skip
    return FederationSpec(name="t", modalities=(camera,), classes=("a", "b"), model=ModelSpec(feature_dim=6))


def checkpoint(path: Path, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Writes what torchvision's checkpoint looks like, a classifier included."""
    torch.manual_seed(7)
    values = dict(ResNet18(IMAGE, 64, width=8).state_dict())
    values |= {"fc.weight": torch.randn(1000, 64), "fc.bias": torch.randn(1000)}
    values = {k: v for k, v in {**values, **changes}.items() if v is not None}
    if path.suffix == ".safetensors":
        save_file(values, path)
    else:
        torch.save(values, path)
    return values


@pytest.mark.parametrize("name", ["resnet18.pth", "resnet18.safetensors"])
def test_version_0_begins_with_a_checkpoint(tmp_path: Path, name: str) -> None:
    values = checkpoint(tmp_path / name)
    fresh = spec(tmp_path / name)
    made = params.named_arrays(build.layout(fresh)["encoder.camera"], build.initial_tensors(fresh)["encoder.camera"])
    assert all(np.array_equal(made[n], values[n].numpy()) for n in torchvision_names())
    assert "out.weight" in made
    assert "fc.weight" not in made


def test_nothing_but_version_0_reads_the_file() -> None:
    elsewhere = spec("/on/the/coordinator/only.pth")
    plain = spec("")
    assert build.layout(elsewhere) == build.layout(plain)
    assert learning.equal(params.read(build.build(elsewhere).named()), build.initial_tensors(plain))
    with pytest.raises(ConfigError, match=r"modality camera: encoder_config.weights: there is no file"):
        build.initial_tensors(elsewhere)


def test_another_number_of_channels_keeps_the_answer_to_grey_images(tmp_path: Path) -> None:
    checkpoint(tmp_path / "w.pth")
    grey = torch.rand(2, 1, 40, 33)
    answers = []
    for channels in (1, 3, 4):
        encoder = ResNet18(
            ModalitySpec(name="x", shape=(channels, 40, 33)), 64, width=8, weights=str(tmp_path / "w.pth")
        )
        encoder.load_weights()
        answers.append(encoder.eval()(grey.expand(-1, channels, -1, -1)))
    assert torch.allclose(answers[0], answers[1], atol=1e-4)
    assert torch.allclose(answers[2], answers[1], atol=1e-4)


def test_old_checkpoints_do_not_count_batches(tmp_path: Path) -> None:
    counts = {n: None for n in torchvision_names() if n.endswith("num_batches_tracked")}
    checkpoint(tmp_path / "old.pth", **counts)
    assert not build.initial_tensors(spec(tmp_path / "old.pth"))["encoder.camera"].counters.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer3.0.conv1.weight": None}, r"lacks 1 of \d+ tensors, first 'layer3.0.conv1.weight'"),
        ({"bn1.bias": torch.zeros(5)}, r"'bn1.bias' has shape \(5,\), the encoder \(8,\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path: Path, changes: dict, message: str) -> None:
    checkpoint(tmp_path / "w.pth", **changes)
    with pytest.raises(ConfigError, match=message):
        build.initial_tensors(spec(tmp_path / "w.pth"))


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.path, "ran")


def test_no_code_of_a_checkpoint_runs(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Trap(tmp_path / "proof")}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="no state dict"):
        build.initial_tensors(spec(tmp_path / "w.pth"))
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("name", "content"), [("w.pth", b"\x80"), ("w.pth", b""), ("w.safetensors", b"\x00" * 40), ("w.safetensors", b"")]
)
def test_files_that_are_no_checkpoint(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"modality camera: encoder_config.weights: .* is no state dict"):
        build.initial_tensors(spec(tmp_path / name))


def test_something_else_than_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="must hold tensors by name"):
        build.initial_tensors(spec(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"norm": "layer"}, r"camera: encoder_config.norm must be batch or group, found 'layer'"),
        ({"norm": "group", "weights": "w.pth"}, r"camera: encoder_config.weights: .* norm = 'batch', found 'group'"),
        ({"width": 0}, r"camera: encoder_config.width must be at least 1"),
    ],
)
def test_wrong_configurations_are_named(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResNet18(IMAGE, 8, **config)
    with pytest.raises(ConfigError, match=r"expected a shape \(channels, height, width\)"):
        ResNet18(ModalitySpec(name="camera", shape=(3, 40)), 8)

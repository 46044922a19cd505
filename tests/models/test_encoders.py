from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.spec import ModalitySpec
from edge_sdk.models.encoders import Cnn1d, Cnn2d, Mlp, Standardise, groups

CASES = [
    (Cnn1d, (3, 128), {}),
    (Cnn1d, (6, 200), {"width": 56}),
    (Cnn1d, (1, 1), {}),
    (Cnn1d, (1, 7), {"width": 1, "kernel": 1}),
    (Cnn2d, (3, 32, 32), {}),
    (Cnn2d, (1, 28, 28), {"width": 4}),
    (Cnn2d, (1, 1, 1), {}),
    (Mlp, (50,), {}),
    (Mlp, (1,), {"hidden": 2}),
]


@pytest.mark.parametrize(("kind", "shape", "config"), CASES)
@pytest.mark.parametrize("batch", [1, 5])
def test_shapes_and_gradients_down_to_one_row(kind: type, shape: tuple[int, ...], config: dict, batch: int) -> None:
    torch.manual_seed(0)
    encoder = kind(ModalitySpec(name="x", shape=shape), 12, **config)
    h = encoder(torch.randn(batch, *shape))
    assert h.shape == (batch, 12)
    h.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in encoder.parameters())


@pytest.mark.parametrize(("kind", "shape", "config"), CASES)
def test_rows_do_not_know_one_another(kind: type, shape: tuple[int, ...], config: dict) -> None:
    torch.manual_seed(0)
    encoder = kind(ModalitySpec(name="x", shape=shape), 12, **config)
    x = torch.randn(4, *shape)
    assert torch.allclose(encoder(x)[1:2], encoder(x[1:2]), atol=1e-5)


def test_standardisation_is_a_constant_of_the_spec() -> None:
    spec = ModalitySpec(name="acc", shape=(2, 3), mean=(1.0, 2.0), std=(0.5, 4.0))
    layer = Standardise(spec)
    out = layer(torch.tensor([[[1.0, 1.5, 2.0], [2.0, 6.0, -2.0]]]))
    assert np.allclose(out.numpy(), [[[0, 1, 2], [0, 1, -1]]])
    assert list(layer.parameters()) == []
    assert layer.state_dict() == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.0,)}, "acc: mean needs 2 values, found 1"),
        ({"std": (1.0, 0.0)}, "acc: every std must be positive"),
        ({"std": (1.0, -1.0)}, "acc: every std must be positive"),
    ],
)
def test_wrong_statistics_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cnn1d(ModalitySpec(name="acc", shape=(2, 3), **changes), 4)


def test_wrong_shapes_and_sizes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"acc: expected a shape \(channels, length\), found \(5,\)"):
        Cnn1d(ModalitySpec(name="acc", shape=(5,)), 4)
    with pytest.raises(ConfigError, match=r"encoder_config.width must be at least 1, found 0"):
        Cnn1d(ModalitySpec(name="acc", shape=(3, 8)), 4, width=0)


@pytest.mark.parametrize(("channels", "expected"), [(24, 6), (48, 8), (64, 8), (8, 2), (2, 1), (1, 1), (7, 1), (12, 3)])
def test_groups_divide_and_are_never_single_channels(channels: int, expected: int) -> None:
    assert groups(channels) == expected

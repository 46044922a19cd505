from __future__ import annotations

import pytest
import torch

from edge_sdk.models.fusion import CosineFusion, Fusion, LinearFusion, MlpFusion

NAMES = ("acc", "gyro", "mic")


@pytest.mark.parametrize("kind", [LinearFusion, MlpFusion, CosineFusion])
def test_shapes(kind: type[Fusion]) -> None:
    fusion = kind(NAMES, 4, 5)
    assert fusion(torch.randn(2, 12)).shape == (2, 5)
    assert fusion.unimodal_logits("gyro", torch.randn(2, 4)).shape == (2, 5)


def test_unimodal_logits_of_a_linear_fusion_sum_to_the_fused_ones() -> None:
    torch.manual_seed(0)
    fusion = LinearFusion(NAMES, 4, 5)
    h = torch.randn(7, 12)
    parts = [fusion.unimodal_logits(m, h[:, 4 * i : 4 * i + 4]) for i, m in enumerate(NAMES)]
    assert torch.allclose(sum(parts), fusion(h), atol=1e-6)


def test_blocks_are_views_of_the_live_weight() -> None:
    fusion = LinearFusion(NAMES, 4, 5)
    with torch.no_grad():
        fusion.block("gyro").fill_(3.0)
    assert bool((fusion.linear.weight[:, 4:8] == 3.0).all())
    assert not bool((fusion.linear.weight[:, :4] == 3.0).any())


def test_unimodal_logits_of_an_mlp_are_those_of_zero_features() -> None:
    torch.manual_seed(0)
    fusion = MlpFusion(NAMES, 4, 5, hidden=8)
    h = torch.randn(2, 4)
    padded = torch.cat([torch.zeros(2, 4), h, torch.zeros(2, 4)], dim=1)
    assert torch.equal(fusion.unimodal_logits("gyro", h), fusion(padded))


def test_cosine_logits_do_not_know_the_length_of_features() -> None:
    fusion = CosineFusion(("acc",), 4, 5)
    h = torch.randn(2, 4)
    assert torch.allclose(fusion(h), fusion(10 * h), atol=1e-5)

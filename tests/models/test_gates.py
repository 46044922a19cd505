from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_sdk.core.spec import FederationSpec, MethodSpec, ModalitySpec
from edge_sdk.learn import params
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from edge_sdk.models.fusion import LateFusion
from edge_sdk.models.gates import FeatureMeans, Gate, Gates
from edge_sdk.runtime.reference import TorchReference
from tests.helpers.specs import har_spec, tri_spec

GATES = Needs(gates=True)


def rows(spec: FederationSpec, n: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {m.name: torch.randn(n, *m.shape, generator=generator) for m in spec.modalities}


def gate() -> Gate:
    """Two modalities with 2 and 1 channels; every weight and bias is small and known."""
    made = Gate({"a": 2, "keys": 1})
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(torch.linspace(0.1, 0.4, p.numel()).reshape(p.shape) - 0.05 * i)
    return made.eval()


def test_gates_by_hand() -> None:
    made, mask = gate(), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    a = torch.tensor([[[1.0, 3.0], [0.0, 2.0]], [[4.0, 4.0], [1.0, 1.0]]])  # (B, C, L)
    b = torch.tensor([[[[5.0, 7.0], [6.0, 6.0]]], [[[100.0, 0.0], [0.0, 0.0]]]])  # (B, C, H, W)
    out = made({"a": a, "keys": b}, mask, "")
    w1, b1 = (p.detach().numpy() for p in made.squeeze.parameters())
    shown = np.array([[2.0, 1.0, 6.0], [4.0, 1.0, 0.0]])  # the second row lacks "keys"
    excited = np.maximum(shown @ w1.T + b1, 0.0)
    for name, maps in (("a", a), ("keys", b)):
        w, bias = (p.detach().numpy() for p in made.get_submodule(f"excite.modality_{name}").parameters())
        gates = 1 / (1 + np.exp(-(excited @ w.T + bias)))
        expected = maps.numpy() * gates.reshape(*gates.shape, *(1 for _ in maps.shape[2:]))
        np.testing.assert_allclose(out[name].detach().numpy(), expected, rtol=1e-5)


def test_running_means_are_those_of_training_steps_and_replace_the_gates_of_who_is_held() -> None:
    made, seen = gate().train(), []
    mask = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        maps = {"a": torch.rand(2, 2, 5, generator=generator) + 0.1, "keys": torch.rand(2, 1, 5, generator=generator)}
        out = made(maps, mask, "")
        seen.append((out["a"] / maps["a"])[0, :, 0].detach())  # the only row that has "a"
    torch.testing.assert_close(made.mean(0), torch.stack(seen).mean(0))
    assert made.steps.tolist() == [3, 3]
    kept = made.mean(0).clone()
    made.eval()
    held = made(maps, mask, "a")
    torch.testing.assert_close(held["a"], maps["a"] * kept[None, :, None])
    torch.testing.assert_close(held["keys"], made(maps, mask, "")["keys"])
    assert torch.equal(made.mean(0), kept)  # evaluation moves nothing
    made.train()(maps, torch.tensor([[0.0, 1.0], [0.0, 1.0]]), "")
    assert (made.steps.tolist(), torch.equal(made.mean(0), kept)) == ([3, 4], True)


def test_without_a_past_nothing_is_replaced() -> None:
    made, maps = gate(), {"a": torch.ones(1, 2, 3), "keys": torch.ones(1, 1, 3)}
    mask = torch.ones(1, 2)
    torch.testing.assert_close(made(maps, mask, "a")["a"], made(maps, mask, "")["a"])


def test_a_held_modality_learns_from_its_own_input_alone() -> None:
    made = gate().train()
    a, b = torch.rand(2, 2, 3), torch.rand(2, 1, 3, requires_grad=True)
    mask = torch.ones(2, 2)
    made({"a": a, "keys": b}, mask, "")["a"].sum().backward()
    assert b.grad.abs().sum() > 0
    b.grad = None
    held = made({"a": a.clone().requires_grad_(True), "keys": b}, mask, "a")["a"]
    held.sum().backward()
    assert b.grad is None


def test_which_models_have_gates() -> None:
    har = build.build(har_spec(), GATES)
    assert isinstance(har.gates, Gates)
    assert isinstance(har.fusion, LateFusion)
    assert har.gates.depth == 2
    assert list(har.named()) == ["encoder.acc", "encoder.gyro", "fusion", "gates"]
    mixed = har_spec(modalities=tri_spec().modalities[:2])
    assert [g.widths for g in build.build(mixed, GATES).gates.stages] == [
        {"imu": 48, "camera": 32}, {"imu": 48, "camera": 64}
    ]  # fmt: skip
    tri = build.build(tri_spec(), GATES)  # an mlp cannot be cut
    assert isinstance(tri.gates, FeatureMeans)
    layout = build.layout(tri_spec(), GATES)["gates"]
    assert (layout.params, layout.stats, layout.counters) == (0, 48, 3)


@pytest.mark.parametrize("spec", [har_spec(), tri_spec(fusion="linear")], ids=["gates", "means"])
def test_an_absent_modality_is_the_same_as_a_masked_one(spec: FederationSpec) -> None:
    model, x = build.build(spec, GATES).eval(), rows(spec)
    first, *others = spec.modality_names
    mask = torch.tensor([[0.0] + [1.0] * len(others)] * 4)
    with torch.no_grad():
        masked = model(x, mask)
        torch.testing.assert_close(model({m: x[m] for m in others}, mask), masked)
        torch.testing.assert_close(model({**x, first: 7.0 + x[first]}, mask), masked)
        every = torch.ones_like(mask)
        for logits, wanted in zip(model.under(x, [mask, every]), (mask, every), strict=True):
            torch.testing.assert_close(logits, model(x, wanted))
        torch.testing.assert_close(model.fuse(model.encode(x), every), model(x, every))


def test_resnets_are_gated_behind_their_last_three_layers() -> None:
    small = {"width": 8, "norm": "group"}
    image = ModalitySpec(name="camera", shape=(3, 40, 33), encoder="resnet18", encoder_config=small)
    spec = har_spec(modalities=(image, image.model_copy(update={"name": "flow"})))
    model, x = build.build(spec, GATES).eval(), rows(spec, 2)
    assert [g.widths for g in model.gates.stages] == [dict.fromkeys(("camera", "flow"), w) for w in (16, 32, 64)]
    with torch.no_grad():
        mask = torch.tensor([[1.0, 0.0]] * 2)
        torch.testing.assert_close(model(x, mask), model({"camera": x["camera"]}, mask))


def test_through_gates_modalities_see_one_another() -> None:
    spec = har_spec()
    model, x = build.build(spec, GATES).eval(), rows(spec)
    with torch.no_grad():
        one = model.encode(x)["acc"]
        other = model.encode({**x, "gyro": rows(spec, seed=1)["gyro"]})["acc"]
        alone = model.encode({"acc": x["acc"]})["acc"]
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, alone)


def test_the_reference_of_engines_keeps_modalities_apart() -> None:
    spec = har_spec(method=MethodSpec(name="greedy"))
    tensors = build.initial_tensors(spec, GATES, 3)
    model, x = build.build(spec, GATES).eval(), rows(spec)
    params.load(model.named(), tensors)
    alone = np.array([[1.0, 0.0]], np.float32)
    said = TorchReference(spec)(tensors, {m: a.numpy() for m, a in x.items()}, {"acc": alone})["acc"]
    with torch.no_grad():
        expected = model({"acc": x["acc"]}, torch.from_numpy(alone).expand(4, 2))
    np.testing.assert_allclose(said, expected.numpy(), atol=1e-6)


def test_feature_means() -> None:
    means, mask = FeatureMeans(("a", "b"), 2).train(), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    for scale in (1.0, 3.0):
        means({"a": scale * torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": scale * torch.ones(2, 2)}, mask)
    assert means.means.tolist() == [[4.0, 6.0], [2.0, 2.0]]  # of "b", only the first row counts
    means.held, h = "a", {"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}
    out = means.eval()(h, mask)
    assert (out["a"].tolist(), out["b"].tolist()) == ([[0.0, 0.0]] * 2, [[2.0, 2.0]] * 2)
    assert means.weights("a") == []
    fresh = FeatureMeans(("a", "b"), 2).eval()
    fresh.held = "a"
    assert torch.equal(fresh(h, mask)["b"], h["b"])


def test_late_fusion_is_the_mean_of_its_heads() -> None:
    torch.manual_seed(0)
    fusion, h = LateFusion(("a", "b"), 3, 4), torch.randn(5, 6)
    expected = (fusion.own_logits("a", h[:, :3]) + fusion.own_logits("b", h[:, 3:])) / 2
    torch.testing.assert_close(fusion(h), expected)
    assert [(p.shape, part) for p, part in fusion.reading("b")] == [((4, 3), slice(None)), ((4,), slice(None))]

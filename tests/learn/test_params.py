from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edge_sdk.core.errors import ShapeMismatch
from edge_sdk.core.records import Segments
from edge_sdk.learn import params
from tests.helpers import learning


def modules() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "fusion": nn.Linear(4, 3),
        "encoder.acc": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
    }


def test_layout_has_tensors_in_sorted_order_in_their_segments() -> None:
    layout = params.module_layout(modules()["encoder.acc"])
    assert [(t.name, t.shape, t.segment, t.offset) for t in layout.tensors] == [
        ("0.bias", (4,), "params", 0),
        ("0.weight", (4, 3), "params", 4),
        ("1.bias", (4,), "params", 16),
        ("1.num_batches_tracked", (), "counters", 0),
        ("1.running_mean", (4,), "stats", 0),
        ("1.running_var", (4,), "stats", 4),
        ("1.weight", (4,), "params", 20),
    ]
    assert (layout.params, layout.stats, layout.counters) == (24, 8, 1)


def test_model_layout_is_sorted_by_name() -> None:
    assert list(params.model_layout(modules())) == ["encoder.acc", "fusion"]


def test_layout_digest_depends_on_shapes_and_names_only() -> None:
    one, other = modules(), modules()
    nn.init.zeros_(other["fusion"].weight)
    assert params.layout_digest(params.model_layout(one)) == params.layout_digest(params.model_layout(other))
    other["fusion"] = nn.Linear(4, 2)
    assert params.layout_digest(params.model_layout(one)) != params.layout_digest(params.model_layout(other))


def test_constants_are_not_part_of_the_layout() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("mean", torch.zeros(2), persistent=False)
    assert {t.name for t in params.module_layout(module).tensors} == {"weight", "bias"}


def test_layout_refuses_half_precision_and_tied_tensors() -> None:
    with pytest.raises(ShapeMismatch, match=r"params must be torch.float32"):
        params.module_layout(nn.Linear(2, 2).half())
    tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    tied[1].weight = tied[0].weight
    with pytest.raises(ShapeMismatch, match=r"one tensor"):
        params.module_layout(tied)


def test_read_and_load_are_inverse() -> None:
    source, target = modules(), modules()
    for p in target["fusion"].parameters():
        nn.init.constant_(p, 9.0)
    params.load(target, params.read(source))
    assert learning.equal(params.read(source), params.read(target))


def test_read_copies() -> None:
    live = modules()
    values = params.read(live)
    before = values["fusion"].params.copy()
    nn.init.constant_(live["fusion"].weight, 5.0)
    assert np.array_equal(values["fusion"].params, before)


def test_load_checks_before_it_changes_anything() -> None:
    live = modules()
    before = params.read(live)
    good = Segments(np.zeros(24, np.float32), np.zeros(8, np.float32), np.zeros(1, np.int64))
    bad = Segments(np.zeros(16, np.float32))
    flat = params.Flat(live)
    for load in (flat.load, lambda tensors: params.load(live, tensors)):
        with pytest.raises(ShapeMismatch, match=r"fusion.params: expected float32 \(15,\), found float32 \(16,\)"):
            load({"encoder.acc": good, "fusion": bad})
        with pytest.raises(ShapeMismatch, match=r"unknown module 'head.acc'"):
            load({"head.acc": good})
    assert learning.equal(params.read(live), before)


def test_load_takes_read_only_memory() -> None:
    live = modules()
    values = params.read(live)
    for segments in values.values():
        segments.params.flags.writeable = False
    params.load(live, values)
    params.Flat(live).load(values)


def test_flat_binds_every_tensor_into_its_segment() -> None:
    live = modules()
    before = params.read(live)
    flat = params.Flat(live)
    assert learning.equal(flat.read(), before)
    segments = flat.segments("encoder.acc")
    start = segments["params"].data_ptr()
    layer = live["encoder.acc"][0]
    assert layer.bias.data_ptr() == start
    assert layer.weight.data_ptr() == start + 4 * 4
    segments["params"].fill_(2.0)
    assert bool((layer.weight == 2.0).all())


def test_flat_binds_again_after_to() -> None:
    live = modules()
    flat = params.Flat(live)
    old = flat.segments("fusion")["params"].data_ptr()
    live["fusion"].to(torch.float64).to(torch.float32)  # gives every tensor memory of its own
    assert live["fusion"].bias.data_ptr() != old
    assert not flat.bound("fusion")
    nn.init.constant_(live["fusion"].bias, 3.0)
    start = flat.segments("fusion")["params"].data_ptr()
    assert live["fusion"].bias.data_ptr() == start
    assert flat.bound("fusion")
    assert bool((flat.segments("fusion")["params"][:3] == 3.0).all())


def test_training_moves_the_flat_segment() -> None:
    live = {"fusion": nn.Linear(4, 3)}
    flat = params.Flat(live)
    before = flat.read()["fusion"].params
    live["fusion"](torch.ones(2, 4)).sum().backward()
    with torch.no_grad():
        for p in live["fusion"].parameters():
            p.sub_(p.grad, alpha=0.1)
    assert flat.bound("fusion")
    assert not np.array_equal(flat.read()["fusion"].params, before)


def test_named_arrays_are_shaped_views() -> None:
    live = modules()
    layout, values = params.module_layout(live["encoder.acc"]), params.read(live)["encoder.acc"]
    named = params.named_arrays(layout, values)
    assert np.array_equal(named["0.weight"], live["encoder.acc"][0].weight.detach().numpy())
    assert named["1.num_batches_tracked"].shape == ()
    named["0.bias"][:] = 7.0
    assert (values.params[:4] == 7.0).all()


def test_delta_and_add() -> None:
    base = {"m": Segments(np.array([1.0, 2.0], np.float32), np.array([5.0], np.float32), np.array([3]))}
    trained = {"m": Segments(np.array([1.5, 0.0], np.float32), np.array([6.0], np.float32), np.array([4]))}
    change = params.delta(trained, base)
    assert change["m"].params.tolist() == [0.5, -2.0]
    assert change["m"].stats.tolist() == [6.0]  # values, not differences
    assert change["m"].counters.tolist() == [4]
    assert learning.equal(params.add(base, change), trained)


def test_norm_finite_and_digest() -> None:
    tensors = {"b": Segments(np.array([3.0], np.float32)), "a": Segments(np.array([4.0], np.float32))}
    assert params.norm(tensors) == 5.0
    assert params.finite(tensors)
    assert params.digest(tensors) == params.digest(dict(reversed(tensors.items())))
    assert not params.finite({"a": Segments(np.array([np.nan], np.float32))})
    assert not params.finite({"a": Segments(np.zeros(1, np.float32), np.array([np.inf], np.float32))})
    moved = {**tensors, "a": Segments(np.nextafter(tensors["a"].params, np.float32(9)))}
    assert params.digest(tensors) != params.digest(moved)


def test_sq_dist_has_a_gradient() -> None:
    live, fixed = torch.tensor([3.0, 4.0], requires_grad=True), torch.zeros(2)
    distance = params.sq_dist([live], [fixed])
    distance.backward()
    assert distance.item() == 25.0
    assert live.grad is not None
    assert live.grad.tolist() == [6.0, 8.0]
    assert float(params.sq_dist([], [])) == 0.0

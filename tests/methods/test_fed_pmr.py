from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edge_sdk.learn import local_training, params, scores
from edge_sdk.learn.prototype_tables import Table
from edge_sdk.learn.records import Batch, ClientContext, Out
from edge_sdk.methods import fed_pmr
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import guards, learning


def test_following_by_hand() -> None:
    known = torch.tensor([True, False])
    found = fed_pmr.followed(
        Table(torch.tensor([[1.0], [0.0]]), known), Table(torch.tensor([[6.0], [0.0]]), known), 0.2
    )
    assert found.rows[:, 0].tolist() == pytest.approx([5.0, 0.0])
    assert found.known.tolist() == [True, False]


class Watching(fed_pmr.Client):
    """Notes the prototypes of every epoch, and the loss terms of every batch beside an independent reading of them."""

    def begin(self, ctx: ClientContext) -> None:
        super().begin(ctx)
        self.tables = [dict(ctx.scratch["tables"])]
        self.batches: list[tuple[list, list]] = []

    def end_epoch(self, ctx: ClientContext) -> None:
        super().end_epoch(ctx)
        self.tables.append(dict(ctx.scratch["tables"]))
        self.model = {m: params.read({m: ctx.model.module(m)})[m] for m in ctx.phase.train}

    def loss_terms(self, ctx: ClientContext, batch: Batch, out: Out) -> Any:
        found = list(super().loss_terms(ctx, batch, out))
        y, means, entropies = batch.y.numpy(), [], []
        for m, table in ctx.scratch["tables"].items():
            h, c = out.features[m].detach().numpy().astype(float), table.rows.numpy().astype(float)
            z = -np.sqrt(((h[:, None] - c[None]) ** 2).sum(2))
            p = (np.exp(z) / np.exp(z).sum(1, keepdims=True))[np.arange(len(y)), y]
            means.append(p.mean())
            entropies.append(-np.log(p).mean())
        mine = []
        for i, s in enumerate(means):
            others = [x for j, x in enumerate(means) if j != i]
            coefficient = min(max(np.mean(others) / s - 1, 0), 1)
            if coefficient > 0:
                mine.append((self.config.strength * coefficient, entropies[i]))
        self.batches.append(([(w, float(t.detach())) for w, t in found[1:]], mine))
        return iter(found)


def watched(**config: Any) -> Watching:
    spec = learning.spec(3, method="fed_pmr", epochs=3)
    rule = Watching(fed_pmr.Config(**config))
    now = learning.view(learning.NAMES, planned=learning.NAMES, epochs=3)
    local_training.train(learning.job(spec, rule.schedule(now)[0], now), rule, build.build(spec))
    return rule


def test_loss_terms_are_those_that_numpy_finds() -> None:
    rule = watched(strength=2.0)
    assert len(rule.batches) == 9
    assert any(len(found) for found, _ in rule.batches)
    for found, mine in rule.batches:
        assert found == [(pytest.approx(w, rel=1e-4), pytest.approx(t, rel=1e-4)) for w, t in mine]


def test_prototypes_are_the_received_models_at_first_and_follow_after_every_epoch() -> None:
    rule, spec, data = watched(momentum=0.25), learning.spec(3), learning.round_data(40, 3)

    def means(tensors: Any, m: str) -> np.ndarray:
        model = build.build(spec)
        params.load({n: model.module(n) for n in tensors}, tensors)
        with torch.no_grad():
            h = model.eval().encode({m: torch.from_numpy(data.x[m])})[m].numpy()
        return np.stack([h[data.y == j].mean(0) for j in range(3)])

    first, second, third, last = (table["gyro"].rows.numpy() for table in rule.tables)
    np.testing.assert_allclose(first, means(build.initial_tensors(spec), "gyro"), atol=1e-5)
    assert np.abs(second - first).max() > 1e-3
    assert np.array_equal(third, last)  # nobody would read those after the last epoch
    one = Watching(fed_pmr.Config(momentum=0.25))
    now = learning.view(learning.NAMES, planned=learning.NAMES, epochs=3)
    one.end_epoch = lambda ctx: _stop(one, ctx)  # type: ignore[method-assign]
    with pytest.raises(StopIteration):
        local_training.train(
            learning.job(learning.spec(3, method="fed_pmr"), one.schedule(now)[0], now), one, build.build(spec)
        )
    np.testing.assert_allclose(second, 0.25 * first + 0.75 * means(one.model, "gyro"), atol=1e-5)


def _stop(rule: Watching, ctx: ClientContext) -> None:
    Watching.end_epoch(rule, ctx)
    raise StopIteration


def test_a_constant_coefficient_for_the_slower_modalities() -> None:
    rule = watched(coefficient="constant", strength=1.5)
    weights = {w for found, _ in rule.batches for w, _ in found}
    assert weights == {1.5}
    assert all(len(found) == len(mine) for found, mine in rule.batches)


def test_invariant_11_the_coefficients_are_those_of_pmr() -> None:
    assert scores.stimulation(np.array([0.6, 0.4])) == pytest.approx([0.0, 0.5])


def test_nothing_but_weights_is_sent_and_rounds_end() -> None:
    data = learning.round_data(40, 3)
    plain = guards.play("fedavg", data)
    first = guards.play("fed_pmr", data, config={"rounds": 1})
    assert first.payload == {}
    assert not learning.equal(first.tensors, plain.tensors)
    assert learning.equal(
        guards.play("fed_pmr", data, config={"rounds": 1}, memory=first.memory).tensors, plain.tensors
    )
    assert learning.equal(guards.play("fed_pmr", data, config={"strength": 0.0}).tensors, plain.tensors)
    one = {"gyro": data.x["gyro"]}
    alone = type(data)(data.indices, data.y, one, {"gyro": data.has["gyro"]})
    assert learning.equal(
        guards.play("fed_pmr", alone, here=("gyro",)).tensors, guards.play("fedavg", alone, here=("gyro",)).tensors
    )


def test_its_clients_work_with_other_servers() -> None:
    assert find("fed_pmr").mode == find("fed_pmr+pow_d").mode == "sync"
    assert find("fed_pmr+fedasync").mode == "async"

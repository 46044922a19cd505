from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.core.errors import ConfigError
from edge_sdk.learn import params, scores
from edge_sdk.learn.records import ClientContext, Out, Samples
from edge_sdk.methods import divfl, fedavg_me
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import guards, learning


def p_of(*distances: float) -> np.ndarray:
    e = np.exp(-np.array(distances))
    return e / e.sum()


def tables(**counts: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Prototypes at distances 1, 2, 3 in acc and 2, 2, 2 in gyro, from features of zero."""
    acc, gyro = np.zeros((3, 6), np.float32), np.zeros((3, 6), np.float32)
    acc[:, 0], gyro[:, 0] = (1, 2, 3), (2, -2, 2)
    return {
        "prototypes.acc": acc, "counts.acc": np.array(counts.get("acc", (1, 1, 1))),
        "prototypes.gyro": gyro, "counts.gyro": np.array(counts.get("gyro", (1, 1, 1))),
    }  # fmt: skip


def terms(y: list[int], extras: dict, *, mask: list[float] | None = None, **config: Any) -> list[tuple[float, float]]:
    """Returns the loss terms of a batch with features of zeros."""
    spec, n = learning.spec(method="fedavg_me"), len(y)
    rule = find("fedavg_me").client_rule(config)
    now = learning.view(("acc", "gyro"))
    work = replace(learning.job(spec, rule.schedule(now)[0], now), extras=extras)
    samples = Samples({}, torch.tensor(y), torch.tensor([mask or [1.0, 1.0]] * n), torch.arange(n))
    ctx = ClientContext(work, build.build(spec), samples, torch.Generator(), {}, {})
    rule.begin(ctx)
    out = Out({"acc": torch.zeros(n, 6), "gyro": torch.zeros(n, 6)}, torch.zeros(n, 3))
    return [(w, float(t)) for w, t in rule.loss_terms(ctx, samples.batch(samples.rows), out)]


def test_the_loss_by_hand() -> None:
    """Class 0: acc scores softmax(−1, −2, −3)_0 = 0.665, gyro 1/3, so ρ_gyro = 1.996 and only gyro has a term."""
    near = p_of(1, 2, 3)[0]
    found = terms([0, 0], tables(), strength=2.0)
    assert found[0] == (1.0, pytest.approx(np.log(3)))
    assert found[1:] == [(pytest.approx(2.0 * (near / (1 / 3) - 1)), pytest.approx(np.log(3)))]
    far = p_of(1, 2, 3)[2]  # class 2: acc is the slower one
    found = terms([2], tables())
    assert found[1:] == [(pytest.approx(min(1 / 3 / far - 1, 1)), pytest.approx(-np.log(far), rel=1e-5))]
    assert len(terms([0], tables(), mask=[1.0, 0.0])) == 1
    assert terms([0, 0], tables(), coefficient="constant", strength=1.5)[1] == (1.5, pytest.approx(np.log(3)))


def test_classes_without_a_prototype_are_masked() -> None:
    found = terms([0, 1], tables(acc=(1, 0, 1), gyro=(1, 0, 1)))
    near = p_of(1, 3)[0]  # the row of class 1 counts for neither
    assert found[1:] == [(pytest.approx(near / 0.5 - 1), pytest.approx(np.log(2)))]


@settings(deadline=None)
@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_swapping_two_modalities_swaps_the_coefficients(a: float, b: float) -> None:
    """Invariant 11; for two modalities they are eq. 19."""
    one, other = scores.stimulation(np.array([a, b])), scores.stimulation(np.array([b, a]))
    assert one.tolist() == other[::-1].tolist()
    rho = a / b
    beta, gamma = (min(rho - 1, 1), 0.0) if rho >= 1 else (0.0, min(1 / rho - 1, 1))
    assert one == pytest.approx([gamma, beta], abs=1e-12)
    assert set(scores.stimulation(np.array([a, b]), constant=True)) <= {0.0, 1.0}


class Watching(fedavg_me.Client[fedavg_me.Config]):
    """Notes the tables that the loss reads."""

    def begin(self, ctx: ClientContext) -> None:
        super().begin(ctx)
        self.seen = {name: ctx.scratch[name]["gyro"].rows.numpy() for name in ("tables", "ratio_tables")}


def seen(extras: dict, **config: Any) -> dict[str, np.ndarray]:
    from edge_sdk.learn import local_training

    spec = learning.spec(method="fedavg_me")
    rule, now = Watching(fedavg_me.Config(**config)), learning.view(("acc", "gyro"))
    work = replace(learning.job(spec, rule.schedule(now)[0], now), extras=extras)
    local_training.train(work, rule, build.build(spec))
    return rule.seen


def test_prototypes_are_the_global_ones_or_the_received_models_on_the_devices_own_data() -> None:
    sent, data = tables(), learning.round_data(40)
    model = build.build(learning.spec())
    with torch.no_grad():
        h = model.eval().encode({"gyro": torch.from_numpy(data.x["gyro"])})["gyro"].numpy()
    own = np.stack([h[data.y == j].mean(0) for j in range(3)])
    for config, extras, expected in (
        ({}, sent, ("global", "global")),
        ({}, {}, ("local", "local")),  # nothing has come down yet: round 1
        ({"prototypes": "local"}, sent, ("local", "global")),
        ({"ratio_prototypes": "local"}, sent, ("global", "local")),
    ):
        found = seen(extras, **config)
        for name, which in zip(("tables", "ratio_tables"), expected, strict=True):
            np.testing.assert_allclose(found[name], {"global": sent["prototypes.gyro"], "local": own}[which], atol=1e-5)


def test_without_strength_it_is_fedavg_to_the_last_bit_and_prototypes_go_round() -> None:
    ours, enhanced, theirs = (
        learning.federation(name, config=config)
        for name, config in (("fedavg_me", {"strength": 0.0}), ("fedavg_me", {}), ("fedavg", {}))
    )
    for fed in (ours, enhanced, theirs):
        learning.sync_round(fed, size=3)
        learning.sync_round(fed, size=3)
    assert learning.equal(ours.theta, theirs.theta)
    assert not learning.equal(enhanced.theta, theirs.theta)
    assert set(enhanced.rule.extras(enhanced.state, enhanced.chosen[0])) == {
        f"{k}.{m}" for k in ("prototypes", "counts") for m in learning.NAMES
    }


def test_divfl_me_selects_as_divfl_and_trains_as_fedavg_me() -> None:
    method = find("divfl_me")
    options: dict[str, Any] = {"strength": 0.0, "greedy": True}
    assert method.client_rule(options).config.strength == 0.0
    ours = learning.federation("divfl_me", config=options)
    theirs = learning.federation("divfl", config={"greedy": True})
    for _ in range(2):
        for fed in (ours, theirs):
            learning.sync_round(fed, size=3)
        assert ours.chosen == theirs.chosen
    assert learning.equal(ours.theta, theirs.theta)
    assert theirs.state.keys() < ours.state.keys()
    assert all(np.array_equal(ours.state[key], theirs.state[key]) for key in theirs.state)
    assert ours.state.keys() - theirs.state.keys() == {
        f"{k}/{m}" for k in ("prototypes", "counts") for m in learning.NAMES
    }
    enhanced = learning.federation("divfl_me")
    start = params.copy(enhanced.theta)
    learning.sync_round(enhanced, size=3)
    assert not learning.equal(enhanced.theta, start)
    assert issubclass(method.server, divfl.Server)


@pytest.mark.parametrize("what", guards.DATA)
def test_poor_data_with_prototypes(what: str) -> None:
    here = ("acc", "gyro") if what == "gaps" else learning.NAMES
    for config in ({}, {"prototypes": "local", "ratio_prototypes": "local"}):
        extras = guards.play("fedavg_me", guards.DATA[what](), here=here).payload
        assert guards.finite(guards.play("fedavg_me", guards.DATA[what](), here=here, extras=extras, config=config))


def test_meaningless_compositions() -> None:
    with pytest.raises(ConfigError, match=r"fedavg_me\+divfl: the clients of fedavg_me need the server's prototypes"):
        find("fedavg_me+divfl")
    assert find("fedavg_me+fedproto").mode == "sync"

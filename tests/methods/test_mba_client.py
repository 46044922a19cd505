"""The client of MBA: anchors while waiting, fused training near them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_sdk.core.records import RoundData
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn import params
from edge_sdk.learn.records import Phase
from edge_sdk.methods import mba
from edge_sdk.models import build
from tests.helpers import learning

ANCHOR_ACC = Phase("anchor", ("acc",), ("encoder.acc",), 2)
FUSED = Phase("fused", ("acc", "gyro"), ("encoder.acc", "encoder.gyro", "fusion"), 2, final=True)


def client(**options: object) -> mba.Client:
    rule = mba.METHOD.client_rule(options)
    assert isinstance(rule, mba.Client)
    return rule


def test_anchor_distance_by_hand() -> None:
    h = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    anchor = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    expected = [0.0, 1.0, 2.0, 1.0, 1 - 2**-0.5]
    assert mba.anchor_distance(h, anchor).tolist() == pytest.approx(expected, abs=1e-6)


def test_schedule_wait() -> None:
    rule = client()
    assert rule.schedule(learning.view(())) == ()
    assert rule.schedule(learning.view(("acc",))) == (ANCHOR_ACC,)
    assert rule.schedule(learning.view(("acc",), finished=(ANCHOR_ACC,))) == ()
    assert rule.schedule(learning.view(("acc", "gyro"), finished=(ANCHOR_ACC,))) == (FUSED,)
    assert rule.schedule(learning.view(("acc", "gyro"))) == (ANCHOR_ACC, FUSED)  # both at once: the anchor comes first
    gyro_first = rule.schedule(learning.view(("gyro", "acc")))
    assert [p.modalities for p in gyro_first] == [("gyro",), ("acc", "gyro")]


def test_schedule_with_one_modality_and_the_others_absent() -> None:
    (phase,) = client().schedule(learning.view(("gyro",), absent=("acc",)))
    assert (phase.name, phase.train, phase.final) == ("fused", ("encoder.gyro", "fusion"), True)
    assert client().schedule(learning.view((), absent=("acc", "gyro"))) == ()


def test_ties_go_by_the_order_of_the_plan() -> None:
    phases = client().schedule(learning.view(("gyro", "acc"), times_ns=(5, 5)))
    assert [p.modalities for p in phases] == [("acc",), ("acc", "gyro")]


def test_three_modalities_have_two_anchors() -> None:
    planned = learning.NAMES
    rule = client(epochs_uni=7)
    first = rule.schedule(learning.view(("mic",), planned=planned))
    assert [(p.modalities, p.epochs) for p in first] == [(("mic",), 7)]
    both = rule.schedule(learning.view(("mic", "acc"), planned=planned, finished=first))
    assert [p.modalities for p in both] == [("acc",)]
    end = rule.schedule(learning.view(("mic", "acc", "gyro"), planned=planned, finished=first + both))
    assert [p.modalities for p in end] == [("acc", "gyro", "mic")]


def test_the_late_modality_gets_an_anchor_where_it_is_asked_for() -> None:
    rule = client(anchor_late=True)
    late = replace(ANCHOR_ACC, modalities=("gyro",), train=("encoder.gyro",))
    assert rule.schedule(learning.view(("acc",))) == (ANCHOR_ACC,)
    assert rule.schedule(learning.view(("acc", "gyro"), finished=(ANCHOR_ACC,))) == (late, FUSED)
    final, _ = learning.train_round(learning.spec(config={"anchor_late": True}), ("acc", "gyro"))
    assert set(final.payload) == {"distance.acc", "distance.gyro"}


@pytest.mark.parametrize("centred", [False, True])
def test_the_reported_distance_by_hand(centred: bool) -> None:
    spec, data = learning.spec(config={"centred": centred}), learning.round_data(40)
    final, results = learning.train_round(spec, ("acc", "gyro"), data=data)
    model = build.build(spec)
    params.load(model.named(), {**build.initial_tensors(spec), **final.tensors})
    with torch.no_grad():
        h = model.eval().encode({"acc": torch.from_numpy(data.x["acc"])})["acc"].double().numpy()
    anchor = results[0].carry["anchor/acc"].astype(np.float64)
    centre = anchor.mean(0) if centred else 0.0
    a, b = h - centre, anchor - centre
    d = np.mean(1 - (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))
    assert float(final.payload["distance.acc"]) == pytest.approx(d, abs=1e-5)


@pytest.mark.parametrize("policy", ["drop", "truncate"])
def test_policies_that_stop_between_epochs(policy: str) -> None:
    rule = client(anchor_policy=policy, epochs_uni=3)
    epoch = Phase("anchor", ("acc",), ("encoder.acc",), 1, keep=("encoder.acc",))
    assert rule.schedule(learning.view(("acc",))) == (epoch,) * 3
    assert rule.schedule(learning.view(("acc",), finished=(epoch,))) == (epoch,) * 2
    assert rule.schedule(learning.view(("acc",), finished=(epoch,) * 3)) == ()
    assert rule.schedule(learning.view(("acc", "gyro"), finished=(epoch,))) == (FUSED,)


def run_until(policy: str, epochs: int, **options: object) -> tuple[set[str], dict]:
    """Trains so many epochs of the anchor of acc, then the fused phase; returns reported names and all results."""
    spec = learning.spec(config={"anchor_policy": policy, "epochs_uni": 3, **options})
    rule = client(**spec.method.config)
    finished: tuple[Phase, ...] = ()
    carry, memory, current = {}, {}, {}
    for _ in range(epochs):
        now = learning.view(("acc",), finished=finished)
        phase = rule.schedule(now)[0]
        result = learning.train_phase(learning.job(spec, phase, now, carry=carry, memory=memory, current=current))
        carry, memory, current = result.carry, result.memory, result.tensors
        finished += (phase,)
    now = learning.view(("acc", "gyro"), finished=finished)
    (phase,) = rule.schedule(now)
    result = learning.train_phase(learning.job(spec, phase, now, carry=carry, memory=memory, current=current))
    return set(result.payload), {"carry": carry, "current": current, "final": result}


def test_an_unfinished_anchor_is_dropped_or_truncated() -> None:
    assert run_until("drop", 2)[0] == set()
    assert run_until("drop", 3)[0] == {"distance.acc"}
    assert run_until("truncate", 0)[0] == set()
    assert run_until("truncate", 1)[0] == {"distance.acc"}
    one, two = (run_until("truncate", n)[1]["carry"]["anchor/acc"] for n in (1, 2))
    assert not np.array_equal(one, two)


def test_epochs_of_their_own_go_on_where_the_last_one_stopped() -> None:
    first, second = (run_until("truncate", n)[1]["current"]["encoder.acc"].params for n in (1, 2))
    start = build.initial_tensors(learning.spec())["encoder.acc"].params
    assert np.linalg.norm(second - start) > np.linalg.norm(first - start) > 0


def test_a_round_end_to_end() -> None:
    spec = learning.spec()
    final, results = learning.train_round(spec, ("acc", "gyro"))
    assert [set(r.tensors) for r in results] == [{"encoder.acc"}, {"encoder.acc", "encoder.gyro", "fusion"}]
    assert set(final.payload) == {"distance.acc"}  # the late modality is not reported (A6)
    assert final.payload["distance.acc"].shape == ()
    mba.METHOD.uploads.check(final.payload, spec)
    assert final.num_samples == 40
    assert set(final.memory) == {"head/acc/weight", "head/acc/bias"}
    assert results[0].payload == {}


def test_heads_are_private_and_kept_across_rounds() -> None:
    """Invariant 4."""
    spec = learning.spec()
    first = learning.train_round(spec, ("acc", "gyro"))[0]
    assert not any(name.startswith("head") for name in first.tensors)

    def head_after(spec: FederationSpec) -> np.ndarray:
        still = learning.view(("acc",), lr=1e-12)  # training moves nothing: the head is the one it began with
        return learning.train_phase(learning.job(spec, ANCHOR_ACC, still, memory=first.memory)).memory[
            "head/acc/weight"
        ]

    assert np.allclose(head_after(spec), first.memory["head/acc/weight"], atol=1e-9)
    reset = learning.spec(config={"reset_heads": True})
    assert not np.allclose(head_after(reset), first.memory["head/acc/weight"], atol=1e-3)


def test_anchors_are_features_of_the_trained_encoder_by_window_number() -> None:
    spec, data = learning.spec(), learning.round_data(40)
    phase, now = ANCHOR_ACC, learning.view(("acc",))
    result = learning.train_phase(learning.job(spec, phase, now, data=data))
    model = build.build(spec)
    params.load(model.named(), {**build.initial_tensors(spec), **result.tensors})
    with torch.no_grad():
        h = model.eval().encode({"acc": torch.from_numpy(data.x["acc"])})["acc"]
    assert np.allclose(result.carry["anchor/acc"], h.numpy(), atol=1e-6)
    assert result.carry["anchor/acc/index"].tolist() == data.indices.tolist()


def test_half_precision_anchors() -> None:
    spec = learning.spec(config={"anchor_dtype": "float16"})
    final, results = learning.train_round(spec, ("acc", "gyro"))
    assert results[0].carry["anchor/acc"].dtype == np.float16
    exact = learning.train_round(learning.spec(), ("acc", "gyro"))[0]
    assert final.payload["distance.acc"] == pytest.approx(float(exact.payload["distance.acc"]), abs=1e-2)


def test_the_fused_phase_starts_from_the_global_model_unless_warm() -> None:
    """A3, seen with no fused epoch at all: the result is where the phase started."""
    for warm in (False, True):
        spec = learning.spec(config={"warm_start": warm})
        rule = client(warm_start=warm)
        anchor = learning.train_phase(learning.job(spec, ANCHOR_ACC, learning.view(("acc",))))
        now = learning.view(("acc", "gyro"), finished=(ANCHOR_ACC,))
        phase = replace(rule.schedule(now)[0], epochs=0)
        fused = learning.train_phase(learning.job(spec, phase, now, current=anchor.tensors, carry=anchor.carry))
        origin = anchor.tensors if warm else build.initial_tensors(spec)
        assert np.array_equal(fused.tensors["encoder.acc"].params, origin["encoder.acc"].params)
        if warm:  # same encoder as the anchors were made with
            assert float(fused.payload["distance.acc"]) == pytest.approx(0.0, abs=1e-6)


def test_rows_are_matched_by_window_number() -> None:
    """The fused round set may lack rows that the anchor had, have new ones, and have another order."""
    spec, data = learning.spec(config={"warm_start": True}), learning.round_data(40)
    anchor = learning.train_phase(learning.job(spec, ANCHOR_ACC, learning.view(("acc",)), data=data))
    now = learning.view(("acc", "gyro"), finished=(ANCHOR_ACC,))
    phase = replace(client(warm_start=True).schedule(now)[0], epochs=0)
    rows = np.array([39, 3, 17, 2, 0, 30])
    other = learning.round_data(2, seed=5, first_index=500)
    mixed = RoundData(
        np.concatenate([data.indices[rows], other.indices]), np.concatenate([data.y[rows], other.y]),
        {m: np.concatenate([data.x[m][rows], other.x[m]]) for m in data.x},
        {m: np.concatenate([data.has[m][rows], other.has[m]]) for m in data.has},
    )  # fmt: skip
    fused = learning.train_phase(learning.job(spec, phase, now, data=mixed, current=anchor.tensors, carry=anchor.carry))
    assert float(fused.payload["distance.acc"]) == pytest.approx(0.0, abs=1e-6)
    foreign = learning.train_phase(
        learning.job(spec, phase, now, data=other, current=anchor.tensors, carry=anchor.carry)
    )
    assert foreign.payload == {}  # no row has an anchor


def test_the_regulariser_pulls_towards_the_anchors_and_leaves_the_late_modality_alone() -> None:
    """Invariant 4."""
    base, pulled = (
        learning.train_round(learning.spec(config={"beta": beta}, epochs=8), ("acc", "gyro"))[0] for beta in (0.0, 5.0)
    )
    assert pulled.payload["distance.acc"] < 0.7 * base.payload["distance.acc"]

    one_step = []
    for beta in (0.0, 5.0):
        spec = learning.spec(config={"beta": beta})
        anchor = learning.train_phase(learning.job(spec, ANCHOR_ACC, learning.view(("acc",))))
        now = learning.view(("acc", "gyro"), finished=(ANCHOR_ACC,), epochs=1)
        phase = client(beta=beta).schedule(replace(now, finished=(replace(ANCHOR_ACC, epochs=1),)))[0]
        assert phase.final
        data = learning.round_data(16)  # a single batch, a single step
        one_step.append(learning.train_phase(learning.job(spec, phase, now, data=data, carry=anchor.carry)).tensors)
    plain, regularised = one_step
    for late in ("encoder.gyro", "fusion"):
        assert learning.equal({late: plain[late]}, {late: regularised[late]})
    assert not learning.equal({"e": plain["encoder.acc"]}, {"e": regularised["encoder.acc"]})


def test_d_report_last_epoch() -> None:
    reported = {
        how: float(
            learning.train_round(learning.spec(config={"d_report": how}), ("acc", "gyro"))[0].payload["distance.acc"]
        )
        for how in ("post", "last_epoch")
    }
    assert reported["post"] != reported["last_epoch"]
    assert all(0 < d < 2 for d in reported.values())
    no_beta = learning.spec(config={"d_report": "last_epoch", "beta": 0.0})
    assert set(learning.train_round(no_beta, ("acc", "gyro"))[0].payload) == {"distance.acc"}


@pytest.mark.parametrize("d_report", ["post", "last_epoch"])
def test_without_beta_the_update_is_fedasyncs_to_the_last_bit(d_report: str) -> None:
    """Invariant 1: training anchors leaves no trace in the model or in the random stream."""
    ours = learning.spec(config={"beta": 0.0, "gamma": 0.0, "d_report": d_report})
    theirs = learning.spec(method="fedasync")
    for order in (("acc", "gyro"), ("gyro", "acc")):
        mine, _ = learning.train_round(ours, order)
        reference, _ = learning.train_round(theirs, order)
        assert learning.equal(mine.tensors, reference.tensors)
        assert (mine.num_steps, mine.num_samples, mine.loss) == (
            reference.num_steps, reference.num_samples, reference.loss
        )  # fmt: skip


def test_a_row_without_the_early_modality_has_no_anchor() -> None:
    data = learning.round_data(40)
    data.has["acc"][:10] = False
    final, results = learning.train_round(learning.spec(), ("acc", "gyro"), data=data)
    assert len(results[0].carry["anchor/acc"]) == 30
    assert final.num_samples == 40
    assert 0 < float(final.payload["distance.acc"]) < 2

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.records import Segments
from edge_sdk.learn import params
from edge_sdk.learn.records import Assignment, Batch, ClientContext, Cohort, Member, Out, Phase
from edge_sdk.methods import fedpac
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import guards, learning


def test_statistics_by_the_formula_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    f, y = rng.normal(size=(20, 3)) + 1.0, rng.integers(0, 3, 20)
    h, v = fedpac.statistics(f, y, 4)
    traces = squares = 0.0
    for j in range(4):
        rows = f[y == j]
        share = len(rows) / 20
        mean = rows.mean(0) if len(rows) else np.zeros(3)
        np.testing.assert_allclose(h[j], share * mean, atol=1e-12)
        if len(rows):
            traces += share * np.trace(rows.T @ rows / len(rows))
            squares += share**2 * mean @ mean
    assert v == pytest.approx((traces - squares) / 20)
    assert fedpac.statistics(np.zeros((1, 3)), np.array([1]), 4)[1] == 0.0


def test_matrix_by_hand() -> None:
    h = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 2.0]]])
    a = fedpac.collaboration(h, np.array([0.5, 0.25, 0.125]), 0)
    # from client 0: (0, 0), (1, -1), (0, -2)
    assert a.tolist() == [[0.5, 0.0, 0.0], [0.0, 2.25, 2.0], [0.0, 2.0, 4.125]]


def test_shares() -> None:
    alike = fedpac.collaboration(np.ones((3, 2, 4)), np.array([0.2, 0.2, 0.4]), 1)
    assert fedpac.shares(alike, 1).tolist() == pytest.approx([0.4, 0.4, 0.2])  # inverse to V
    far = np.zeros((2, 1, 2))
    far[1] = 50.0
    assert fedpac.shares(fedpac.collaboration(far, np.array([0.3, 0.3]), 0), 0).tolist() == [1.0, 0.0]  # under 1e-3
    assert fedpac.shares(np.zeros((2, 2)), 1).tolist() == [0.0, 1.0]  # nothing known: its own


def phases(spec: object) -> tuple[Phase, ...]:
    return fedpac.Client(fedpac.Config()).schedule(learning.view(("acc", "gyro")))


def test_the_classifier_is_trained_first_and_then_the_encoders() -> None:
    spec = learning.spec(2, method="fedpac")
    start = build.initial_tensors(spec)
    final, (first, _) = learning.train_round(spec, ("acc", "gyro"), start=start)
    assert set(first.tensors) == {"fusion"}
    assert not learning.equal(first.tensors, {"fusion": start["fusion"]})
    assert learning.equal({"fusion": final.tensors["fusion"]}, first.tensors)  # sent as the first phase left it
    assert set(final.tensors) == {"encoder.acc", "encoder.gyro", "fusion"}
    assert not np.array_equal(final.tensors["encoder.acc"].params, start["encoder.acc"].params)


def test_the_classifier_learns_at_a_rate_of_its_own() -> None:
    slow = learning.spec(2, method="fedpac", config={"classifier_lr": 2.0}, lr=0.1)
    fast = learning.spec(2, method="fedpac", config={"classifier_lr": 1.0}, lr=0.2)
    start = build.initial_tensors(slow)
    firsts = []
    for spec in (slow, fast):
        view = learning.view(("acc", "gyro"), lr=spec.training.lr)
        rule = find("fedpac").client_rule(spec.method.config)
        firsts.append(learning.train_phase(learning.job(spec, rule.schedule(view)[0], view, start=start)))
    np.testing.assert_allclose(firsts[0].tensors["fusion"].params, firsts[1].tensors["fusion"].params, atol=1e-6)


def test_its_own_classifier_comes_with_the_task() -> None:
    spec = learning.spec(3, method="fedpac")
    start = build.initial_tensors(spec)
    own = np.arange(start["fusion"].params.size, dtype=np.float32) / 100
    result = guards.play(
        "fedpac", learning.round_data(24, 3), extras={"classifier": own}, config={"classifier_epochs": 0}
    )  # fmt: skip
    assert np.array_equal(result.tensors["fusion"].params, own)


def test_alignment_by_hand() -> None:
    rule, spec = fedpac.Client(fedpac.Config(lam=3.0)), learning.spec(2, method="fedpac")
    job = learning.job(spec, phases(spec)[1], learning.view(("acc", "gyro")))
    acc, gyro = torch.zeros(3, 6), torch.ones(3, 6)
    ctx = ClientContext(job, None, None, torch.Generator(), {}, {})  # type: ignore[arg-type]
    known = torch.tensor([True, False, True])
    ctx.scratch["tables"] = {"acc": (torch.full((3, 6), 2.0), known), "gyro": (torch.full((3, 6), 4.0), known)}
    batch = Batch({}, torch.tensor([0, 1, 2]), torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]), torch.arange(3))
    out = Out({"acc": acc, "gyro": gyro}, torch.zeros(3, 3))
    terms = list(rule.loss_terms(ctx, batch, out))
    assert [weight for weight, _ in terms] == [1.0, 3.0]
    # acc: rows 0 and 2, error 4 each; gyro: row 0, error 9
    assert float(terms[1][1]) == pytest.approx((4 + 4 + 9) / 3)
    ctx.scratch["tables"] = {"acc": (torch.zeros(3, 6), torch.zeros(3, dtype=torch.bool))}
    assert len(list(rule.loss_terms(ctx, batch, out))) == 1


def test_reports_by_independent_numpy() -> None:
    spec, data = learning.spec(2, method="fedpac"), learning.round_data(30)
    start = build.initial_tensors(spec)
    result = learning.train_round(spec, ("acc", "gyro"), data=data, start=start)[0]

    def features(tensors: dict) -> dict[str, np.ndarray]:
        model = build.build(spec)
        params.load(model.named(), tensors)
        with torch.no_grad():
            h = model.eval().encode({m: torch.from_numpy(a) for m, a in data.x.items()})
        return {m: a.numpy().astype(np.float64) for m, a in h.items()}

    before, after = features(start), features(result.tensors)
    side = np.concatenate([before["acc"], before["gyro"]], axis=1)
    for j in range(3):
        np.testing.assert_allclose(result.payload["h"][j], side[data.y == j].sum(0) / 30, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            result.payload["prototypes.gyro"][j], after["gyro"][data.y == j].mean(0), rtol=1e-4, atol=1e-6
        )
    assert result.payload["counts.acc"].tolist() == np.bincount(data.y, minlength=3).tolist()


def member(device: str, n: int, h: np.ndarray, v: float, w: float) -> Member:
    counts = np.array([n, 0, 0])
    table = np.zeros((3, 6), np.float32)
    table[0] = w
    payload = {"h": h.astype(np.float32), "v": np.float32(v), "prototypes.acc": table, "counts.acc": counts}
    return Member(device, ("acc",), n, 1, payload, {"fusion": Segments(np.array([w, -w], np.float32))})


def test_a_round_by_hand() -> None:
    rule = find("fedpac").server_rule({}, learning.spec(1, method="fedpac"))
    h = np.zeros((3, 6))
    members = (member("p", 1, h, 0.1, 1.0), member("q", 3, h, 0.3, 5.0), member("r", 4, h + 100.0, 0.2, 7.0))
    weights, patch = rule.weights({}, Cohort(0, {}, members))
    assert weights.by_block["fusion"] == {"p": 0.125, "q": 0.375, "r": 0.5}  # the model to evaluate: by samples
    for device in "pq":  # alike: ¾ and ¼, inverse to V; r is too far away
        assert patch[f"personal/fusion/{device}"].tolist() == pytest.approx([2.0, -2.0])
    assert patch["personal/fusion/r"].tolist() == pytest.approx([7.0, -7.0])
    assert patch["prototypes/acc"][0].tolist() == pytest.approx([(1.0 + 15.0 + 28.0) / 8] * 6)
    assert patch["counts/acc"].tolist() == [8.0, 0.0, 0.0]
    said = rule.extras(patch, Assignment("q", ("acc",)))
    assert said["classifier"].tolist() == pytest.approx([2.0, -2.0])
    assert said["counts.acc"].tolist() == [8, 0, 0]
    assert "classifier" not in rule.extras(patch, Assignment("new", ("acc",)))
    later = Cohort(1, {}, (replace(members[0], payload={**members[0].payload, "counts.acc": np.array([0, 2, 0])}),))
    kept = rule.weights(patch, later)[1]
    assert kept["prototypes/acc"][0].tolist() == patch["prototypes/acc"][0].tolist()  # nobody had class 0 this time
    assert kept["counts/acc"].tolist() == [8.0, 2.0, 0.0]
    assert rule.figures(patch) == {"classifiers": 3.0}


def test_the_order_of_clients_does_not_matter_to_their_classifiers() -> None:
    rule = find("fedpac").server_rule({}, learning.spec(1, method="fedpac"))
    rng = np.random.default_rng(1)
    members = tuple(member(d, n + 1, rng.normal(size=(3, 6)), 0.1 * n + 0.1, n + 1.0) for n, d in enumerate("pqrs"))
    one, other = (rule.weights({}, Cohort(0, {}, m))[1] for m in (members, members[::-1]))
    for device in "pqrs":
        assert one[f"personal/fusion/{device}"].tolist() == pytest.approx(
            other[f"personal/fusion/{device}"].tolist(), abs=1e-6
        )


def test_rounds_personalise_and_learn() -> None:
    fed = learning.federation("fedpac", lr=0.05)
    for _ in range(4):
        learning.sync_round(fed)
    own = {d: fed.state[f"personal/fusion/{d}"] for d in fed.data}
    assert not np.allclose(own["d0"], own["d4"])
    model, data = build.build(fed.spec), learning.round_data(300, 3, seed=77)
    params.load(model.named(), fed.theta)
    with torch.no_grad():
        logits = model.eval()({m: torch.from_numpy(a) for m, a in data.x.items()}, torch.ones(300, 3))
    assert (logits.argmax(1).numpy() == data.y).mean() > 0.7


def test_combinations_without_the_other_half_are_refused() -> None:
    with pytest.raises(ConfigError, match="need the server's classifier"):
        find("fedpac+fedavg")
    with pytest.raises(ConfigError, match="lives on"):
        find("ogm_ge+fedpac")

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_sdk.core.records import RoundData
from edge_sdk.core.spec import FederationSpec, MethodSpec, TrainingSpec
from edge_sdk.learn import local_training, params
from edge_sdk.learn.records import Batch, ClientContext, Out
from edge_sdk.methods import fedavg, greedy
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import guards, learning
from tests.helpers.specs import har_spec


def test_rate_by_hand() -> None:
    w, other, still = (torch.nn.Parameter(torch.tensor(v)) for v in ([[3.0, 1.0], [4.0, 1.0]], [2.0], [9.0]))
    w.grad, other.grad = torch.tensor([[1.0, 7.0], [1.0, 7.0]]), torch.tensor([3.0])
    assert greedy.rate([(w, slice(0, 1))]) == pytest.approx(2 / 25)
    assert greedy.rate([(w, slice(0, 1)), (other, slice(None)), (still, slice(None))]) == pytest.approx(11 / 29)
    assert greedy.rate([(still, slice(None))]) == 0.0
    zero = torch.nn.Parameter(torch.zeros(2))
    zero.grad = torch.zeros(2)
    assert greedy.rate([(zero, slice(None))]) == 0.0


def test_speeds_by_hand() -> None:
    s = greedy.speeds(np.array([10.0, 1.0, 0.0]), np.array([1.0, 100.0, 5.0]))
    assert s[:2].tolist() == [1.0, -2.0]
    assert np.isnan(s[2])


def test_the_fastest_is_the_one_above_the_mean_of_the_others() -> None:
    assert greedy.fastest(np.array([0.5, 0.2]), 0.01) == 0  # d > 0
    assert greedy.fastest(np.array([0.2, 0.5]), 0.01) == 1  # d < 0
    assert greedy.fastest(np.array([0.2, 0.205]), 0.01) is None
    assert greedy.fastest(np.array([0.1, 0.4, 0.3]), 0.19) == 1  # 0.4 − 0.2
    assert greedy.fastest(np.array([0.1, 0.4, 0.3]), 0.21) is None
    assert greedy.fastest(np.array([np.nan, 0.4]), 0.0) is None


class Watched(greedy.Client):
    """Keeps which modality was held in every step, and what was measured."""

    def begin(self, ctx: ClientContext) -> None:
        super().begin(ctx)
        self.held: list[str] = []
        self.rates: list[list[tuple[float, float]]] = []

    def _held(self, ctx: ClientContext) -> str:
        self.held.append(super()._held(ctx))
        return self.held[-1]

    def after_backward(self, ctx: ClientContext, batch: Batch, out: Out) -> None:
        bypass, main = ctx.scratch["bypass"], ctx.scratch["main"]
        self.rates.append([(greedy.rate(bypass[m]), greedy.rate(main[m])) for m in ctx.phase.modalities])
        super().after_backward(ctx, batch, out)


def har(**config: object) -> FederationSpec:
    method = MethodSpec(name="greedy", config=config)
    return har_spec(method=method, training=TrainingSpec(lr=0.1, epochs=3, batch_size=16))


def har_data(n: int = 40) -> RoundData:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, n)
    x = {m: (rng.normal(size=(n, 3, 32)) + y[:, None, None]).astype(np.float32) for m in ("acc", "gyro")}
    return RoundData(np.arange(n), y, x, {m: np.ones(n, np.bool_) for m in x})


def play(spec: FederationSpec, data: RoundData, memory: dict | None = None, rule: greedy.Client | None = None) -> tuple:
    rule = rule or Watched(greedy.Config(**spec.method.config))
    view = learning.view(spec.modality_names, planned=spec.modality_names, epochs=spec.training.epochs)
    job = learning.job(spec, rule.schedule(view)[0], view, data=data, memory=memory)
    return local_training.train(job, rule, build.build(spec, find("greedy").needs)), rule


CUT = har(epsilon=0.0), har_data()
WHOLE = learning.spec(2, method="greedy", config={"epsilon": 0.0}), learning.round_data(40)


@pytest.mark.parametrize(("spec", "data"), [CUT, WHOLE], ids=["gates", "means"])
def test_windows_open_after_the_first_epoch_and_last_q_steps(spec: FederationSpec, data: RoundData) -> None:
    rule = Watched(greedy.Config(epsilon=0.0))
    result, _ = play(spec, data, rule=rule)
    per_epoch = result.num_steps // spec.training.epochs
    assert set(rule.held[:per_epoch]) == {""}
    first = next(i for i, name in enumerate(rule.held) if name)
    assert first == per_epoch + 1  # measured in the first step of the second epoch, open from the next one on
    assert len(set(rule.held[first : first + 5])) == 1
    measured = [i for i, name in enumerate(rule.held) if not name]
    for column in range(2):
        expected = np.sum([rule.rates[i][column] for i in measured], axis=0)  # nothing is measured inside
        found = [result.memory[key][column] for key in ("greedy/bypass", "greedy/main")]
        assert found == pytest.approx(expected.tolist())
    speed = greedy.speeds(*np.sum([rule.rates[i] for i in range(first)], axis=0).T)
    assert rule.held[first] == spec.modality_names[int(speed.argmax())]
    assert result.memory["greedy/epochs"].tolist() == [float(spec.training.epochs)]


def test_a_window_goes_on_in_the_next_round() -> None:
    memory = {"greedy/window": np.array([1.0, 4.0]), "greedy/epochs": np.array([7.0])}
    _, rule = play(har(epsilon=1e9), har_data(), memory)
    assert rule.held[:5] == ["gyro"] * 4 + [""]


def test_a_wide_epsilon_never_opens_a_window() -> None:
    result, rule = play(har(epsilon=1e9), har_data())
    assert set(rule.held) == {""}
    assert result.memory["greedy/window"][1] == 0.0


def test_at_random_every_choice_is_equally_likely() -> None:
    rule = Watched(greedy.Config(random=True))
    spec = learning.spec(2, method="greedy", lr=0.01, epochs=150)
    result, _ = play(spec, learning.round_data(32), rule=rule)
    counts = [rule.held.count(name) for name in ("", "acc", "gyro")]
    assert sum(counts) == result.num_steps == 300
    assert min(counts) > 70


def test_the_loss_is_that_of_every_head() -> None:
    spec, data = har(), har_data(12)
    data.has["gyro"][:6] = False
    model = build.build(spec, find("greedy").needs).eval()
    rule = greedy.Client(greedy.Config())
    view = learning.view(spec.modality_names)
    job = learning.job(spec, rule.schedule(view)[0], view, data=data)
    ctx = local_training.context(job, model)
    rule.begin(ctx)
    batch = ctx.samples.batch(torch.arange(12))
    with torch.no_grad():
        out = rule.forward(ctx, batch)
        losses = [float(term) for weight, term in rule.loss_terms(ctx, batch, out) if weight == 1.0]
        features = model.encode(batch.x, mask=batch.mask)
        for m, rows, loss in (("acc", slice(0, 12), losses[0]), ("gyro", slice(6, 12), losses[1])):
            z = model.fusion.own_logits(m, features[m][rows]).double().numpy()
            y = batch.y[rows].numpy()
            assert loss == pytest.approx(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]), rel=1e-5)
        torch.testing.assert_close(out.logits, model(batch.x, batch.mask))
    assert model.gates.held == ""


def test_everything_is_sent_running_means_included() -> None:
    result, _ = play(har(), har_data())
    assert set(result.tensors) == {"encoder.acc", "encoder.gyro", "fusion", "gates"}
    gates = result.tensors["gates"]
    assert 0.2 < gates.stats.mean() < 0.8
    assert gates.counters.tolist() == [result.num_steps] * 4


def test_encoders_that_cannot_be_cut_train_as_fedavg_until_a_window_opens() -> None:
    spec = learning.spec(2, method="greedy", config={"epsilon": 1e9})
    plain = learning.train_round(learning.spec(2, method="fedavg"), ("acc", "gyro"))[0].tensors
    ours = learning.train_round(spec, ("acc", "gyro"))[0].tensors
    assert learning.equal({name: ours[name] for name in plain}, plain)
    windows = learning.spec(2, method="greedy", config={"epsilon": 0.0, "warmup": 0})
    other = learning.train_round(windows, ("acc", "gyro"))[0].tensors
    assert not learning.equal({name: other[name] for name in plain}, plain)


def test_alone_a_modality_has_nobody_to_lean_on() -> None:
    result = guards.play("greedy", learning.round_data(24, 3), here=("gyro",), config={"epsilon": 0.0, "warmup": 0})
    assert result.memory["greedy/window"][1] == 0.0
    assert guards.finite(result)


def test_rounds_average_gates_and_their_means() -> None:
    spec, data = har(), har_data()
    part = har_data(20)
    alone = RoundData(part.indices, part.y, {"acc": part.x["acc"]}, {"acc": part.has["acc"]})
    fed = learning.Federation(spec, {"p": data, "q": alone})
    cohort = learning.sync_round(fed)
    p, q = (m.tensors["gates"] for m in cohort.members)
    np.testing.assert_allclose(fed.theta["gates"].stats, (2 * p.stats + q.stats) / 3, rtol=1e-5)
    assert fed.theta["gates"].counters.tolist() == np.maximum(p.counters, q.counters).tolist()
    learning.sync_round(fed)
    assert params.finite(fed.theta)
    assert find("greedy").server is fedavg.Server
    assert find("greedy+fednova").needs.gates

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own idiom)

from coordinator.preparation import Split, spec_of
from coordinator.simulation.profiles import INSTANT
from coordinator.simulation.simulate import Simulation, World
from edge_sdk.core.records import Dataset, ModelTensors, RoundData, Segments, Update, UpdateKey, VersionId
from edge_sdk.core.spec import FederationSpec, ModelSpec, TrainingSpec
from edge_sdk.learn import local_training, params
from edge_sdk.learn.blending import blend
from edge_sdk.learn.records import Batch, ClientContext, Phase, PhaseResult
from edge_sdk.methods import abc_async, fedasync, ogm_ge
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import learning

NAMES = learning.NAMES
D = 6  # features per modality of learning.spec


def spec(
    modalities: int = 3, *, config: dict | None = None, fusion: str = "linear", **training: object
) -> FederationSpec:
    made = learning.spec(modalities, method="abc_async", config=config, **training)
    return made.model_copy(update={"model": ModelSpec(feature_dim=D, fusion=fusion, hidden=5)})


def schedule(
    here: tuple[str, ...], finished: tuple[Phase, ...] = (), *, absent: tuple[str, ...] = (), **options: object
) -> tuple[Phase, ...]:
    now = learning.view(here, planned=NAMES, finished=finished, absent=absent)
    return abc_async.METHOD.client_rule(options).schedule(now)


def blocks(tensors: ModelTensors, modality: str, modalities: int = 3) -> np.ndarray:
    """Returns W_m (C, D) of a linear fusion."""
    named = params.named_arrays(build.layout(spec(modalities))["fusion"], tensors["fusion"])
    start = NAMES.index(modality) * D
    return named["linear.weight"][:, start : start + D]


def test_every_modality_but_the_last_is_trained_as_it_arrives() -> None:
    (first,) = schedule(("mic",))
    assert first == Phase("early", ("mic",), ("encoder.mic", "fusion"), 2, keep=("fusion",))
    assert schedule(("mic",), (first,)) == ()
    (second,) = schedule(("mic", "acc"), (first,))
    assert second.modalities == ("acc",)
    (last,) = schedule(("mic", "acc", "gyro"), (first, second))
    assert (last.name, last.final, last.epochs) == ("fused", True, 2)
    assert last.keep == ("encoder.mic", "fusion", "encoder.acc")
    assert schedule(("mic", "acc", "gyro")) == (first, second, last)


def test_what_was_trained_early_is_kept_where_the_last_modality_never_comes() -> None:
    done = schedule(("mic", "acc"))
    assert [p.modalities for p in done] == [("mic",), ("acc",)]
    (last,) = schedule(("mic", "acc"), done, absent=("gyro",))
    assert (last.modalities, last.final) == (("acc", "mic"), True)
    assert set(last.keep) == {"encoder.mic", "encoder.acc", "fusion"}


def test_early_epochs_are_an_option() -> None:
    assert schedule(("mic",), epochs_early=5)[0].epochs == 5
    assert schedule(("mic",), epochs_early=0) == ()
    (only,) = schedule(NAMES, epochs_early=0)
    assert (only.final, only.keep) == (True, ())


@pytest.mark.parametrize("training", [{}, {"momentum": 0.9, "weight_decay": 0.01}])
def test_an_early_phase_leaves_the_other_blocks_as_they_are(training: dict) -> None:
    made = spec(**training)
    start = build.initial_tensors(made)
    now = learning.view(("gyro",), planned=NAMES)
    (phase,) = abc_async.METHOD.client_rule({}).schedule(now)
    result = learning.train_phase(learning.job(made, phase, now, start=start))
    assert set(result.tensors) == {"encoder.gyro", "fusion"}
    for m in NAMES:
        assert np.array_equal(blocks(result.tensors, m), blocks(start, m)) == (m != "gyro")
    assert not np.array_equal(result.tensors["encoder.gyro"].params, start["encoder.gyro"].params)
    bias = [
        params.named_arrays(build.layout(made)["fusion"], t["fusion"])["linear.bias"] for t in (start, result.tensors)
    ]
    assert not np.array_equal(*bias)


def test_the_final_phase_starts_where_the_early_ones_ended() -> None:
    """With no epoch left for it, what it sends is what they left, and what is the start's for mic."""
    made = spec()
    start = build.initial_tensors(made)
    now = learning.view(NAMES, planned=NAMES)
    first, second, last = abc_async.METHOD.client_rule({}).schedule(now)
    one = learning.train_phase(learning.job(made, first, now, start=start))
    two = learning.train_phase(learning.job(made, second, now, start=start, current=one.tensors))
    assert np.array_equal(blocks(two.tensors, "acc"), blocks(one.tensors, "acc"))
    sent = learning.train_phase(
        learning.job(made, replace(last, epochs=0), now, start=start, current=two.tensors)
    ).tensors  # fmt: skip
    assert learning.equal({m: sent[m] for m in two.tensors}, two.tensors)
    assert learning.equal({"encoder.mic": sent["encoder.mic"]}, {"encoder.mic": start["encoder.mic"]})


def fused(made: FederationSpec, data: RoundData, *, lam: float, batch_size: int = 64) -> PhaseResult:
    """Trains one step of the final phase, nothing early."""
    config = {"lam": lam, "epochs_early": 0}
    made = made.model_copy(update={"method": made.method.model_copy(update={"config": config})})
    now = learning.view(made.modality_names, planned=made.modality_names, epochs=1)
    now = replace(now, plan=replace(now.plan, batch_size=batch_size))
    (phase,) = abc_async.METHOD.client_rule(config).schedule(now)
    return learning.train_phase(learning.job(made, phase, now, data=data))


def test_the_objective_by_hand() -> None:
    """(B2) on rows of which some lack a modality, each in plain numpy."""
    made, data = spec(), learning.round_data(20, 3)
    data.has["acc"][:7] = False
    data.has["mic"][5:] = False
    model = build.build(made)
    with torch.no_grad():
        h = {m: x.numpy() for m, x in model.encode({m: torch.from_numpy(data.x[m]) for m in NAMES}).items()}
    named = params.named_arrays(build.layout(made)["fusion"], build.initial_tensors(made)["fusion"])
    z = {m: h[m] @ blocks(build.initial_tensors(made), m).T for m in NAMES}  # W_m h_m

    def ce(logits: np.ndarray) -> np.ndarray:
        logits = logits.astype(np.float64)
        return np.log(np.exp(logits).sum(1)) - logits[np.arange(20), data.y]

    b = named["linear.bias"]
    whole = ce(b + sum(z[m] * data.has[m][:, None] for m in NAMES)).mean()
    alone = sum(ce(b + z[m])[data.has[m]].mean() for m in NAMES)
    for lam in (0.0, 1.0, 0.3):
        assert fused(made, data, lam=lam).loss == pytest.approx(whole + lam * alone, rel=1e-5)


def test_one_modality_alone_has_its_loss_lam_more_times() -> None:
    made, data = spec(1), learning.round_data(20, 1)
    start = build.initial_tensors(made)
    plain, twice = (fused(made, data, lam=lam) for lam in (0.0, 1.5))
    assert twice.loss == pytest.approx(2.5 * plain.loss, rel=1e-6)
    for name in start:
        steps = [r.tensors[name].params - start[name].params for r in (plain, twice)]
        assert np.allclose(steps[1], 2.5 * steps[0], atol=1e-6)


def test_the_parts_add_up() -> None:
    """z_S = Σ z_m − (|S| − 1) b, for every subset S."""
    made = spec()
    model = build.build(made, seed=3)
    x = {m: torch.from_numpy(a) for m, a in learning.round_data(9, 3).x.items()}
    b = dict(model.module("fusion").named_parameters())["linear.bias"]
    masks = [torch.tensor([float(c) for c in f"{n:03b}"]).expand(9, -1) for n in range(1, 8)]
    with torch.no_grad():
        z = dict(zip(NAMES, model.under(x, [row.expand(9, -1) for row in torch.eye(3)]), strict=True))
        for mask, z_s in zip(masks, model.under(x, masks), strict=True):
            members = [m for m, there in zip(NAMES, mask[0].tolist(), strict=True) if there]
            assert torch.allclose(z_s, sum(z[m] for m in members) - (len(members) - 1) * b, atol=1e-5)
            assert torch.allclose(F.softmax(z_s, 1).sum(1), torch.ones(9))


@pytest.mark.parametrize("fusion", ["linear", "mlp"])
def test_a_modality_that_no_row_has_stays_as_it_is(fusion: str) -> None:
    made, data = spec(fusion=fusion), learning.round_data(20, 3)
    data.has["mic"][:] = False
    start = build.initial_tensors(made)
    result = fused(made, data, lam=1.0, batch_size=8)
    assert np.isfinite(result.loss)
    assert params.finite(result.tensors)
    assert np.array_equal(result.tensors["encoder.mic"].params, start["encoder.mic"].params)
    assert not np.array_equal(result.tensors["encoder.acc"].params, start["encoder.acc"].params)
    before, after = (build.build(made) for _ in range(2))
    params.load({"fusion": before.module("fusion")}, {"fusion": start["fusion"]})
    params.load({"fusion": after.module("fusion")}, {"fusion": result.tensors["fusion"]})
    for m in NAMES:
        pairs = zip(before.module("fusion").reading(m), after.module("fusion").reading(m), strict=True)
        same = all(torch.equal(old[..., cut], new[..., cut]) for (old, cut), (new, _) in pairs)
        assert same == (m == "mic")


def rows(mask: torch.Tensor) -> Batch:
    data = learning.round_data(len(mask), 3)
    return Batch(
        {m: torch.from_numpy(a) for m, a in data.x.items()}, torch.from_numpy(data.y), mask, torch.arange(len(mask))
    )


def test_an_empty_mask_gives_no_nan() -> None:
    made = spec()
    rule = abc_async.METHOD.client_rule({})
    now = learning.view(NAMES, planned=NAMES)
    job = learning.job(made, schedule(NAMES, epochs_early=0)[0], now)
    model = build.build(made)
    ctx = ClientContext(job, model, local_training.samples(job.data, job.phase, NAMES), torch.Generator(), {}, {})
    batch = rows(torch.tensor([[1.0, 1.0, 0.0]]).expand(6, -1))
    out = rule.forward(ctx, batch)
    total = sum(weight * term for weight, term in rule.loss_terms(ctx, batch, out))
    total.backward()
    grads = {m: [p.grad for p in model.module(f"encoder.{m}").parameters()] for m in NAMES}
    assert torch.isfinite(total)
    assert all(not g.any() for g in grads["mic"])
    assert all(g.any() for g in grads["acc"])


@pytest.mark.parametrize(("server", "op"), [("delta", "add"), ("mix", "mix")])
def test_rates_by_hand(server: str, op: str) -> None:
    for a, tau, expected in (
        (1.0, 0, 0.8),
        (1.0, 3, 0.2),
        (1.0, 15, 0.05),
        (0.5, 0, 0.8),
        (0.5, 3, 0.4),
        (0.5, 15, 0.2),
    ):
        rule = abc_async.METHOD.server_rule({"server": server, "alpha0": 0.8, "a": a}, learning.spec())
        rates, patch = rule.rates({}, learning.update_view("d", 20, staleness=tau))
        assert (rates.op, patch) == (op, {})
        assert rates.by_module == pytest.approx(dict.fromkeys(("encoder.acc", "encoder.gyro", "fusion"), expected))


@pytest.mark.parametrize("clients", [1, 4, 25])
def test_what_is_under_way_at_once_moves_the_model_as_far_as_one_client_does(clients: int) -> None:
    rule = abc_async.METHOD.server_rule({}, learning.spec())
    rates, _ = rule.rates({}, learning.update_view("d", 30, staleness=clients - 1))
    assert [clients * rate for rate in rates.by_module.values()] == pytest.approx([0.9] * 3)


def update(tensors: ModelTensors, kind: str) -> Update:
    digest = "0" * 32
    return Update(UpdateKey("d", 1, 1), "t", VersionId(digest, 0, digest), digest, kind, tensors, 1, 1, ("acc", "gyro"))


@pytest.mark.parametrize("kind", ["full", "delta"])
@pytest.mark.parametrize("server", ["delta", "mix"])
def test_with_one_client_at_a_time_and_alpha_1_the_model_is_the_clients(server: str, kind: str) -> None:
    made = spec(2)
    base = build.initial_tensors(made)
    trained = learning.train_round(made, ("acc", "gyro"), start=base)[0].tensors
    rule = abc_async.METHOD.server_rule({"alpha0": 1.0, "server": server}, made)
    sent = trained if kind == "full" else params.delta(trained, base)
    theta = params.copy(base)
    blend(theta, base, update(sent, kind), rule.rates({}, learning.update_view("d", 0))[0])
    for name in theta:
        assert np.allclose(theta[name].params, trained[name].params, atol=1e-7)


def test_an_absent_block_is_a_change_of_nothing() -> None:
    rng = np.random.default_rng(0)
    made = spec(2)
    theta = {m: Segments(s.params + rng.normal(size=s.params.size).astype(np.float32)) for m, s in
             build.initial_tensors(made).items()}  # fmt: skip
    change = {
        m: Segments(rng.normal(size=s.params.size).astype(np.float32)) for m, s in theta.items() if "gyro" not in m
    }
    zeros = {**change, "encoder.gyro": Segments(np.zeros_like(theta["encoder.gyro"].params))}
    rule = abc_async.METHOD.server_rule({}, made)
    results = []
    for sent, modalities in ((change, ("acc",)), (zeros, ("acc", "gyro"))):
        mixed = params.copy(theta)
        view = learning.update_view("d", 5, staleness=2, modalities=modalities)
        blend(mixed, None, update(sent, "delta"), rule.rates({}, view)[0])
        results.append(mixed)
    assert learning.equal(*results)


def world(method: str, config: dict | None = None, running_mean: float = 1.0) -> Simulation:
    """Three devices that train at the same time, one without a microphone."""
    data = learning.round_data(72, 3, seed=5)
    subject = np.arange(72, dtype=np.int64) % 3
    has = {**data.has, "mic": subject != 0}
    test = learning.round_data(30, 3, seed=6)
    split = Split(
        Dataset("three", data.x, data.y, ("a", "b", "c"), has, subject=subject),
        Dataset("three", test.x, test.y, ("a", "b", "c"), test.has),
    )
    training = TrainingSpec(lr=0.05, epochs=1, batch_size=8)
    made = spec_of(split.train, name="three", method=method, options=config or {}, training=training)
    setup = World(devices=3, updates=9, seed=1, partition="subject", fraction=1.0, profile=INSTANT, evaluate_every=3)
    return Simulation(made, split, replace(setup, running_mean=running_mean))


def test_the_running_mean_is_tested_and_trains_nothing() -> None:
    """(B4) of the same θ; with a weight of 1 it is θ itself."""
    plain, mean = (world("abc_async", running_mean=weight).run() for weight in (1.0, 0.05))
    assert mean.digest == plain.digest
    assert [p.version for p in mean.curve] == [p.version for p in plain.curve]
    assert (mean.acc, mean.acc_by_modality) == (mean.curve[-1].acc, mean.curve[-1].acc_by_modality)
    assert (mean.unimodal["zero_feature"]) == pytest.approx(mean.acc_by_modality)
    assert [(p.acc, p.acc_by_modality) for p in mean.curve] != [(p.acc, p.acc_by_modality) for p in plain.curve]


def test_without_its_own_parts_it_is_fed_concat_async_to_the_last_bit() -> None:
    plain = world("fed_concat_async").run()
    bare = world("abc_async", {"lam": 0.0, "epochs_early": 0, "server": "mix", "a": 0.5}).run()
    assert bare.digest == plain.digest
    for part in ({"lam": 0.1}, {"epochs_early": 1}, {"server": "delta"}):
        other = world("abc_async", {"lam": 0.0, "epochs_early": 0, "server": "mix", "a": 0.5, **part}).run()
        assert (other.updates, other.digest == plain.digest) == (9, False)


@pytest.mark.parametrize(
    ("name", "client", "server", "config"),
    [
        ("abc_async+fedasync", abc_async.Client, fedasync.Server, {"client": {"lam": 0.5}, "server": {"alpha": 0.5}}),
        ("ogm_ge+abc_async", ogm_ge.Client, abc_async.Server, {"server": {"alpha0": 0.5}}),
    ],
)
def test_its_parts_compose(name: str, client: type, server: type, config: dict) -> None:
    method = find(name)
    assert (method.client, method.server) == (client, server)
    report = world(name, config).run()
    assert (report.updates, report.rejected) == (9, 0)
    assert np.isfinite(report.acc)


@pytest.mark.parametrize("name", ["mba+abc_async", "g_blend+abc_async", "abc_async+fedbuff", "abc_async+fedavg"])
def test_more_compositions(name: str) -> None:
    method = find(name)
    method.client_rule({})
    method.server_rule({}, learning.spec())

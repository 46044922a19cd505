from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.core.errors import ConfigError
from edge_sdk.learn import params, scores
from edge_sdk.learn.records import Out, Samples
from edge_sdk.methods import pmr
from edge_sdk.methods.base import find
from edge_sdk.models import build
from tests.helpers import guards, learning

SPEC = learning.spec(method="pmr")


def view(device: str, version: int, staleness: int = 0, **payload: np.ndarray):  # noqa: ANN201
    made = learning.update_view(device, version, staleness=staleness)
    return replace(made, payload={k.replace("_", "."): v for k, v in payload.items()})


def table(*rows: float) -> np.ndarray:
    return np.repeat(np.array(rows, np.float32)[:, None], 6, axis=1)


def test_stimulation_by_hand() -> None:
    assert scores.stimulation(np.array([0.6, 0.4])) == pytest.approx([0.0, 0.5])
    assert scores.stimulation(np.array([0.9, 0.1])) == pytest.approx([0.0, 1.0])
    assert scores.stimulation(np.array([0.6, 0.5, 0.4])) == pytest.approx([0.0, 0.0, 0.55 / 0.4 - 1])
    assert scores.stimulation(np.array([0.6])).tolist() == [0.0]


@given(st.floats(0, 1), st.floats(0, 1))
def test_swapping_two_modalities_swaps_the_coefficients(a: float, b: float) -> None:
    """Invariant 11."""
    one, other = scores.stimulation(np.array([a, b])), scores.stimulation(np.array([b, a]))
    assert one.tolist() == other[::-1].tolist()
    assert ((one >= 0) & (one <= 1)).all()


def test_kappa_by_hand() -> None:
    assert pmr.kappa(0, 0.2, 0.5) == pytest.approx(0.8)
    assert pmr.kappa(3, 0.2, 0.5) == pytest.approx(0.4)


def test_the_server_keeps_prototypes_class_by_class() -> None:
    rule, state = pmr.METHOD.server_rule({}, SPEC), {}
    assert rule.extras(state, "a") == {}
    first = view("a", 0, prototypes_acc=table(1, 2, 0), counts_acc=np.array([3, 1, 0]))
    rates, patch = rule.rates(state, first)
    assert set(rates.by_module.values()) == {0.9}
    assert set(patch) == {"prototypes/acc", "counts/acc"}
    state.update(patch)
    second = view("b", 1, 3, prototypes_acc=table(6, 9, 4), counts_acc=np.array([1, 0, 2]))
    rates, patch = rule.rates(state, second)
    assert set(rates.by_module.values()) == {0.45}
    state.update(patch)
    assert state["prototypes/acc"][:, 0] == pytest.approx([0.6 * 1 + 0.4 * 6, 2.0, 4.0])
    assert state["counts/acc"].tolist() == [4, 1, 2]
    down = rule.extras(state, "a")
    assert set(down) == {"prototypes.acc", "counts.acc"}
    assert (down["prototypes.acc"].dtype, down["counts.acc"].dtype) == (np.float32, np.int64)
    assert rule.figures(state) == {"prototypes.acc": 3.0}


def test_a_class_of_one_client_has_that_clients_prototype() -> None:
    rule, state = pmr.METHOD.server_rule({}, SPEC), {}
    for version, device in enumerate("abab"):
        rows, counts = ((5, 1, 0), (2, 1, 0)) if device == "a" else ((0, 3, 7), (0, 1, 2))
        made = view(device, version, version % 3, prototypes_gyro=table(*rows), counts_gyro=np.array(counts))
        state.update(rule.rates(state, made)[1])
    assert state["prototypes/gyro"][0] == pytest.approx([5.0] * 6)
    assert state["prototypes/gyro"][2] == pytest.approx([7.0] * 6)


def test_a_client_reports_the_means_of_its_trained_features() -> None:
    data = learning.round_data(40, 3)
    data.has["acc"][:7] = False
    result = guards.play("pmr", data)
    model = build.build(learning.spec(3, method="pmr"))
    params.load(model.named(), result.tensors)
    rows = np.arange(40) >= 7
    with torch.no_grad():
        h = model.eval().encode({"acc": torch.from_numpy(data.x["acc"])})["acc"].numpy()
    for j in range(3):
        mine = rows & (data.y == j)
        assert result.payload["counts.acc"][j] == mine.sum()
        assert result.payload["prototypes.acc"][j] == pytest.approx(h[mine].mean(0), abs=1e-5)
    assert set(result.payload) == {f"{k}.{m}" for k in ("prototypes", "counts") for m in learning.NAMES}


def terms(extras: dict, y: list[int], **config: str | float) -> list[tuple[float, float]]:
    """Returns weights and values of the loss terms of a batch whose features are known."""
    from edge_sdk.learn.records import ClientContext

    rule = pmr.METHOD.client_rule({"strength": 2.0, **config})
    now = learning.view(("acc", "gyro"))
    work = replace(learning.job(SPEC, rule.schedule(now)[0], now), extras=extras)
    n = len(y)
    samples = Samples({}, torch.tensor(y), torch.ones(n, 2), torch.arange(n))
    ctx = ClientContext(work, build.build(SPEC), samples, torch.Generator(), {}, {})
    rule.begin(ctx)
    features = {"acc": torch.zeros(n, 6), "gyro": torch.zeros(n, 6)}
    found = rule.loss_terms(ctx, samples.batch(samples.rows), Out(features, torch.zeros(n, 3)))
    return [(w, float(t)) for w, t in found]


def softmax(*z: float) -> np.ndarray:
    e = np.exp(np.array(z))
    return e / e.sum()


def extras_of(counts: tuple[int, ...] = (1, 1, 1)) -> dict:
    """Prototypes at distances 1, 2, 3 in acc and 2, 2, 2 in gyro, from features of zero."""
    acc, gyro = np.zeros((3, 6), np.float32), np.zeros((3, 6), np.float32)
    acc[:, 0], gyro[:, 0] = (1, 2, 3), (2, -2, 2)
    return {
        "prototypes.acc": acc, "counts.acc": np.array(counts),
        "prototypes.gyro": gyro, "counts.gyro": np.array(counts),
    }  # fmt: skip


def test_the_loss_terms_of_a_batch_by_hand() -> None:
    p = softmax(-1, -2, -3)[0]
    found = terms(extras_of(), [0, 0])
    assert found[0] == (1.0, pytest.approx(np.log(3)))
    assert found[1] == (pytest.approx(2.0 * min(p / (1 / 3) - 1, 1)), pytest.approx(np.log(3)))  # gyro is slower
    assert len(found) == 2
    assert terms(extras_of(), [0, 0], coefficient="constant")[1] == (2.0, pytest.approx(np.log(3)))


def test_the_entropy_term_of_the_dominant_modality_by_hand() -> None:
    p = softmax(-1, -2, -3)
    found = terms(extras_of(), [0, 0], entropy_weight=0.5)
    assert len(found) == 3
    assert found[2] == (-0.5, pytest.approx(float(-(p * np.log(p)).sum()), rel=1e-6))  # 0.8324 nats, of acc
    q = softmax(-1, -3)  # without the second class
    masked = terms(extras_of((1, 0, 1)), [0, 1], entropy_weight=0.5)
    assert masked[2] == (-0.5, pytest.approx(float(-(q * np.log(q)).sum()), rel=1e-6))
    far = terms(extras_of(), [2, 2], entropy_weight=0.5)  # in class 2 gyro is ahead: uniform over three classes
    assert far[-1] == (-0.5, pytest.approx(np.log(3), rel=1e-6))
    equal = {**extras_of(), "prototypes.acc": extras_of()["prototypes.gyro"]}
    assert len(terms(equal, [0, 0], entropy_weight=0.5)) == 1
    assert len(terms(extras_of(), [0, 0], entropy_weight=0.0)) == 2


@pytest.mark.parametrize("method", ["pmr", "fed_pmr"])
def test_the_entropy_term_is_of_the_first_rounds_alone(method: str) -> None:
    data = learning.round_data(40, 3)
    plain = guards.play(method, data, config={"strength": 0.0})
    told = {"extras": plain.payload, "config": {"strength": 0.0, "entropy_weight": 1.0}}
    first = guards.play(method, data, **told)
    assert guards.finite(first)
    assert not learning.equal(first.tensors, plain.tensors)
    assert learning.equal(guards.play(method, data, **told, memory=first.memory).tensors, plain.tensors)
    longer = {**told, "config": {**told["config"], "entropy_rounds": 0}}
    assert learning.equal(guards.play(method, data, **longer, memory=first.memory).tensors, first.tensors)


def test_the_stimulation_ends_apart_from_the_entropy_term() -> None:
    data = learning.round_data(40, 3)
    extras = guards.play("pmr", data).payload
    both = {"rounds": 1, "entropy_weight": 1.0, "entropy_rounds": 2}
    first = guards.play("pmr", data, extras=extras, config=both)
    second = guards.play("pmr", data, extras=extras, config=both, memory=first.memory)
    alone = guards.play("pmr", data, extras=extras, config={"strength": 0.0, "entropy_weight": 1.0})
    assert learning.equal(second.tensors, alone.tensors)
    third = guards.play("pmr", data, extras=extras, config=both, memory=second.memory)
    assert learning.equal(third.tensors, guards.play("pmr", data).tensors)


def test_the_entropy_term_slows_the_dominant_modality() -> None:
    data = learning.round_data(40, 3)
    data.x["mic"][:] = np.random.default_rng(3).normal(size=data.x["mic"].shape)  # says nothing of the class
    extras, spec = guards.play("pmr", data).payload, learning.spec(3, method="pmr")

    def entropy(weight: float) -> float:
        config = {"strength": 0.0, "entropy_weight": weight}
        model = build.build(spec)
        params.load(model.named(), guards.play("pmr", data, extras=extras, config=config, epochs=5).tensors)
        with torch.no_grad():
            h = model.eval().encode({"acc": torch.from_numpy(data.x["acc"])})["acc"]
        c = torch.tensor(extras["prototypes.acc"])
        p = torch.softmax(-torch.cdist(h, c), dim=1)
        return float(-(p * p.log()).sum(1).mean())

    assert entropy(3.0) > entropy(0.0)


def test_classes_without_a_prototype_are_masked() -> None:
    p = softmax(-1, -3)[0]
    found = terms(extras_of((1, 0, 1)), [0, 1])  # the second row's class has no prototype: no term for it
    assert found[1] == (pytest.approx(2.0 * (p / 0.5 - 1)), pytest.approx(np.log(2)))
    assert len(terms(extras_of((1, 0, 1)), [1, 1])) == 1
    assert len(terms(extras_of((0, 0, 0)), [0, 1])) == 1


def test_without_prototypes_it_trains_as_fedasync_to_the_last_bit() -> None:
    ours = learning.train_round(SPEC, ("acc", "gyro"))[0]
    theirs = learning.train_round(learning.spec(method="fedasync"), ("acc", "gyro"))[0]
    assert learning.equal(ours.tensors, theirs.tensors)


def test_with_prototypes_it_trains_otherwise_until_its_rounds_are_over() -> None:
    data = learning.round_data(40, 3)
    plain = guards.play("pmr", data)
    extras = plain.payload
    stimulated = guards.play("pmr", data, extras=extras, config={"rounds": 1, "strength": 3.0})
    assert guards.finite(stimulated)
    assert not learning.equal(stimulated.tensors, plain.tensors)
    over = guards.play("pmr", data, extras=extras, config={"rounds": 1}, memory=stimulated.memory)
    assert learning.equal(over.tensors, plain.tensors)


@pytest.mark.parametrize("what", guards.DATA)
def test_poor_data_with_prototypes(what: str) -> None:
    here = ("acc", "gyro") if what == "gaps" else learning.NAMES
    extras = guards.play("pmr", guards.DATA[what](), here=here).payload
    assert guards.finite(guards.play("pmr", guards.DATA[what](), here=here, extras=extras))


def test_meaningless_compositions() -> None:
    assert find("fed_pmr_async").client is pmr.Client
    with pytest.raises(ConfigError, match=r"pmr\+fedasync: the clients of pmr need the server's prototypes"):
        find("pmr+fedasync")
    with pytest.raises(ConfigError, match=r"ogm_ge\+pmr: the server of pmr lives on counts.{modality}, prototypes"):
        find("ogm_ge+pmr")

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.records import Segments
from edge_sdk.learn import deltas, params, seeds, selection
from edge_sdk.learn.prototype_tables import Table
from edge_sdk.learn.records import Answer, Candidate, ClientContext, Cohort, Member, Out, Pool, Samples
from edge_sdk.methods import bmsfed
from edge_sdk.methods.base import SyncServerRule, find
from edge_sdk.models import build
from tests.helpers import guards, learning

INF = float("inf")


def line(*places: float) -> np.ndarray:
    x = np.array(places)
    return np.abs(x[:, None] - x[None])


def table(multi: np.ndarray, uni: np.ndarray, ratio: list[float], owns: list[bool] | None = None) -> bmsfed.Distances:
    return bmsfed.Distances(multi, uni, np.array(owns or [True] * len(multi)), np.array(ratio))


def choose(t: bmsfed.Distances, k: int, *, chi: float = 1.5, mode: str = "paper", size: int = 99) -> tuple:
    return bmsfed.choose(t, k, size, np.random.default_rng(0), chi=chi, mode=mode)


# Σ_j D_jk of these places: 24, 21, 20, 28, 32: the third is first (see the tests of facility location).
PLACES = line(0, 1, 2, 10, 11)
REVERSED = line(11, 10, 2, 1, 0)  # 32, 28, 20, 21, 24: in D_w, the third as well


def test_the_papers_selection_by_hand() -> None:
    # k1 = k2 = 2 → S_M alone; m_M = m_w = (2, 1, 0, 8, 9) and (9, 8, 0, 1, 2).
    # Then k1: 3 costs 2+1+0+0+1 = 4, 4 the same → 3. k2: 0 costs 0+1+0+1+2 = 4, 1 costs 1+0+0+1+2 = 4 → 0.
    ratio = [2.0, 1.0, 1.0, 1.0, 1.0]
    assert choose(table(PLACES, REVERSED, ratio), 1) == ((2,), ())
    assert choose(table(PLACES, REVERSED, ratio), 2) == ((2, 3), ())  # no place left for the second of the pair
    assert choose(table(PLACES, REVERSED, ratio), 3) == ((2, 3), (0,))
    assert choose(table(PLACES, REVERSED, [1.0] * 5), 3) == ((2, 3, 0), ())
    assert choose(table(PLACES, REVERSED, ratio), 3, chi=2.0) == ((2, 3, 0), ())  # ρ has to be larger than χ


def test_the_official_selection_by_hand() -> None:
    # k2 = 2 lags: S_w; m_M stays ∞. Then k1 = 3 of those left (28; 0: 24, 1: 21 → 1), k2: m_w = (9, 8, 0, 1, 2) → 0.
    lags = [1.0, 1.0, 2.0, 1.0, 1.0]
    assert choose(table(PLACES, REVERSED, lags), 1, mode="official") == ((), (2,))
    assert choose(table(PLACES, REVERSED, lags), 2, mode="official") == ((1,), (2,))
    assert choose(table(PLACES, REVERSED, [2.0] * 5), 3, mode="official")[0] == ()


def by_the_text(t: bmsfed.Distances, k: int, chi: float, mode: str) -> tuple[set[int], set[int]]:
    """Reads the pseudocode with loops and lists, over everybody left; ties to the lower number."""
    n = len(t.owns)
    s_m: list[int] = []
    s_w: list[int] = []

    def cost(matrix: np.ndarray, among: list[int], chosen: list[int], j_of: list[int]) -> int:
        costs = {c: sum(min([matrix[j][i] for i in chosen] + [matrix[j][c]]) for j in j_of) for c in among}
        least = min(costs.values())
        return next(c for c in among if costs[c] <= least + 1e-9)

    owners = [i for i in range(n) if t.owns[i]]
    while len(s_m) + len(s_w) < min(k, n):
        rest = [i for i in range(n) if i not in s_m + s_w]
        near_m = s_m
        near_w = [i for i in (s_w if mode == "official" else s_m + s_w) if t.owns[i]]
        k1 = cost(t.multi, rest, near_m, list(range(n)))
        own = [i for i in rest if t.owns[i]]
        k2 = cost(t.uni, own, near_w, owners) if own else None
        if mode == "official":
            if k2 is not None and t.ratio[k2] > chi:
                s_w.append(k2)
            else:
                s_m.append(k1)
            continue
        s_m.append(k1)
        if k2 is not None and k2 != k1 and len(s_m) + len(s_w) < k:
            (s_w if t.ratio[k2] > chi else s_m).append(k2)
    return set(s_m), set(s_w)


def drawn(n: int, seed: int) -> bmsfed.Distances:
    """Distances between n random devices, some of which lack w."""
    rng = np.random.default_rng(seed)
    owns = rng.random(n) < 0.7
    uni = selection.distances(rng.normal(size=(n, 4)))
    uni[~owns] = uni[:, ~owns] = 0.0
    ratio = np.where(owns, rng.uniform(0.5, 2.5, n), -INF)
    return bmsfed.Distances(selection.distances(rng.normal(size=(n, 4))), uni, owns, ratio)


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6), st.sampled_from(["paper", "official"]))
def test_the_selection_is_what_the_text_says(n: int, k: int, seed: int, mode: str) -> None:
    t, k = drawn(n, seed), min(n, k)
    s_m, s_w = choose(t, k, mode=mode)
    assert (set(s_m), set(s_w)) == by_the_text(t, k, 1.5, mode)


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10**6), st.sampled_from(["paper", "official"]))
def test_invariant_9(n: int, k: int, seed: int, mode: str) -> None:
    """S_M and S_w are disjoint and K together; without a limit nobody trains w alone; official is DivFL then."""
    t, k, size = drawn(n, seed), min(n, k), 1 + seed % 4
    s_m, s_w = bmsfed.choose(t, k, size, np.random.default_rng(seed), chi=1.5, mode=mode)
    assert len({*s_m, *s_w}) == len(s_m) + len(s_w) == k
    assert all(t.owns[i] and t.ratio[i] > 1.5 for i in s_w)
    everything, alone = bmsfed.choose(t, k, size, np.random.default_rng(seed), chi=INF, mode=mode)
    assert alone == ()
    assert len(set(everything)) == k
    if mode == "official":
        assert everything == selection.greedy(t.multi, k, size, np.random.default_rng(seed))


def server(**config: Any) -> SyncServerRule:
    rule = find("bmsfed").server_rule(config, learning.spec(3, method="bmsfed"))
    assert isinstance(rule, SyncServerRule)
    return rule


def answer(device: str, at: dict[str, float], rho: dict[str, float], n: int = 10) -> Answer:
    payload: dict[str, np.ndarray] = {}
    for m, x in at.items():
        payload[f"delta.{m}"] = np.zeros(deltas.SIZE, np.float32)
        payload[f"delta.{m}"][learning.NAMES.index(m)] = x
    payload |= {f"ratio.{m}": np.asarray(r, np.float32) for m, r in rho.items()}
    return Answer(device, tuple(at), n, payload)


ANSWERS = (
    answer("a", {"acc": 1.0, "gyro": 2.0, "mic": 0.5}, {"acc": 0.5, "gyro": 1.0, "mic": 2.0}, 10),
    answer("b", {"acc": 1.5, "gyro": 2.5}, {"acc": 0.25, "gyro": 4.0}, 30),
    answer("c", {"mic": 7.0}, {}, 5),
)


def test_the_global_imbalance_is_weighted_by_samples() -> None:
    state = server().answered({}, ANSWERS)
    rho = bmsfed.imbalance(state, learning.NAMES)
    assert rho == {"acc": pytest.approx((10 * 0.5 + 30 * 0.25) / 40), "gyro": pytest.approx(3.25), "mic": 2.0}
    assert server().figures(state) == {f"imbalance.{m}": r for m, r in rho.items()}
    assert bmsfed.imbalance({}, learning.NAMES) == {}


def test_answers_fill_the_matrices() -> None:
    state = server().answered({}, ANSWERS)
    assert {k.split("/")[0] for k in state} == {"multi", "uni", "ratio"}
    assert state["multi/a"][:3].tolist() == [1.0, 2.0, 0.5]
    assert state["multi/b"][:3].tolist() == [1.5, 2.5, 0.0]
    assert "multi/c" not in state  # it has one modality: its only vector stands for everything it has
    assert state["uni/mic/c"][:3].tolist() == [0.0, 0.0, 7.0]
    assert [k for k in sorted(state) if k.startswith("uni/")] == [
        "uni/acc/a", "uni/acc/b", "uni/gyro/a", "uni/gyro/b", "uni/mic/a", "uni/mic/c",
    ]  # fmt: skip


def test_the_weak_modality_is_trained_alone_by_those_that_lag() -> None:
    """gyro is weak (ρ = 3.25); of a and b only b's own ρ is above χ = 1.5; c cannot train gyro."""
    state = server().answered({}, ANSWERS)
    fleet = (Candidate("a", learning.NAMES), Candidate("b", ("acc", "gyro")), Candidate("c", ("mic",)))
    for mode in ("paper", "official"):
        chosen = server(mode=mode).select(state, Pool(0, fleet, (), 3), np.random.default_rng(0))
        plans = {a.device: (a.modalities, a.phase) for a in chosen}
        assert plans == {"a": (learning.NAMES, "multi"), "b": (("gyro",), "uni"), "c": (("mic",), "multi")}
    lenient = server(chi=4.5).select(state, Pool(0, fleet, (), 3), np.random.default_rng(0))
    assert {a.phase for a in lenient} == {"multi"}
    strict = server(mode="official", chi=9.0).select(state, Pool(0, fleet, (), 3), np.random.default_rng(0))
    assert {a.phase for a in strict} == {"multi"}


def test_devices_that_have_not_answered_are_asked_and_fill_up() -> None:
    state, rng = server().answered({}, ANSWERS), np.random.default_rng(0)
    fleet = (Candidate("a", learning.NAMES), Candidate("c", ("gyro", "mic")), Candidate("x", ("acc",)))
    queries = server().query(state, fleet, 2, rng)
    assert [(q.device, q.epochs, q.phase) for q in queries] == [("c", 1, "multi"), ("x", 1, "multi")]  # c has gyro now
    for done, asked in ((1, 0), (4, 0), (5, 2), (6, 0)):  # who never answers must not keep every round waiting
        assert len(server().query({**state, "rounds": np.array([float(done)])}, fleet, 2, rng)) == asked
    chosen = server().select(state, Pool(0, fleet, (), 3), rng)
    assert [a.device for a in chosen] == ["a", "c", "x"]
    assert len(server().select({}, Pool(0, fleet, (), 2), rng)) == 2


@pytest.mark.parametrize(
    ("done", "lr"), [(0, 0.1), (80, 0.1), (81, 0.1 - 0.09 * 81 / 180), (90, 0.055), (180, 0.01), (500, 0.01)]
)
def test_the_late_linear_decay_by_hand(done: int, lr: float) -> None:
    spec = learning.spec(3, method="bmsfed", config={"lr_min": 0.01}, lr_decay=1.0)  # lr = 0.1
    rule = find("bmsfed").server_rule(spec.method.config, spec)
    assert isinstance(rule, SyncServerRule)
    fleet = (Candidate("a", learning.NAMES), Candidate("b", ("acc", "gyro")), Candidate("c", ("mic",)))
    for state in (rule.answered(rule.init(), ANSWERS), {}):  # {}: nobody has answered, all are drawn at random
        chosen = rule.select(state, Pool(done, fleet, (), 3), np.random.default_rng(0))
        assert len(chosen) == 3
        assert [task.lr_scale * 0.1 for task in chosen] == [pytest.approx(lr)] * 3
    assert {task.lr_scale for task in server().select({}, Pool(done, fleet, (), 3), np.random.default_rng(0))} == {1.0}


@pytest.mark.parametrize("training", [{"lr_decay": 0.99}, {"lr_decay": 1.0, "lr": 0.001}])
def test_a_linear_decay_that_makes_no_sense_is_refused_before_the_first_round(training: dict) -> None:
    spec = learning.spec(3, method="bmsfed", config={"lr_min": 0.01}, **training)
    with pytest.raises(ConfigError, match=r"lr_min = 0\.01: .* found lr = .*, lr_decay = .*set lr_decay to 1"):
        find("bmsfed").server_rule(spec.method.config, spec).init()


def test_a_device_answers_after_one_epoch_or_one_step() -> None:
    data = learning.round_data(40, 3)
    epoch = guards.play("bmsfed", data, asks=True, epochs=1)
    step = guards.play("bmsfed", data, asks=True, epochs=1, config={"query": "step"})
    assert (epoch.num_steps, step.num_steps) == (3, 1)  # 40 rows in batches of 16
    assert set(step.payload) == set(epoch.payload)
    assert 0 < np.linalg.norm(step.payload["delta.acc"]) < np.linalg.norm(epoch.payload["delta.acc"])
    fed = learning.federation("bmsfed", config={"query": "step"})
    members = learning.sync_round(fed).members
    assert [q.epochs for q in fed.asked] == [1] * 5
    assert all(m.num_steps > 1 for m in members)  # rounds train their epochs


def test_what_trained_refreshes_its_own_matrix_alone() -> None:
    names = [f"encoder.{m}" for m in learning.NAMES]
    start = {name: Segments(np.ones(1, np.float32)) for name in (*names, "fusion")}
    multi = Member(
        "a", learning.NAMES, 8, 1, {"ratio.mic": np.asarray(3.0, np.float32)},
        {name: Segments(np.full(1, 1.0 + i, np.float32)) for i, name in enumerate(names)},
    )  # fmt: skip
    uni = Member("b", ("gyro",), 4, 1, {}, {names[1]: Segments(np.zeros(1, np.float32)), "fusion": start["fusion"]})
    weights, patch = server().weights({}, Cohort(0, start, (multi, uni)))
    assert patch.keys() == {"multi/a", "uni/gyro/b", "ratio/mic/a", "rounds"}
    assert patch["multi/a"][:4].tolist() == [0.0, -1.0, -2.0, 0.0]
    assert patch["uni/gyro/b"][:4].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert patch["ratio/mic/a"].tolist() == [3.0, 8.0]
    assert weights.by_block["encoder.gyro"] == {"a": 8 / 12, "b": 4 / 12}
    assert weights.by_block["encoder.acc"] == {"a": 1.0}


def test_local_ratios_by_hand() -> None:
    known = torch.tensor([True, True, False])
    c = torch.zeros(3, 2)
    c[1, 0] = 4.0
    y = torch.tensor([0, 1, 2, 0])  # the third row's class has no prototype
    acc, gyro = torch.zeros(4, 2), torch.zeros(4, 2)
    acc[:, 0] = torch.tensor([0.0, 4.0, 9.0, 1.0])  # distances (0, 4), (4, 0), (1, 3): right, right, right
    gyro[:, 0] = torch.tensor([2.0, 1.0, 9.0, 4.0])  # (2, 2), (1, 3), (4, 0): undecided, wrong, wrong
    found = {"acc": (acc, y), "gyro": (gyro, y)}
    tables = {m: Table(c, known) for m in found}
    p = [1 / (1 + np.exp(-x)) for x in (4.0, 2.0)]
    s_acc, s_gyro = (2 * p[0] + p[1]) / 3, (0.5 + (1 - p[1]) + (1 - p[0])) / 3
    rho = bmsfed.local_ratios(found, tables)
    assert rho == {"acc": pytest.approx(s_gyro / s_acc), "gyro": pytest.approx(s_acc / s_gyro)}
    assert bmsfed.local_ratios(found, tables, accuracy=True) == {
        "acc": pytest.approx(1 / 3), "gyro": pytest.approx(3.0),
    }  # fmt: skip
    assert bmsfed.local_ratios({"acc": (acc, y)}, tables) == {}
    nobody = {m: Table(c, torch.zeros(3, dtype=torch.bool)) for m in found}
    assert bmsfed.local_ratios(found, nobody) == {}


@pytest.mark.parametrize(
    ("memory", "config", "expected"),
    [
        ({}, {}, 1.0),  # no ratio yet
        ({"bmsfed/ratio/acc": np.array(1.3)}, {}, 0.3),
        ({"bmsfed/ratio/acc": np.array(5.0)}, {"strength": 2.0}, 2.0),
        ({"bmsfed/ratio/acc": np.array(0.7)}, {}, 0.0),
        ({"bmsfed/ratio/acc": np.array(0.7)}, {"coefficient": "constant"}, 1.0),
    ],
)
def test_the_uni_modal_loss_by_hand(memory: dict, config: dict, expected: float) -> None:
    spec, rule = learning.spec(method="bmsfed"), find("bmsfed").client_rule(config)
    now = learning.view(("acc",), planned=("acc",))
    now = replace(now, plan=replace(now.plan, phase="uni"))
    rows = np.zeros((3, 6), np.float32)
    rows[:, 0] = (1, 2, 3)
    extras = {"prototypes.acc": rows, "counts.acc": np.array([1, 1, 1])}
    work = replace(learning.job(spec, rule.schedule(now)[0], now, memory=memory), extras=extras)
    samples = Samples({}, torch.tensor([0, 0]), torch.tensor([[1.0, 0.0]] * 2), torch.arange(2))
    ctx = ClientContext(work, build.build(spec), samples, torch.Generator(), dict(memory), {})
    rule.begin(ctx)
    out = Out({"acc": torch.zeros(2, 6)}, torch.zeros(2, 3))
    found = [(w, float(t)) for w, t in rule.loss_terms(ctx, samples.batch(samples.rows), out)]
    e = np.exp(-np.array([1.0, 2.0, 3.0]))
    assert found[0] == (1.0, pytest.approx(np.log(3)))
    assert found[1:] == ([(pytest.approx(expected), pytest.approx(-np.log(e[0] / e.sum())))] if expected else [])


def test_a_uni_modal_client_trains_and_sends_its_encoder_and_the_fusion() -> None:
    data = learning.round_data(40, 3)
    alone = type(data)(data.indices, data.y, {"gyro": data.x["gyro"]}, {"gyro": data.has["gyro"]})
    result = guards.play("bmsfed", alone, here=("gyro",), phase="uni")
    assert set(result.tensors) == {"encoder.gyro", "fusion"}
    assert set(result.payload) == {"prototypes.gyro", "counts.gyro"}
    start = build.initial_tensors(learning.spec(3))
    moved = result.tensors["fusion"].params - start["fusion"].params
    weight = moved[3:].reshape(3, 18)  # bias, then weight (C, M·D)
    assert np.abs(weight[:, 6:12]).max() > 0
    assert not weight[:, :6].any()  # zero features: the other modalities' columns get no gradient
    assert not weight[:, 12:].any()


def test_a_multi_modal_client_remembers_its_ratios_and_reports_them() -> None:
    data = learning.round_data(40, 3)
    result = guards.play("bmsfed", data)
    for m in learning.NAMES:
        assert float(result.memory[f"bmsfed/ratio/{m}"]) == pytest.approx(float(result.payload[f"ratio.{m}"]), rel=1e-6)
    model = build.build(learning.spec(3))
    params.load(model.named(), result.tensors)
    with torch.no_grad():
        h = {m: v.numpy() for m, v in model.eval().encode({m: torch.from_numpy(a) for m, a in data.x.items()}).items()}
    s = {}
    for m, rows in h.items():
        c = np.stack([rows[data.y == j].mean(0) for j in range(3)])
        z = np.exp(-np.linalg.norm(rows[:, None] - c[None], axis=2))
        s[m] = (z / z.sum(1, keepdims=True))[np.arange(40), data.y].mean()
    for m in learning.NAMES:
        others = np.mean([s[k] for k in s if k != m])
        assert float(result.payload[f"ratio.{m}"]) == pytest.approx(others / s[m], rel=1e-4)
    asked = guards.play("bmsfed", data, asks=True, epochs=1)
    assert set(asked.payload) == set(result.payload) | {f"delta.{m}" for m in learning.NAMES}


def test_rounds_where_devices_lack_modalities() -> None:
    """Everybody is asked once; in the end somebody trains the weak modality alone, and nobody what it has not got."""
    fed = learning.federation("bmsfed", config={"chi": 0.0, "mode": "official"})
    phases = set()
    for _ in range(4):
        learning.sync_round(fed, size=3)
        weak = max(rho := bmsfed.imbalance(fed.state, learning.NAMES), key=lambda m: rho[m])
        phases |= {a.phase for a in fed.chosen}
        for task in fed.chosen:
            assert set(task.modalities) <= set(fed.data[task.device].x)
            assert task.phase == "multi" or task.modalities == (weak,) or len(task.modalities) == 1
    assert sorted(q.device for q in fed.asked) == sorted(fed.data)
    assert phases == {"multi", "uni"} or phases == {"uni"}
    assert fed.rule.extras(fed.state, fed.chosen[0]).keys() == {
        f"{k}.{m}" for k in ("prototypes", "counts") for m in learning.NAMES
    }


def test_official_without_a_limit_chooses_as_divfl_does_in_whole_rounds() -> None:
    """Invariant 9."""
    fleet = {f"d{n}": learning.NAMES for n in range(6)}
    fed = learning.federation("bmsfed", config={"mode": "official", "chi": 1e9}, fleet=fleet)
    learning.sync_round(fed, size=2)
    for _ in range(3):
        matrix = selection.distances(np.stack([fed.state[f"multi/{d}"] for d in sorted(fleet)]))
        rng = np.random.default_rng(seeds.derive(fed.seed, fed.round, "round"))
        expected = {f"d{i}" for i in selection.greedy(matrix, 2, 2, rng)}
        learning.sync_round(fed, size=2)
        assert {a.device for a in fed.chosen} == expected
        assert {a.phase for a in fed.chosen} == {"multi"}


def test_published_names_and_options() -> None:
    assert find("bmsfed_local").client_rule({}).config.prototypes == "local"
    assert find("bmsfed").client_rule({}).config.prototypes == "global"
    with pytest.raises(ConfigError, match=r"ogm_ge\+bmsfed: the server of bmsfed lives on"):
        find("ogm_ge+bmsfed")


@pytest.mark.parametrize(
    "config", [{}, {"client_ratio": "accuracy"}, {"prototypes": "local", "ratio_prototypes": "local"}]
)
@pytest.mark.parametrize("what", guards.DATA)
def test_poor_data_with_prototypes(what: str, config: dict) -> None:
    here = ("acc", "gyro") if what == "gaps" else learning.NAMES
    first = guards.play("bmsfed", guards.DATA[what](), here=here, asks=True, epochs=1, config=config)
    extras = {k: v for k, v in first.payload.items() if k.startswith(("prototypes", "counts"))}
    assert guards.finite(guards.play("bmsfed", guards.DATA[what](), here=here, extras=extras, config=config))

"""QQR's equations against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_sdk.core.records import Array, RoundData
from edge_sdk.learn import local_training, prototypes, pulling
from edge_sdk.learn.prototype_tables import Table
from edge_sdk.learn.records import Assignment, Cohort, Member
from edge_sdk.methods.base import find
from edge_sdk.methods.qqr import GOOD, MISSING, POOR, Client, Config, Server
from edge_sdk.models import build
from tests.helpers import learning

TWO = Table(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), torch.tensor([True, True, False]))


def test_a_persistent_prototype_is_the_mean_of_its_own_reports() -> None:
    table, u = np.zeros((2, 1)), np.zeros(2)
    for temporal, seen in (
        ([[4.0], [0.0]], [True, False]),
        ([[6.0], [0.0]], [True, False]),
        ([[2.0], [9.0]], [True, True]),
    ):
        table, u = prototypes.persistent(table, u, np.array(temporal), seen=np.array(seen))
    assert table.tolist() == [[4.0], [9.0]]  # (4 + 6 + 2) / 3, and 9 although it came in round 3
    assert u.tolist() == [3.0, 1.0]


def test_the_pull_by_hand() -> None:
    h, y = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]]), torch.tensor([0, 1, 2])
    assert float(pulling.mse(h, y, TWO)) == pytest.approx(((1.0) + (1.0 + 4.0)) / 2 / 2)  # class 2 has no prototype
    h, y = torch.tensor([[3.0, 0.0]]), torch.tensor([0])  # cosines 1 and 0, over 0.5
    assert float(pulling.contrastive(h, y, TWO)) == pytest.approx(math.log(1 + math.exp(-2.0)))


def test_without_a_known_class_there_is_no_pull_and_no_nan() -> None:
    h = torch.ones(2, 2, requires_grad=True)
    for pull in pulling.PULLS.values():
        term = pull(h, torch.tensor([2, 2]), TWO)
        term.backward()
        assert float(term.detach()) == 0.0
    assert torch.equal(h.grad, torch.zeros(2, 2))
    assert pulling.likeness(h, torch.tensor([2, 2]), TWO) == 1.0


def test_another_modality_stands_in_for_a_class_if_they_look_alike() -> None:
    first = Table(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([True, False]))
    second = Table(torch.tensor([[2.0, 0.1], [0.0, 3.0]]), torch.tensor([True, True]))
    filled = pulling.with_fallback({"a": first, "b": second}, 0.8)
    assert filled["a"].rows.tolist() == [[1.0, 0.0], [0.0, 3.0]]
    assert filled["a"].known.all()
    assert first.known.tolist() == [True, False]  # what came is not touched
    apart = Table(torch.tensor([[0.0, 1.0], [0.0, 3.0]]), torch.tensor([True, True]))
    assert not pulling.with_fallback({"a": first, "b": apart}, 0.8)["a"].known[1]


def server(**config: object) -> Server:
    rule = find("qqr").server_rule(config, learning.spec(method="qqr"))
    assert isinstance(rule, Server)
    return rule


def member(device: str, table: list[list[float]], counts: list[int]) -> Member:
    payload: dict[str, Array] = {
        "prototypes.acc": np.repeat(np.array(table, np.float32), 6, axis=1), "counts.acc": np.array(counts, np.int64),
    }  # fmt: skip
    return Member(device, ("acc",), 10, 1, payload, {})


def test_the_server_averages_over_devices_that_report_a_class_whatever_their_counts() -> None:
    rule = server(bits=0)
    cohort = Cohort(
        0, {}, (member("p", [[1.0], [2.0], [0.0]], [100, 5, 0]), member("q", [[3.0], [0.0], [0.0]], [1, 0, 0]))
    )
    _, state = rule.weights({}, cohort)
    assert state["prototypes/acc"][:, 0].tolist() == [2.0, 2.0, 0.0]
    assert state["counts/acc"].tolist() == [1.0, 1.0, 0.0]
    _, state = rule.weights(state, Cohort(1, {}, (member("q", [[5.0], [0.0], [0.0]], [1, 0, 0]),)))
    assert state["prototypes/acc"][:, 0].tolist() == [3.5, 2.0, 0.0]
    sent = rule.extras(state, Assignment("p", ("acc",)))
    assert sent["counts.acc"].tolist() == [2, 1, 0]
    assert "prototypes.gyro" not in sent


def test_prototypes_are_due_every_dl_rounds() -> None:
    rule, state = server(bits=0, delay=2), {}
    due = []
    for number in range(4):
        due.append(int(rule.extras(state, Assignment("p", ("acc",)))["due"]))
        _, patch = rule.weights(state, Cohort(number, {}, (member("p", [[1.0], [1.0], [1.0]], [1, 1, 1]),)))
        state = {**state, **patch}
    assert due == [1, 0, 1, 0]
    assert state["counts/acc"].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("broken", ["codes.acc", "ranges.acc", "counts.acc"])
def test_a_report_that_lacks_a_part_is_passed_over(broken: str) -> None:
    payload: dict[str, Array] = {
        "codes.acc": np.zeros((3, 3), np.uint8), "ranges.acc": np.zeros((3, 2), np.float32),
        "counts.acc": np.ones(3, np.int64),
    }  # fmt: skip
    del payload[broken]
    _, state = server().weights({}, Cohort(0, {}, (Member("p", ("acc",), 1, 1, payload, {}),)))
    assert "prototypes/acc" not in state


def phase_job(
    method: str, data: RoundData, here: tuple[str, ...], extras: dict[str, Array], **config: object
) -> object:
    spec = learning.spec(method=method, config=config)
    view = learning.view(here, planned=("acc", "gyro"), absent=tuple(m for m in ("acc", "gyro") if m not in here))
    (phase,) = find(method).client_rule(config).schedule(view)
    return replace(learning.job(spec, phase, view, data=data), extras=extras)


def tables() -> dict[str, Array]:
    rng = np.random.default_rng(2)
    names = ("acc", "gyro")
    return {f"prototypes.{m}": rng.normal(size=(3, 6)).astype(np.float32) for m in names} | {
        f"counts.{m}": np.array([1, 1, 0]) for m in names
    }


def half(data: RoundData) -> RoundData:
    """Returns the rows without their gyroscope."""
    return RoundData(data.indices, data.y, {"acc": data.x["acc"]}, {"acc": data.has["acc"]})


def test_the_features_of_what_is_missing_are_its_class_prototypes_and_its_encoder_stays() -> None:
    seen = []

    class Watching(Client):
        def forward(self, ctx, batch):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            out = super().forward(ctx, batch)
            seen.append((batch.y, out.features["gyro"], ctx.scratch["flags"]))
            return out

    job = phase_job("qqr", half(learning.round_data()), ("acc",), tables())
    result = local_training.train(job, Watching(Config()), build.build(job.spec))  # type: ignore[attr-defined, arg-type]
    expected = torch.tensor(tables()["prototypes.gyro"])
    assert all(torch.equal(h, expected[y]) for y, h, _ in seen)
    assert seen[0][2] == {"acc": GOOD, "gyro": MISSING}
    assert sorted(result.tensors) == ["encoder.acc", "fusion"]
    assert {"codes.acc", "ranges.acc", "counts.acc", "flags"} == set(result.payload)


def test_zero_input_trains_the_encoder_of_what_is_missing() -> None:
    result = learning.train_phase(phase_job("zf", half(learning.round_data()), ("acc",), {}))  # type: ignore[arg-type]
    assert sorted(result.tensors) == ["encoder.acc", "encoder.gyro", "fusion"]
    assert result.payload == {}


def test_a_poor_modality_is_pulled_and_not_reported() -> None:
    good = learning.round_data()
    poor = replace(good, quality={"gyro": np.zeros(len(good.y), np.float32)})
    results = {}
    for name, data, mu in (("off", poor, 0.0), ("on", poor, 1.0), ("good", good, 1.0)):
        results[name] = learning.train_phase(phase_job("qqr", data, ("acc", "gyro"), tables(), mu=mu))  # type: ignore[arg-type]
    assert "codes.gyro" not in results["on"].payload
    assert "codes.gyro" in results["good"].payload
    assert results["on"].payload["flags"].tolist() == [GOOD, POOR]
    assert learning.equal(results["off"].tensors, results["good"].tensors)  # nothing pulls on what is good
    assert not learning.equal(results["on"].tensors, results["off"].tensors)


def test_quality_may_be_estimated_from_the_prototypes() -> None:
    away = {**tables(), "prototypes.gyro": -np.ones((3, 6), np.float32)}  # features are not negative
    job = phase_job("qqr", learning.round_data(), ("acc", "gyro"), away, quality="estimated")
    flags = learning.train_phase(job).payload["flags"]  # type: ignore[arg-type]
    assert flags.tolist()[1] == POOR


def test_only_whole_devices_report_if_asked_to() -> None:
    job = phase_job("qqr", half(learning.round_data()), ("acc",), tables(), proto_from="full_only")
    assert set(learning.train_phase(job).payload) == {"flags"}  # type: ignore[arg-type]

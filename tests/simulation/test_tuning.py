"""The search of a study: the same settings for every variant, judged on held-out training rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator import cli
from coordinator.preparation import validation
from coordinator.simulation.compare import tuning
from coordinator.simulation.compare.study import Study, Tune, Variant, read, runs
from edge_sdk.core.errors import ConfigError, DataError
from edge_sdk.core.records import Dataset

SPEC = """
title = "Tuned"
seeds = [1]
simulate = { dataset = "synthetic", devices = 3, updates = 4, epochs = 1, profile = "instant", lr = 0.1, batch = 64 }

[tune]
seed = 7
validation = 0.25
grid = { lr = [0.1, 1e-9], batch = [64] }

[[variants]]
label = "Concat"
simulate = { method = "fed_concat_async" }

[[variants]]
label = "slow"
simulate = { method = "fed_concat_async", lr = 1e-9 }
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "tuned.toml"
    path.write_text(SPEC, encoding="utf-8")
    return path


def test_every_variant_is_tried_at_every_setting_on_held_out_rows(spec: Path) -> None:
    made = tuning.trials(read(spec))
    assert [(t.label, t.setting) for t in made] == [
        (label, {"lr": lr, "batch": 64}) for label in ("Concat", "slow") for lr in (0.1, 1e-9)
    ]
    assert {t.run.seed for t in made} == {7}
    assert all(t.run.flags["validation"] == 0.25 and t.run.flags["lr"] == t.setting["lr"] for t in made)
    assert len({t.run.name for t in made}) == 4


def test_the_best_is_taken_first_of_equals_and_never_one_that_diverged() -> None:
    study = Study(title="t", variants=(Variant(label="A"),), tune=Tune(grid={"lr": (1, 2, 3)}))
    for accs, taken in (((0.2, 0.5, 0.5), 2), ((float("nan"), 0.1, 0.0), 2), ((float("nan"),) * 3, 1)):
        done = [(t, {"acc_median": acc}) for t, acc in zip(tuning.trials(study), accs, strict=True)]
        assert tuning.best(done)["A"].setting == {"lr": taken}


def test_a_variant_gets_a_second_row_where_another_setting_is_better() -> None:
    study = Study(
        title="t", variants=(Variant(label="A"), Variant(label="B", simulate={"lr": 2})), simulate={"lr": 1},
        quick={"lr": 9}, tune=Tune(grid={"lr": (1, 2)}),
    )  # fmt: skip
    done = [(t, {"acc_median": t.setting["lr"]}) for t in tuning.trials(study)]
    wider = tuning.with_best(study, tuning.best(done))
    assert [(run.label, run.flags["lr"]) for run in runs(wider) if run.seed == 1] == [
        ("A", 1),
        ("A, lr = 2", 2),
        ("B", 2),
    ]
    quick = tuning.with_best(study, tuning.best(done), form="quick")
    assert [(run.label, run.flags["lr"]) for run in runs(quick, form="quick")][:2] == [("A", 9), ("A, lr = 2", 2)]
    assert any("lr = 1: 100.0 %; lr = 2: 200.0 %; taken: lr = 2" in note for note in wider.notes)


def test_a_flag_that_is_searched_over_cannot_be_given(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(spec), "--lr", "0.3", "--out", str(spec.parent / "out")]) == 2
    assert "--lr is given, but the study searches over lr" in capsys.readouterr().err
    assert not (spec.parent / "out").exists()


def test_an_empty_grid_is_named(spec: Path) -> None:
    spec.write_text(SPEC.replace("[0.1, 1e-9]", "[]"), encoding="utf-8")
    with pytest.raises(ConfigError, match="lr has no value to try"):
        read(spec)


def test_a_study_that_tunes_runs_and_says_what_it_found(spec: Path) -> None:
    out = spec.parent / "out"
    spec.write_text(SPEC.replace("[0.1, 1e-9]", "[0.1]"), encoding="utf-8")  # one trial each: processes take seconds
    assert cli.main(["compare", str(spec), "--out", str(out), "--jobs", "2"]) == 0
    table = json.loads((out / "results.json").read_text())
    assert [row["label"] for row in table["rows"]] == ["Concat", "slow", "slow, lr = 0.1, batch = 64"]
    assert table["rows"][0]["acc"] == table["rows"][2]["acc"]
    assert sum("tuned on held-out training rows" in note for note in table["notes"]) == 2
    assert len(list((out / "runs").glob("*.json"))) == 2 + 3


def rows(**more: Any) -> Dataset:
    y = np.arange(40, dtype=np.int64) % 4
    return Dataset(
        name="d", x={"a": np.arange(40, dtype=np.float32)[:, None]}, y=y, classes=("a", "b", "c", "d"),
        has={"a": np.ones(40, bool)}, rate_hz={}, **more,
    )  # fmt: skip


def test_validation_holds_out_whole_people_else_rows_of_every_class() -> None:
    cut = validation(rows(), 0.2, seed=3)
    assert np.bincount(cut.test.y).tolist() == [2, 2, 2, 2]
    assert not set(cut.test.x["a"][:, 0]) & set(cut.train.x["a"][:, 0])
    people = np.array([f"p{k // 8}" for k in range(40)])
    cut = validation(rows(subject=people), 0.4, seed=3)
    assert cut.test.subject is not None
    assert cut.train.subject is not None
    assert len(set(cut.test.subject)) == 2
    assert len(cut.test.y) == 16
    assert not set(cut.test.subject) & set(cut.train.subject)


def test_too_few_rows_for_validation_are_named() -> None:
    with pytest.raises(DataError, match=r"cannot give a validation split of 0\.01"):
        validation(rows(), 0.01, seed=1)

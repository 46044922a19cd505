"""Comparisons: what is run, what is left as it is, and what the tables say."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from coordinator import cli
from coordinator.simulation.compare import page, plots, tables
from coordinator.simulation.compare.commands import data_folder
from coordinator.simulation.compare.runner import load
from coordinator.simulation.compare.study import Run, Study, Variant, read, runs
from edge_sdk.core.errors import ConfigError

SPEC = """
title = "Two methods"
seeds = [1, 2]
quick_seeds = [5]
simulate = { dataset = "synthetic", devices = 3, updates = 6, epochs = 1, profile = "instant", evaluate_every = 2 }
quick = { updates = 3 }
full = { devices = 32, updates = 900 }
notes = ["small"]

[[variants]]
label = "Concat"
simulate = { method = "fed_concat_async" }

[[variants]]
label = "MBA, γ = 0"
simulate = { method = "mba", option = { gamma = 0.0, anchor_policy = "drop" } }
quick = { epochs = 2 }

[published.Concat]
acc = 93.78
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(SPEC, encoding="utf-8")
    return path


def test_a_study_is_a_list_of_runs_seed_by_seed(spec: Path) -> None:
    made = runs(read(spec))
    assert [(run.label, run.seed) for run in made] == [
        ("Concat", 1),
        ("MBA, γ = 0", 1),
        ("Concat", 2),
        ("MBA, γ = 0", 2),
    ]
    words = made[1].arguments
    assert words[words.index("--method") + 1] == "mba"
    assert {words[i + 1] for i, word in enumerate(words) if word == "--option"} == {"gamma=0.0", "anchor_policy=drop"}
    assert words[-2:] == ["--seed", "1"]


def test_the_small_form_replaces_flags_and_seeds(spec: Path) -> None:
    made = runs(read(spec), form="quick")
    assert [(run.seed, run.flags["updates"], run.flags["epochs"]) for run in made] == [(5, 3, 1), (5, 3, 2)]


def test_the_papers_own_protocol_is_in_the_same_file(spec: Path) -> None:
    made = runs(read(spec), form="full")
    assert {(run.seed, run.flags["updates"], run.flags["devices"]) for run in made} == {(1, 900, 32), (2, 900, 32)}


def test_another_flag_is_another_run(spec: Path) -> None:
    one, other = runs(read(spec))[0], runs(read(spec), common={"updates": 7})[0]
    assert one.name != other.name
    assert one.name.startswith("Concat-1-")
    assert "/" not in Run("a/b c", 1, {}).name


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (('Concat"\nsim', 'MBA, γ = 0"\nsim'), "called 'MBA, γ = 0'"),
        (("seeds = [1, 2]", 'reference = "X"'), "reference 'X' is no variant"),
        (("notes", "note"), "note"),
        (('method = "mba"', 'method = "mbaa"'), "mbaa"),
        (("gamma", "gama"), "gama"),
        (("devices = 3,", "devices = 0,"), "devices"),
        (("quick_seeds = [5]", "quick_seeds = []"), "quick_seeds"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(
    spec: Path, change: tuple[str, str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec.write_text(SPEC.replace(*change), encoding="utf-8")
    assert cli.main(["compare", str(spec), "--out", str(spec.parent / "out")]) == 2
    assert match in capsys.readouterr().err
    assert not (spec.parent / "out").exists()


def test_a_comparison_runs_leaves_what_is_done_and_does_what_is_not(spec: Path) -> None:
    out = spec.parent / "out"
    command = ["compare", str(spec), "--quick", "--out", str(out), "--jobs", "2"]
    assert cli.main(command) == 0
    names = {"accuracy.png", "unimodal.png", "balance.png", "report.html", "results.json", "table.csv", "table.md"}
    assert names <= {path.name for path in out.iterdir()}
    results = sorted((out / "runs").iterdir())
    assert len(results) == 2
    table = json.loads((out / "results.json").read_text())
    assert [row["label"] for row in table["rows"]] == ["Concat", "MBA, γ = 0"]
    assert "93.78" in (out / "table.md").read_text()
    before = {path.name: path.stat().st_mtime_ns for path in results}
    results[0].unlink()  # as if it had been stopped before this one
    (out / "runs" / "left.part").write_text("{")
    assert cli.main(command) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*.json")}
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == [results[0].name]
    assert json.loads((out / "results.json").read_text())["rows"][0]["acc"] == table["rows"][0]["acc"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_a_comparison_ends_its_runs(tmp_path: Path, number: signal.Signals) -> None:
    command = [
        sys.executable, "-m", "coordinator.cli", "compare", "--methods", "fedasync", "--dataset", "synthetic",
        "--devices", "2", "--updates", "1000000", "--seeds", "2", "--jobs", "2", "--out", str(tmp_path),
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while len(children := psutil.Process(process.pid).children()) < 2:
            assert process.poll() is None
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == 130
    assert "0 of 2 runs are done" in said
    assert psutil.wait_procs(children, timeout=60)[1] == []
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_damaged_result_is_named(spec: Path) -> None:
    run = runs(read(spec))[0]
    (spec.parent / f"{run.name}.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{run.name}.json: no result"):
        load(run, spec.parent)


def test_a_run_that_fails_says_which_and_why(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = SPEC.replace('"synthetic"', '"nowhere.npz"')
    spec.write_text(lost, encoding="utf-8")
    assert cli.main(["compare", str(spec), "--quick", "--out", str(spec.parent / "out")]) == 2
    said = capsys.readouterr().err
    assert "seed 5" in said
    assert "nowhere.npz" in said


def result(acc: float, times: dict[float, float], **more: Any) -> dict[str, Any]:
    curve = [{"virtual_s": t, "acc": a, "version": k} for k, (t, a) in enumerate(times.items())]
    way = {"a": acc / 2, "b": acc / 4}
    return {
        "method": "m", "acc": acc, "acc_median": acc, "unimodal": {"zero_feature": way, "linear_block": way},
        "bytes_up": 10**6, "bytes_down": 2 * 10**6, "mean_staleness": 1.5, "virtual_seconds": 100.0,
        "wall_seconds": 1.0,
        "curve": curve, "trace": [], **more,
    }  # fmt: skip


def study() -> Study:
    return Study(
        title="t", variants=(Variant(label="A"), Variant(label="B")), share=0.5, published={"A": {"acc": 80.0}}
    )


def pairs() -> list[tuple[Run, dict[str, Any]]]:
    return [
        (Run("A", 1, {}), result(0.8, {10.0: 0.3, 20.0: 0.5, 30.0: 0.8})),  # target 0.4: at 20 s
        (Run("A", 2, {}), result(0.6, {10.0: 0.4, 20.0: 0.6})),  # target 0.3: at 10 s
        (Run("B", 1, {}), result(0.9, {5.0: 0.45, 20.0: 0.9})),  # at 5 s: 0.25
        (Run("B", 2, {}), result(0.2, {10.0: 0.1, 20.0: 0.2})),  # never
    ]


def test_means_deviations_and_times_by_hand() -> None:
    first, second = tables.rows(study(), pairs())
    assert (first.acc.mean, first.acc.std) == (pytest.approx(0.7), pytest.approx(math.sqrt(0.02)))
    assert first.acc_by_modality["b"].mean == pytest.approx(0.175)
    assert (first.time.mean, first.time.std, first.reached) == (1.0, 0.0, 2)
    assert math.isnan(second.time.mean)
    assert second.reached == 1
    assert tables.time_to(pairs()[2][1], 0.4) / tables.time_to(pairs()[0][1], 0.4) == 0.25


def test_every_form_of_the_table_says_the_same() -> None:
    table = tables.rows(study(), pairs())
    text = tables.markdown(study(), table)
    assert text.splitlines()[2].startswith("| A | 70.00 ± 14.14 | 70.00 ± 14.14 | 35.00 ± 7.07 |")
    assert "1 of 2 got there" in text
    assert "80.00" in text
    lines = tables.comma_separated(study(), table).splitlines()
    assert lines[0].startswith("label,method,seeds,acc_mean,acc_std")
    assert len(lines) == 3
    assert tables.as_json(study(), table)["rows"][0]["acc"]["mean"] == pytest.approx(0.7)
    assert tables.terminal(study(), table).row_count == 2


def test_three_modalities_say_what_is_left_without_each() -> None:
    told = {"missing": {"a": 0.5, "b": 0.6, "c": 0.7}}
    rows = tables.rows(study(), [(Run("A", seed, {}), result(0.8, {10.0: 0.8}, **told)) for seed in (1, 2)])
    assert {m: cell.mean for m, cell in rows[0].acc_missing.items()} == told["missing"]
    assert "| without a, % | without b, % | without c, % |" in tables.markdown(study(), rows)
    assert tables.as_json(study(), rows)["rows"][0]["acc_without_c"] == {"mean": 0.7, "std": 0.0}


def test_the_page_needs_nothing_from_elsewhere() -> None:
    table = tables.rows(study(), pairs())
    drawn = plots.all_of(study(), pairs(), table)
    assert set(drawn) == {"accuracy.png", "unimodal.png"}  # nothing was traced
    assert all(data.startswith(b"\x89PNG") for data in drawn.values())
    text = page.page(study().model_copy(update={"notes": ("a < b",)}), table, drawn, "compare x")
    assert "a &lt; b" in text
    assert "http" not in text.replace("http-equiv", "")


def test_methods_and_flags_in_place_of_a_study(tmp_path: Path) -> None:
    flags = ["--dataset", "synthetic", "--devices", "2", "--updates", "2", "--profile", "instant", "--epochs", "1"]
    assert cli.main(["compare", "--methods", "fedavg,mba", "--seeds", "1", "--out", str(tmp_path), *flags]) == 0
    assert [row["label"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]] == ["fedavg", "mba"]


def test_a_flag_wins_over_the_study_even_with_its_usual_value(spec: Path) -> None:
    out = spec.parent / "out"
    spec.write_text(SPEC.partition('[[variants]]\nlabel = "MBA')[0], encoding="utf-8")
    assert cli.main(["compare", str(spec), "--quick", "--out", str(out), "--profile", "mba"]) == 0
    (result,) = (json.loads(path.read_text()) for path in (out / "runs").glob("*.json"))
    assert result["virtual_seconds"] > 100  # the study says "instant"


def test_the_folder_of_a_set_is_found_in_a_folder_of_sets(tmp_path: Path) -> None:
    assert data_folder(tmp_path, "uci_har:body") == tmp_path  # it may be the set's own
    for name in ("mnist", "fsdd", "uci_har"):
        (tmp_path / name).mkdir()
    assert data_folder(tmp_path, "uci_har:body") == tmp_path / "uci_har"
    assert data_folder(tmp_path, "cg_mnist:n=300") == tmp_path / "mnist"
    assert data_folder(tmp_path, "fsdd_mnist") == tmp_path


def test_neither_or_both_is_an_error(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], [str(spec), "--methods", "mba"], ["--methods", ","]):
        assert cli.main(["compare", *arguments]) == 2
    assert "study file" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        read(spec.parent / "nothing.toml")

"""The studies of the papers: each is valid, and its small form runs on the real data where they are at hand."""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.simulation import commands as simulate
from coordinator.simulation.compare import plots, tables
from coordinator.simulation.compare.commands import data_folder
from coordinator.simulation.compare.study import Run, read, runs
from edge_sdk import datasets
from edge_sdk.methods.base import find
from tests.helpers.public_data import BESIDE

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "examples" / "papers").glob("**/*.toml"))
PAPERS = {
    "mba_table1", "mba_table2", "mba_ablation", "mba_scalability", "mba_sensitivity", "bmsfed_table2",
    "bmsfed_incongruity", "hgb_table2", "qqr_missing_rate", "qqr_bits", "methods",
    "which_mba_utd_mhad", "which_mba_cg_mnist", "which_mba_synthetic",
}  # fmt: skip


def arguments(run: Run) -> argparse.Namespace:
    parser = argparse.ArgumentParser(run.label)
    simulate.add_arguments(parser)
    return parser.parse_args(run.arguments)


def test_every_table_of_the_papers_has_its_study() -> None:
    assert {path.stem for path in STUDIES} >= PAPERS


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
@pytest.mark.parametrize("form", ["", "quick", "full"])
def test_every_run_is_valid(path: Path, form: str) -> None:
    study = read(path)
    made = runs(study, form=form)  # type: ignore[arg-type]
    assert len({run.name for run in made}) == len(made)
    for run in made:
        simulate.check(arguments(run))
    assert study.notes or path.stem in ("qqr_bits",)


@pytest.fixture(scope="module")
def select() -> Any:
    """Reads every data set once for all runs."""
    return lru_cache(maxsize=12)(datasets.select)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_small_form_runs(path: Path, select: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not BESIDE.is_dir():
        pytest.skip(f"no copies of the data sets: put their folders into {BESIDE}")
    monkeypatch.setattr(datasets, "select", select)
    study = read(path)
    pairs = []
    for run in runs(study, form="quick"):
        args = arguments(run)
        args.data = None if args.dataset.startswith("synthetic") else data_folder(BESIDE, args.dataset)
        report = simulate.prepare(args).run()
        assert report.rejected == 0
        assert report.updates >= args.updates
        assert np.isfinite(report.acc)
        assert report.method == args.method
        assert (report.rounds is not None) == (find(args.method).mode == "sync")
        pairs.append((run, report.as_json()))
    table = tables.rows(study, pairs)
    assert len(table) == len(pairs)
    assert set(plots.all_of(study, pairs, table)) >= {"accuracy.png", "unimodal.png"}

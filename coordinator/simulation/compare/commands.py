"""`edge-coordinator compare`: many methods, many seeds, one table."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from coordinator.simulation import commands as simulate
from coordinator.simulation.compare import page, plots, tables, tuning
from coordinator.simulation.compare.runner import Result, carry_out
from coordinator.simulation.compare.study import Form, Run, Study, Variant, read, runs
from edge_sdk.core.errors import ConfigError

WAYS = ("zero_feature", "linear_block", "nearest_prototype")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("spec", nargs="?", type=Path, help="a study in TOML; see examples/papers")
    parser.add_argument("--methods", help="comma-separated, in place of a study; the first is the reference")
    parser.add_argument("--seeds", type=int, help="so many seeds, from 1 on; default: the study's, or 3")
    parser.add_argument("--quick", action="store_true", help="the study's small form; without a study as in simulate")
    parser.add_argument("--full", action="store_true", help="the study's large form: the paper's own protocol")
    parser.add_argument("--out", type=Path, help="folder of the results; default: runs/compare/NAME")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, each on one core")
    parser.add_argument("--unimodal", choices=WAYS, default=WAYS[0], help="how Acc-[modality] is asked")
    simulate.add_world(parser.add_argument_group("for every run, in place of the study's"))
    parser.set_defaults(**dict.fromkeys(_world()))  # None: not given, so that a usual value can be given, too


def _world() -> list[str]:
    """Returns the names of the flags that say what is simulated."""
    plain = argparse.ArgumentParser()
    simulate.add_world(plain)
    return list(vars(plain.parse_args([])))


def run(args: argparse.Namespace) -> int:
    """Compares, prints the table, and writes results.json, table.md, table.csv, plots and report.html."""
    study = _study(args)
    form: Form = "" if args.spec is None else "quick" if args.quick else "full" if args.full else ""
    common = _common(args, study)
    out = args.out or Path("runs") / "compare" / (args.spec.stem if args.spec else "methods")
    search = tuning.trials(study, form=form, common=common)
    for one in (*runs(study, form=form, common=common), *(trial.run for trial in search)):
        _check(one)
    if search:
        results = _carry_out(f"{study.title}: search", [t.run for t in search], out / "runs", args.jobs)
        found = tuning.best([(trial, results[trial.run.name]) for trial in search])
        study = tuning.with_best(study, found, form=form, common=common)
    todo = runs(study, form=form, common=common)
    results = _carry_out(study.title, todo, out / "runs", args.jobs)
    pairs = [(one, results[one.name]) for one in todo]
    table = tables.rows(study, pairs, args.unimodal)
    _write(
        study, pairs, table, out, command=f"edge-coordinator compare {args.spec or '--methods ' + str(args.methods)}"
    )
    Console().print(tables.terminal(study, table))
    for note in study.notes:
        Console().print(f"· {note}", highlight=False)
    Console().print(f"{out / 'report.html'}", highlight=False)
    return 0


def _study(args: argparse.Namespace) -> Study:
    if (args.spec is None) == (args.methods is None):
        raise ConfigError("give a study file, or --methods a,b,c with the flags of simulate")
    if args.jobs < 1 or (args.seeds is not None and args.seeds < 1):
        raise ConfigError("--jobs and --seeds must be at least 1")
    seeds = None if args.seeds is None else tuple(range(1, args.seeds + 1))
    if args.spec is not None:
        study = read(args.spec)
        return study if seeds is None else study.model_copy(update={"seeds": seeds, "quick_seeds": seeds})
    names = [name for name in args.methods.split(",") if name]
    variants = tuple(Variant(label=name, simulate={"method": name}) for name in dict.fromkeys(names))
    if not variants:
        raise ConfigError("--methods names no method")
    return Study(title="Methods compared", variants=variants, seeds=seeds or (1, 2, 3))


def _common(args: argparse.Namespace, study: Study) -> dict[str, Any]:
    """Returns the flags that were given for every run."""
    given: dict[str, Any] = {key: getattr(args, key) for key in _world() if getattr(args, key) is not None}
    if "option" in given:
        given["option"] = simulate.options(given["option"])
    if args.quick and args.spec is None:
        given["quick"] = True
    if "data" in given:
        given["data"] = str(data_folder(args.data, str(given.get("dataset", study.simulate.get("dataset", "")))))
    return given


def data_folder(folder: Path, dataset: str) -> Path:
    """Returns where a data set lies: `folder`, or the folder in it that is named after the set (mnist for cg_mnist).

    A set that is made of two others (fsdd_mnist) finds both in `folder`.
    """
    name = dataset.partition(":")[0]
    parts = [part for part in name.split("_") if part]
    if len(parts) > 1 and not (folder / name).exists() and all((folder / part).exists() for part in parts):
        return folder
    places = [folder / part for part in (name, *parts[-1:]) if part]
    return next((place for place in places if place.exists()), folder)


def _check(one: Run) -> None:
    """Finds a mistake in the flags before anything is trained."""
    parser = argparse.ArgumentParser(f"edge-coordinator compare: {one.label}")
    simulate.add_arguments(parser)
    args = parser.parse_args(one.arguments)
    simulate.check(args)


def _carry_out(title: str, todo: Sequence[Run], folder: Path, jobs: int) -> dict[str, Result]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=len(todo))

        def told(one: Run, what: str) -> None:
            if what == "begun":
                bar.update(task, description=f"{one.label}, seed {one.seed}")
            else:
                bar.advance(task)

        folder.mkdir(parents=True, exist_ok=True)
        try:
            return asyncio.run(_until_signalled(carry_out(todo, folder, jobs=jobs, told=told)))
        except asyncio.CancelledError:
            done = sum((folder / f"{one.name}.json").exists() for one in todo)
            console.print(f"stopped; {done} of {len(todo)} runs are done, and the same command goes on with the others")
            raise KeyboardInterrupt from None


async def _until_signalled(work: Coroutine[Any, Any, dict[str, Result]]) -> dict[str, Result]:
    """Awaits work; SIGINT and SIGTERM cancel it where it waits, never while it starts a process that would be lost."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await work


def _write(study: Study, pairs: tables.Pairs, table: list[tables.Row], out: Path, *, command: str) -> None:
    drawn = plots.all_of(study, pairs, table)
    for name, data in drawn.items():
        (out / name).write_bytes(data)
    texts = {
        "table.md": tables.markdown(study, table),
        "table.csv": tables.comma_separated(study, table),
        "results.json": json.dumps(tables.as_json(study, table), indent=1) + "\n",
        "report.html": page.page(study, table, drawn, command),
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")


__all__ = ["add_arguments", "data_folder", "run"]

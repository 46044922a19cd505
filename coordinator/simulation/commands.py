"""`edge-coordinator simulate`: a whole federation in one process, under virtual time."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from coordinator.preparation import Split, only, spec_of, split, validation
from coordinator.simulation import online, profiles, stacking
from coordinator.simulation.ownership import CASES
from coordinator.simulation.report import Report
from coordinator.simulation.simulate import Simulation, World
from edge_sdk import datasets
from edge_sdk.core.config import parse
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.records import Dataset
from edge_sdk.core.spec import CodecSpec, FederationSpec, ModelSpec, TrainingSpec
from edge_sdk.methods.base import find

QUICK_UPDATES = 40
QUICK_ROWS = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("--method", default="mba", help="see `edge-sdk methods`; client+server composes two")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_UPDATES} updates, {QUICK_ROWS} rows, one epoch")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the report here")
    add_world(parser, dataset_required=True)


def add_world(parser: argparse._ActionsContainer, *, dataset_required: bool = False) -> None:
    """Declares the flags that say what is simulated, whatever the method."""
    parser.add_argument("--dataset", required=dataset_required, help="NAME, NAME:VARIANT or FILE.npz")
    parser.add_argument("--data", type=Path, help="folder or archive of the data set")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="option of the method")
    parser.add_argument("--modalities", help="comma-separated; default: all of the data set")
    parser.add_argument("--devices", type=int, default=32)
    parser.add_argument("--updates", type=int, default=2000, help="client updates to apply")
    parser.add_argument(
        "--partition", help="iid | subject | dirichlet:A; default: subject if there are enough, else iid"
    )
    parser.add_argument("--ownership", choices=CASES, default="all", help="which modalities a device has at all")
    parser.add_argument("--rate", type=float, default=0.25, help="share of the devices that is busy at any time")
    parser.add_argument(
        "--profile", default="mba", metavar="NAME|FILE.toml",
        help=f"the simulated world: {', '.join(profiles.PROFILES)}, or a file (see docs/simulation.md)",
    )  # fmt: skip
    parser.add_argument(
        "--online", nargs="?", const="", metavar="KEY=VALUE,…",
        help="a buffer slides over every client's data; missing=0.5,degraded=0.5,buffer=500,per_round=20 …",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=5, help="local epochs")
    parser.add_argument("--batch", type=int, default=64, help="batch size")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate")
    parser.add_argument(
        "--lr-decay", type=float, default=0.99, help="per round, or K updates of an asynchronous method"
    )
    parser.add_argument("--momentum", type=float, default=0.0, help="of local SGD")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="of local SGD")
    parser.add_argument(
        "--features", type=int, default=ModelSpec().feature_dim, help="size of every modality's feature"
    )
    parser.add_argument("--fusion", choices=("linear", "mlp"), default="linear", help="classifier on the features")
    parser.add_argument("--codec", default=CodecSpec().up, help="codec chain of updates")
    parser.add_argument("--evaluate-every", type=int, default=10, help="updates between two tests")
    parser.add_argument(
        "--running-mean", type=float, default=1.0, metavar="W",
        help="test the running mean of the versions, the newest with this weight; 1: every version itself",
    )  # fmt: skip
    parser.add_argument(
        "--validation", type=float, default=0.0, metavar="SHARE",
        help="test on so much of the training rows, held out, in place of the test rows: to choose settings",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, help="training processes; the result is the same")
    parser.add_argument(
        "--stack", default="1", metavar="N|auto",
        help="train up to N devices that are at it at the same time as one computation; auto: where that pays",
    )  # fmt: skip
    parser.add_argument(
        "--train-on", default=stacking.CPU, metavar="cpu|cuda", help="where such devices are trained; cuda:1 …"
    )


def run(args: argparse.Namespace) -> int:
    """Simulates, prints a table, and writes the report."""
    console = Console(stderr=True)
    simulation = prepare(args)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{args.method} on {args.dataset}", total=simulation.world.updates)
        simulation.progress = lambda updates: bar.update(task, completed=updates)
        report = simulation.run()
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    Console().print(table(report))
    return 0


def prepare(args: argparse.Namespace) -> Simulation:
    """Returns the simulation that the flags describe; every mistake is found before any training starts."""
    check(args)
    cut = load(args)
    spec = federation(args, cut)
    world = World(
        devices=args.devices, updates=args.updates, seed=args.seed, partition=args.partition, fraction=args.rate,
        profile=profiles.read(args.profile), evaluate_every=args.evaluate_every, workers=args.workers,
        stack=stacking.size(args.stack, spec, args.train_on), train_on=args.train_on,
        running_mean=args.running_mean, ownership=args.ownership,
        online=None if args.online is None else online.read(args.online),
    )  # fmt: skip
    if args.quick:
        world = replace(world, updates=min(world.updates, QUICK_UPDATES))
    simulation = Simulation(spec, cut, world)
    simulation.check()
    return simulation


def check(args: argparse.Namespace) -> None:
    """Checks everything about the flags that can be checked without the data."""
    counts = ("devices", "updates", "workers", "epochs", "batch", "features", "evaluate_every")
    for flag, least in (*((count, 1) for count in counts), ("seed", 0)):
        if getattr(args, flag) < least:
            raise ConfigError(f"--{flag.replace('_', '-')} must be at least {least}, found {getattr(args, flag)}")
    if not 0 < args.rate <= 1:
        raise ConfigError(f"--rate must lie in (0, 1], found {args.rate:g}")
    if not 0 < args.running_mean <= 1:
        raise ConfigError(f"--running-mean must lie in (0, 1], found {args.running_mean:g}")
    stacking.check(args.stack, args.train_on)
    profiles.read(args.profile)
    if not 0 <= args.validation < 1:
        raise ConfigError(f"--validation must lie in [0, 1), found {args.validation:g}")
    _training(args)
    find(args.method).client_rule(options(args.option))


def load(args: argparse.Namespace) -> Split:
    """Returns the training and test rows that the flags ask for."""
    dataset = datasets.select(args.dataset, args.data, seed=args.seed)
    if args.modalities:
        dataset = only(dataset, _known(tuple(args.modalities.split(",")), dataset))
    cut = split(dataset, args.seed)
    if args.validation:
        cut = validation(cut.train, args.validation, args.seed)
    return Split(_thin(cut.train), _thin(cut.test)) if args.quick else cut


def _known(names: tuple[str, ...], dataset: Dataset) -> tuple[str, ...]:
    unknown = [m for m in names if m not in dataset.x]
    if unknown:
        raise ConfigError(f"--modalities: {dataset.name} has no {unknown[0]!r}; it has {', '.join(dataset.modalities)}")
    return names


def _thin(data: Dataset) -> Dataset:
    """Returns every k-th row, at most QUICK_ROWS."""
    return data.take(np.arange(0, len(data.y), max(1, -(-len(data.y) // QUICK_ROWS))))


def federation(args: argparse.Namespace, cut: Split) -> FederationSpec:
    """Returns the spec that the flags and the data give."""
    spec = spec_of(
        cut.train, name="simulation", method=args.method, options=options(args.option), training=_training(args),
        model=ModelSpec(feature_dim=args.features, fusion=args.fusion),
    )  # fmt: skip
    return spec.model_copy(update={"codec": CodecSpec(up=args.codec)})


def _training(args: argparse.Namespace) -> TrainingSpec:
    names = ("lr", "lr_decay", "momentum", "weight_decay")
    sizes = {"epochs": 1 if args.quick else args.epochs, "batch_size": args.batch}
    return parse({**{name: getattr(args, name) for name in names}, **sizes}, TrainingSpec, "training")


def options(pairs: list[str]) -> dict[str, Any]:
    """Returns KEY=VALUE pairs as a mapping; values are JSON where they can be, dots in keys nest."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise ConfigError(f"--option {pair}: expected KEY=VALUE")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        *path, last = key.split(".")
        place = found
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--option {pair}: {part} has a value already, and cannot hold {last} as well")
        place[last] = value
    return found


def table(report: Report) -> Table:
    """Returns the closing table."""
    rows = Table(title=f"{report.method} on {report.dataset}", title_justify="left", show_header=False)
    rows.add_row("accuracy, fused", f"{100 * report.acc:.2f} %")
    for m, acc in report.acc_by_modality.items():
        rows.add_row(f"accuracy, {m} only", f"{100 * acc:.2f} %")
    rows.add_row("median of the last versions", f"{100 * report.acc_median:.2f} %")
    rows.add_row("updates applied", f"{report.updates} from {report.devices} devices, {report.rejected} refused")
    rows.add_row("mean staleness", f"{report.mean_staleness:.2f}")
    rows.add_row("bytes up, down", f"{report.bytes_up:,}, {report.bytes_down:,}")
    rows.add_row("simulated, real time", f"{report.virtual_seconds:,.0f} s, {report.wall_seconds:.1f} s")
    rows.add_row("digest", report.digest)
    return rows


__all__ = ["add_arguments", "add_world", "check", "federation", "load", "options", "prepare", "run", "table"]

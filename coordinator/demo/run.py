"""`edge-coordinator demo`: the main job, with real data, a real broker and real processes.

The embedded broker, one coordinator and four devices run as processes of their own. Each device replays the segments of
its own people as live accelerometer and gyroscope streams; on some the gyroscope comes late, on others the
accelerometer. Accuracy is measured on people whom no device has seen.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live

from coordinator.commands.export import export
from coordinator.demo import baseline, recordings, report, settings, view
from coordinator.demo.processes import Processes, claim_port
from coordinator.demo.state import DemoState, DeviceState
from coordinator.preparation import Split, spec_of, split
from coordinator.simulation.partition import partition
from edge_sdk import datasets
from edge_sdk.core import registry
from edge_sdk.core.clock import Clock, WallClock
from edge_sdk.core.errors import ConfigError, EdgeError
from edge_sdk.core.events import JsonLinesReader
from edge_sdk.core.spec import FederationSpec, TrainingSpec, WindowSpec
from edge_sdk.methods.base import find
from edge_sdk.models import build
from edge_sdk.transport.embedded import EmbeddedBroker

MODEL = "model.onnx"
MARK = ".edge-demo"  # a folder with this file is ours to empty
REFRESH_S = 0.25
GRACE_S = 15.0  # for the coordinator to publish and test its last version
QUICK_UPDATES = 24
Logs = dict[str, JsonLinesReader]  # member → its events
TRAINING = TrainingSpec(lr=0.05, epochs=2, batch_size=32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument(
        "--dataset", default="uci_har", help="data set of time series (default: the excerpt of UCI-HAR)"
    )
    parser.add_argument("--data", type=Path, help="folder of the full data set")
    parser.add_argument("--method", default="mba")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--updates", type=int, default=120, help="stop after so many updates")
    parser.add_argument("--seconds", type=float, default=120.0, help="or after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--speed", type=float, default=40.0, help="seconds of sensor time per second")
    parser.add_argument("--delay", type=float, default=60.0, help="how late the late modality comes, s of sensor time")
    parser.add_argument("--port", type=int, default=18830, help="port of the broker; 0: any free one")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_UPDATES} updates; what CI runs")


@dataclass(frozen=True, slots=True)
class Demo:
    """What is going to run."""

    args: argparse.Namespace
    folder: Path
    spec: FederationSpec
    split: Split
    plans: tuple[settings.DevicePlan, ...]
    updates: int


def run(args: argparse.Namespace) -> int:
    """Runs the demo; returns the exit code."""
    console = Console()
    port = claim_port(args.port)
    with console.status("Writing recordings and the inference graph …"):
        demo = prepare(args)
    try:
        with EmbeddedBroker("127.0.0.1", port, state_dir=demo.folder / "broker", users=_users(demo)) as broker:
            state = asyncio.run(_learn(demo, _credentials(demo, broker), console))
    except KeyboardInterrupt:
        console.print("Stopped; broker, coordinator and devices have ended.")
        return 130
    finish(demo, state, console)
    return 0


def prepare(args: argparse.Namespace) -> Demo:
    """Reads the data, deals people to devices, and writes recordings."""
    folder = empty_folder(args.out)
    cut = split(datasets.select(args.dataset, args.data), args.seed)
    length_s = recordings.segment_s(cut.train)
    spec = spec_of(
        cut.train, name="demo", method=args.method, training=TRAINING,
        window=WindowSpec(length_s=length_s, hop_s=length_s, deadline_s=1.0),
    )  # fmt: skip
    plans = []
    for number, rows in enumerate(partition(cut.train, args.devices, None, args.seed)):
        name = f"device-{number + 1}"
        recording = recordings.write(cut.train.take(rows), folder / "recordings" / name, seed=args.seed)
        late = spec.modality_names[(number + 1) % len(spec.modality_names)]
        plans.append(settings.DevicePlan(name, recording.resolve(), late, args.delay, args.speed))
    # Exported once and handed to all: four devices that export at once keep two cores busy for half a minute.
    registry.load("exporters", "onnx")(spec, find(spec.method.name).needs, folder / settings.GRAPH)
    updates = min(args.updates, QUICK_UPDATES) if args.quick else args.updates
    return Demo(args, folder, spec, cut, tuple(plans), updates)


def empty_folder(folder: Path) -> Path:
    """Returns the folder, emptied if an earlier demo made it.

    Raises:
        ConfigError: it holds something that is not ours.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            raise ConfigError(f"{folder}: holds files that no demo made; give another folder: --out DIR")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    return folder.resolve()


def _users(demo: Demo) -> list[str]:
    return ["coordinator", *(plan.name for plan in demo.plans)]


def _credentials(demo: Demo, broker: EmbeddedBroker) -> settings.Credentials:
    secrets = demo.folder / "secrets"
    secrets.mkdir(mode=0o700)
    for user, password in broker.passwords.items():
        path = secrets / user
        path.touch(mode=0o600)
        path.write_text(password, encoding="utf-8")
    return settings.Credentials(broker.port, secrets)


async def _learn(demo: Demo, credentials: settings.Credentials, console: Console) -> DemoState:
    """Starts coordinator and devices, shows them, and stops them when the coordinator has finished."""
    clock = WallClock()
    state = DemoState({plan.name: DeviceState(late=plan.late) for plan in demo.plans})
    logs = {name: JsonLinesReader(demo.folder / "events" / f"{name}.jsonl") for name in _users(demo)}
    with Processes(demo.folder / "logs") as processes:
        _start(demo, credentials, processes)
        await _watch(demo, state, logs, processes, clock, console)
    _fold(state, logs)
    return state


def _start(demo: Demo, credentials: settings.Credentials, processes: Processes) -> None:
    dataset = demo.args.dataset
    config = settings.coordinator_toml(
        demo.spec, demo.folder, credentials, dataset=dataset, data=demo.args.data, updates=demo.updates,
        seconds=demo.args.seconds, seed=demo.args.seed,
    )  # fmt: skip
    events = demo.folder / "events"
    events.mkdir()
    processes.start(
        "coordinator", "coordinator.cli", ["serve", str(config), "--events", str(events / "coordinator.jsonl")]
    )
    for plan in demo.plans:
        config = settings.device_toml(demo.spec, plan, demo.folder, credentials, seed=demo.args.seed)
        processes.start(plan.name, "edge_sdk.cli", ["run", str(config), "--events", str(events / f"{plan.name}.jsonl")])


async def _watch(
    demo: Demo, state: DemoState, logs: Logs, processes: Processes, clock: Clock, console: Console
) -> None:
    """Shows the run until the coordinator has ended, which the last update or the time makes it do."""
    start_ns = clock.now_ns()
    elapsed_s = 0.0
    coordinator = processes.members[0]
    with Live(console=console, refresh_per_second=1 / REFRESH_S, transient=True) as live:
        while not coordinator.ended() and elapsed_s < demo.args.seconds + GRACE_S:
            await clock.sleep(REFRESH_S)
            processes.check()
            _fold(state, logs)
            elapsed_s = (clock.now_ns() - start_ns) / 1e9
            live.update(view.render(state, target=demo.updates, elapsed_s=elapsed_s))
    state.wall_seconds = elapsed_s


def _fold(state: DemoState, logs: Logs) -> None:
    for name, log in logs.items():
        for event in log.new():
            if name == "coordinator":
                state.fold_coordinator(event)
            else:
                state.fold_device(name, event)


def finish(demo: Demo, state: DemoState, console: Console) -> None:
    """Trains the uni-modal models with the same budget, writes the results and prints the tables."""
    if not state.curve or not state.applied:
        raise EdgeError(f"no update was applied in {state.wall_seconds:.0f} s; look into {demo.folder / 'logs'}")
    with console.status("Training each modality alone with the same budget …"):
        alone = baseline.alone(
            demo.spec, demo.split, devices=len(demo.plans), updates=state.applied, seed=demo.args.seed
        )
    result = report.report(state, alone, _facts(demo, state))
    report.save(result, state, demo.folder)
    export(demo.folder / "store", "newest", demo.folder / MODEL)
    report.show(console, result)
    console.print(f"Report, curves, model and store are in {demo.args.out}: report.json, curves.png, {MODEL}, store/")


def _facts(demo: Demo, state: DemoState) -> dict[str, Any]:
    layout = build.layout(demo.spec)
    return {
        "dataset": demo.split.train.name,
        "method": demo.spec.method.name,
        "seed": demo.args.seed,
        "devices": len(demo.plans),
        "train_windows": len(demo.split.train.y),
        "test_windows": len(demo.split.test.y),
        "test_subjects": _subjects(demo.split),
        "parameters": sum(module.params for module in layout.values()),
        "wall_seconds": round(state.wall_seconds, 1),
    }


def _subjects(cut: Split) -> int:
    return 0 if cut.test.subject is None else len(np.unique(cut.test.subject))


__all__ = ["Demo", "add_arguments", "empty_folder", "finish", "prepare", "run"]

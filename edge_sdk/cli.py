"""`edge-sdk`: the program of a device.

Exit codes: 0 done, 2 wrong usage or data (one sentence on stderr). Libraries are imported by the command that needs
them, so that `edge-sdk check` starts at once and a device that only predicts never loads torch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sdk.core import logs
from edge_sdk.core.errors import ConfigError, EdgeError

if TYPE_CHECKING:
    from edge_sdk.core.config import DeviceConfig

DONE, WRONG = 0, 2

log = logging.getLogger(__name__)


def say(text: str) -> None:
    """Writes a line to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def load(path: Path, *checks: Callable[[DeviceConfig], None]) -> DeviceConfig:
    """Returns a device's configuration that has passed the checks; ConfigError names file, section and key."""
    from edge_sdk.core.config import DeviceConfig, load_toml

    config = load_toml(path, DeviceConfig)
    try:
        for check_one in checks:
            check_one(config)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path}:{line}" for line in str(error).splitlines())) from error
    return config


def run(args: argparse.Namespace) -> int:
    """Runs a device."""
    from edge_sdk.runtime import probing
    from edge_sdk.runtime.agent import Options, read_spec, serve

    config = load(args.file, probing.whole)
    options = Options(solo=args.solo, spec=read_spec(args.spec) if args.spec else None, events=args.events)
    asyncio.run(serve(config, options))
    return DONE


def check(args: argparse.Namespace) -> int:
    """Checks a configuration; opens nothing unless --probe is given."""
    from edge_sdk.runtime import probing

    config = load(args.file, probing.whole)
    if not args.probe:
        say(f"{args.file}: device {config.device.id} of federation {config.device.federation}: good")
        return DONE
    tried = asyncio.run(_probe(config))
    show(args, [asdict(t) for t in tried], "\n".join(f"{'ok ' if t.ok else 'BAD'} {t.name}: {t.detail}" for t in tried))
    return DONE if all(t.ok for t in tried) else WRONG


async def _probe(config: DeviceConfig) -> list[Any]:
    from edge_sdk.core.clock import WallClock
    from edge_sdk.core.compute import FieldCompute
    from edge_sdk.runtime import probing
    from edge_sdk.transport.mqtt import MqttTransport

    clock, compute = WallClock(), FieldCompute()
    try:
        tried = [await probing.sensor(m, config, clock=clock, compute=compute) for m in config.sensors]
        name = f"{config.device.id}-probe"[-64:]
        transport = MqttTransport(config.broker, name, clock=clock, compute=compute)
        return [*tried, await probing.reach(transport, clock=clock)]
    finally:
        await compute.aclose()


def detect(args: argparse.Namespace) -> int:
    """Lists the sensors that are connected, with lines for a configuration."""
    from edge_sdk.core import registry

    found = []
    for name in registry.names("sensors"):
        try:
            found += registry.load("sensors", name).detect()
        except EdgeError as error:
            log.info("driver %s: %s", name, error)
    text = "\n".join(f"# {f.driver}: {f.description} ({f.id})\n{f.toml}" for f in found)
    show(args, [asdict(f) for f in found], text or "no sensor found")
    return DONE


def record(args: argparse.Namespace) -> int:
    """Records the sensors of a configuration."""
    from edge_sdk.core.clock import WallClock
    from edge_sdk.runtime import probing, recorder
    from edge_sdk.runtime.agent import until_signalled

    config = load(args.file, probing.sensors)
    written: dict[str, int] = {}

    async def work() -> None:
        clock = WallClock(config.device.stream_speed)
        written.update(await recorder.record(config, args.output, clock=clock, seconds=args.seconds or math.inf))

    asyncio.run(_signalled(work, until_signalled))
    show(args, recorder.describe(args.output), f"{args.output}: {written or 'stopped'}")
    return DONE


async def _signalled(work: Callable[[], Any], until: Callable[[Any], Any]) -> None:
    await until(work())


def replay(args: argparse.Namespace) -> int:
    """Says what a recording holds."""
    from edge_sdk.runtime.recorder import describe

    found = describe(args.folder)
    lines = [f"{args.folder}: {found['seconds']:.1f} s, {found['labels']} labels"]
    lines += [
        f"  {name}: {s['samples']} samples of {s['shape']}, {s['rate_hz']:.1f} Hz, {s['gaps']} gaps"
        for name, s in found["streams"].items()
    ]
    lines += [
        f'[sensors.{name}]\ndriver = "replay"\noptions = {{ path = "{args.folder}" }}' for name in found["streams"]
    ]
    show(args, found, "\n".join(lines))
    return DONE


def label(args: argparse.Namespace) -> int:
    """Publishes labels by keys."""
    sent = asyncio.run(_label(load(args.file)))
    say(f"{sent} labels sent")
    return DONE


async def _label(config: DeviceConfig) -> int:
    from edge_sdk.core.clock import WallClock
    from edge_sdk.core.compute import FieldCompute
    from edge_sdk.runtime import keyboard
    from edge_sdk.transport.mqtt import MqttTransport
    from edge_sdk.transport.topics import Topics

    clock, compute = WallClock(), FieldCompute()
    view = keyboard.View(sys.stdout, live=sys.stdin.isatty() and sys.stdout.isatty())
    transport = MqttTransport(config.broker, f"{config.device.id}-label"[-64:], clock=clock, compute=compute)
    await transport.start()
    try:
        names = await keyboard.classes(transport, config.device.federation, clock=clock, wait_s=10.0)
        view.keys(config.device.id, names)
        topic = Topics(config.device.federation).label(config.device.id)
        labeller = keyboard.Labeller(names, transport=transport, topic=topic, clock=clock, view=view)
        return await labeller.run(keyboard.pressed(sys.stdin))
    finally:
        view.end()
        await transport.aclose()
        await compute.aclose()


def methods(args: argparse.Namespace) -> int:
    """Lists the methods that are installed."""
    from edge_sdk.core import registry
    from edge_sdk.methods.base import find

    rows = [{"name": m.name, "mode": m.mode, "source": m.source} for m in map(find, registry.names("methods"))]
    show(args, rows, "\n".join(f"{r['name']:<20} {r['mode']:<6} {r['source']}" for r in rows))
    return DONE


def doctor(args: argparse.Namespace) -> int:
    """Looks for what may be wrong with this machine."""
    from edge_sdk.runtime.doctor import examine

    found = examine(args.state_dir)
    show(args, [asdict(f) for f in found], "\n".join(f"{f.state:<5} {f.name}: {f.detail}" for f in found))
    return WRONG if any(f.state == "bad" for f in found) else DONE


def status(args: argparse.Namespace) -> int:
    """Says what a device has stored: spec, model, updates that wait."""
    from edge_sdk.runtime.state import MODEL, SOLO, DeviceState

    config = load(args.file)
    folder = config.device.state_dir / config.device.federation
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no state; the device has not run yet, or with another state_dir")
    state = DeviceState.open(config.device.state_dir, config.device.federation, config.device.id, alone=False)
    spec = state.spec()
    kept = {name: spec and state.model(name, spec.shape_digest) for name in (MODEL, SOLO)}
    waiting = state.outbox.waiting()
    plain = {
        "device": config.device.id, "federation": config.device.federation,
        "incarnation": f"{state.outbox.incarnation:016x}", "spec": spec.digest if spec else None,
        "models": {name: v.id.number for name, v in kept.items() if v}, "updates_waiting": waiting,
    }  # fmt: skip
    state.close()
    show(args, plain, "\n".join(f"{name}: {value}" for name, value in plain.items()))
    return DONE


def show(args: argparse.Namespace, plain: Any, text: str) -> None:
    """Writes plain data as JSON where --json was given, else the text."""
    say(json.dumps(plain, indent=1) if args.json else text)


@dataclass(frozen=True, slots=True)
class Command:
    """One command of the program."""

    work: Callable[[argparse.Namespace], int]
    arguments: Callable[[argparse.ArgumentParser], None]
    log_level: str = "info"  # "error" where what is logged would only repeat the answer


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the device's configuration, TOML")


def _run(parser: argparse.ArgumentParser) -> None:
    _file(parser)
    parser.add_argument("--solo", action="store_true", help="train alone, without a coordinator; needs a spec")
    parser.add_argument("--spec", type=Path, help="the federation's spec, JSON, where no coordinator told it yet")
    parser.add_argument("--events", type=Path, help="append what happens to this file, one JSON object per line")


def _check(parser: argparse.ArgumentParser) -> None:
    _file(parser)
    parser.add_argument("--probe", action="store_true", help="open every sensor and connect to the broker")


def _record(parser: argparse.ArgumentParser) -> None:
    _file(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the new recording")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so long on the stream clock; 0: Ctrl-C")


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of the recording")


def _state_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state-dir", type=Path, default=Path.cwd(), help="where a device would keep its state")


def _nothing(parser: argparse.ArgumentParser) -> None:
    """For commands without arguments of their own."""


COMMANDS: dict[str, Command] = {
    "run": Command(run, _run),
    "check": Command(check, _check, "error"),
    "detect": Command(detect, _nothing),
    "record": Command(record, _record),
    "replay": Command(replay, _folder),
    "label": Command(label, _file, "error"),
    "methods": Command(methods, _nothing),
    "doctor": Command(doctor, _state_dir),
    "status": Command(status, _file),
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole program."""
    top = argparse.ArgumentParser("edge-sdk", description="Sense, train, share, predict: the program of a device.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        doc = (command.work.__doc__ or "").strip()
        sub = commands.add_parser(name, help=doc, description=doc)
        command.arguments(sub)
        sub.add_argument("--json", action="store_true", help="answer as JSON")
        sub.add_argument("--log-format", choices=logs.FORMATS, default="text", help="of the log on stderr")
        sub.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default=command.log_level)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    args = parser().parse_args(argv)
    logs.setup(args.log_format, logging.getLevelName(args.log_level.upper()))
    try:
        return COMMANDS[args.command].work(args)
    except EdgeError as error:
        sys.stderr.write(f"edge-sdk {args.command}: {error}\n")
        return WRONG
    except KeyboardInterrupt:
        return DONE


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["COMMANDS", "DONE", "WRONG", "Command", "main", "parser"]

"""`edge-coordinator init`: a configuration to start from, fitted to a data set or to what the flags say."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from edge_sdk.core import registry
from edge_sdk.core.config import parse
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.program import say
from edge_sdk.core.spec import FederationSpec
from edge_sdk.transport.topics import identifier

_MODALITY = re.compile(r"([A-Za-z0-9_-]+)=(\d+(?:x\d+){0,2})(?:@(\d+(?:\.\d+)?))?")

_TEMPLATE = """\
[federation]
path = "{federation}"

[broker]
embedded = true            # false: a broker of your own, with username and password_file
host = "127.0.0.1"         # 0.0.0.0 lets devices on other machines in
port = 1883

[store]
dir = "store"
keep = "recovery"          # recovery | audit | all

[schedule]
policy = "free"            # free: every device that asks trains | sampled: a fraction is kept busy

[publish]
every_updates = 1
min_interval_s = 1.0

[evaluate]
{evaluate}
[stop]
# updates = 2000
# seconds = 3600
# plateau = 50             # evaluations without a gain

[admission]
enrolment = "listed"       # `edge-coordinator enroll NAME > device.toml` lets a device in
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("config", type=Path, nargs="?", default=Path("coordinator.toml"), help="file to write")
    parser.add_argument("--name", default="federation", help="name of the federation")
    parser.add_argument("--method", default="mba", help="see `edge-sdk methods`")
    parser.add_argument("--dataset", default="", help="take modalities and classes from a data set: NAME or FILE.npz")
    parser.add_argument("--data", type=Path, help="folder of the data set")
    parser.add_argument(
        "--modality", action="append", default=[], metavar="NAME=SHAPE[@HZ]", help="for instance acc=3x128@50"
    )
    parser.add_argument("--class", action="append", default=[], dest="classes", metavar="NAME", help="a class name")


def run(args: argparse.Namespace) -> int:
    """Writes the configuration and the federation beside it."""
    identifier("--name", args.name)
    federation = args.config.with_name(f"{args.name}.json")
    for path in (args.config, federation):
        if path.exists():
            raise ConfigError(f"{path}: exists already; give another name")
    _check_method(args.method)
    spec = _of_dataset(args) if args.dataset else _of_flags(args)
    evaluate = f"dataset = {json.dumps(args.dataset)}\n" if args.dataset else '# dataset = "test.npz"\n'
    evaluate += f"data = {json.dumps(str(args.data.resolve()))}\n" if args.data else ""
    args.config.parent.mkdir(parents=True, exist_ok=True)
    federation.write_text(json.dumps(spec.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    args.config.write_text(_TEMPLATE.format(federation=federation.name, evaluate=evaluate), encoding="utf-8")
    say(f"{args.config} and {federation.name} written; next:")
    say(f"  edge-coordinator serve {args.config}")
    say(f"  edge-coordinator enroll NAME {args.config} > NAME.toml   # for every device")
    return 0


def _of_dataset(args: argparse.Namespace) -> FederationSpec:
    from coordinator.preparation import spec_of, split
    from edge_sdk import datasets

    train = split(datasets.select(args.dataset, args.data), 0).train
    return spec_of(train, name=args.name, method=args.method)


def _of_flags(args: argparse.Namespace) -> FederationSpec:
    if not args.modality or len(args.classes) < 2:
        raise ConfigError("give --dataset, or at least one --modality NAME=SHAPE and two --class NAME")
    raw = {
        "name": args.name, "modalities": [_modality(text) for text in args.modality], "classes": args.classes,
        "method": {"name": args.method},
    }  # fmt: skip
    return parse(raw, FederationSpec, "federation")


def _modality(text: str) -> dict[str, Any]:
    found = _MODALITY.fullmatch(text)
    if found is None:
        raise ConfigError(f"--modality {text!r}: expected NAME=SHAPE or NAME=SHAPE@HZ, for instance acc=3x128@50")
    return {"name": found[1], "shape": [int(n) for n in found[2].split("x")], "rate_hz": float(found[3] or 0.0)}


def _check_method(name: str) -> None:
    """Names an unknown method now, without loading any; whether two halves go together is seen when it is served."""
    for half in name.split("+"):
        if half not in registry.names("methods"):
            raise ConfigError(f"--method {name}: no method {half!r}; there are {', '.join(registry.names('methods'))}")


__all__ = ["add_arguments", "run"]

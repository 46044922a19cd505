"""`edge-sdk`: the program of a device.

Exit codes: 0 done, 2 wrong usage or data (one sentence on stderr). Each command is a module of `edge_sdk.commands`,
imported when it is asked for, so that `edge-sdk check` starts at once and a device that only predicts loads no torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import cast

from edge_sdk.core.program import DONE, Command, carry_out, log_arguments

# Name → what it does. The module of the same name in `edge_sdk.commands` does it.
COMMANDS: dict[str, str] = {
    "run": "run a device",
    "check": "check a configuration; opens nothing unless --probe is given",
    "detect": "list the sensors that are connected, with lines for a configuration",
    "monitor": "show live what the sensors of a configuration deliver",
    "record": "record the sensors of a configuration",
    "replay": "say what a recording holds",
    "label": "publish labels by keys",
    "methods": "list the methods that are installed",
    "doctor": "look for what may be wrong with this machine",
    "export": "write the model that a device has as ONNX (float32, int8) or as an engine for TensorRT",
    "bench": "measure the engines of this machine with a device's model",
    "status": "say what a device has stored: spec, model, updates that wait",
}

QUIET = ("check", "label", "monitor")  # what they log would only repeat the answer


def parser(chosen: str = "") -> argparse.ArgumentParser:
    """Returns the parser of the program, with the arguments of the chosen command: no other one is imported."""
    top = argparse.ArgumentParser("edge-sdk", description="Sense, train, share, predict: the program of a device.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            _command(name).add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="answer as JSON")
        log_arguments(sub, "error" if name in QUIET else "info")
    return top


def _command(name: str) -> Command:
    return cast(Command, import_module(f"edge_sdk.commands.{name}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser(arguments[0] if arguments else "").parse_args(arguments)
    return carry_out(_command(args.command), args, name=f"edge-sdk {args.command}", interrupted=DONE)


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["COMMANDS", "QUIET", "main", "parser"]

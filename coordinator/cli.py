"""`edge-coordinator`: the program that mixes.

Exit codes: 0 done, 2 wrong usage or data (one sentence on stderr), 130 interrupted by Ctrl-C where that left work
undone.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from edge_sdk.core import logs
from edge_sdk.core.errors import EdgeError, sentence

DONE, WRONG = 0, 2
PROGRAM = "edge-coordinator"


class Command(Protocol):
    """What a command module has."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""

    def run(self, args: argparse.Namespace) -> int:
        """Does it; returns the exit code."""


# name → module, and what it does. The modules are imported when they are asked for: some of them need torch.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("coordinator.commands.init", "write a configuration to start from"),
    "serve": ("coordinator.commands.serve", "run a federation"),
    "demo": ("coordinator.demo.run", "four devices learn together from real data over a real broker"),
    "simulate": ("coordinator.simulation.commands", "run a whole federation in one process, under virtual time"),
    "compare": ("coordinator.simulation.compare.commands", "run many methods with many seeds, and make one table"),
    "status": ("coordinator.commands.status", "say what a store holds"),
    "pause": ("coordinator.commands.pause", "let a running coordinator give out no more tasks"),
    "resume": ("coordinator.commands.resume", "let it give out tasks again"),
    "versions": ("coordinator.commands.versions", "list the published versions that are held"),
    "rollback": ("coordinator.commands.rollback", "make the tensors of an earlier version the next one"),
    "enroll": ("coordinator.commands.enroll", "let a device take part; prints its configuration"),
    "backup": ("coordinator.commands.backup", "copy the store, while the coordinator may go on"),
    "restore": ("coordinator.commands.restore", "make a store from a backup, under a new lineage"),
    "export": ("coordinator.commands.export", "write a published version as ONNX or safetensors"),
}

QUIET = ("demo", "simulate", "compare")  # they show what happens by themselves, and their devices log too


def parser(name: str, command: Command) -> argparse.ArgumentParser:
    """Returns the parser of one command."""
    made = argparse.ArgumentParser(f"{PROGRAM} {name}", description=COMMANDS[name][1])
    command.add_arguments(made)
    made.add_argument("--log-format", choices=logs.FORMATS, default="text", help="of the log on stderr")
    level = "warning" if name in QUIET else "info"
    made.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default=level)
    return made


def usage() -> str:
    """Returns what there is."""
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([f"usage: {PROGRAM} COMMAND …", "", *lines, "", f"{PROGRAM} COMMAND --help says more.", ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in ("", "-h", "--help"):
        (sys.stdout if name else sys.stderr).write(usage())
        return DONE if name else WRONG
    if name not in COMMANDS:
        sys.stderr.write(f"{PROGRAM}: there is no command {name!r}; there are {', '.join(COMMANDS)}\n")
        return WRONG
    return _run(name, arguments[1:])


def _run(name: str, arguments: list[str]) -> int:
    command = cast(Command, import_module(COMMANDS[name][0]))
    args = parser(name, command).parse_args(arguments)
    logs.setup(args.log_format, logging.getLevelName(args.log_level.upper()))
    try:
        return command.run(args)
    except EdgeError as error:
        sys.stderr.write(f"{PROGRAM} {name}: {error}\n")
        return WRONG
    except OSError as error:  # a folder that is not there, a disk that is full: the user's to mend, not a bug
        sys.stderr.write(f"{PROGRAM} {name}: {sentence(error)}\n")
        return WRONG
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["COMMANDS", "DONE", "PROGRAM", "QUIET", "WRONG", "Command", "main", "parser", "usage"]

"""`edge-coordinator`: the program that mixes.

Exit codes: 0 done, 2 wrong usage or data (one sentence on stderr), 130 interrupted by Ctrl-C where that left work
undone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import cast

from edge_sdk.core.program import DONE, WRONG, Command, carry_out, log_arguments

PROGRAM = "edge-coordinator"
INTERRUPTED = 130


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
    log_arguments(made, "warning" if name in QUIET else "info")
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
    return carry_out(command, args, name=f"{PROGRAM} {name}", interrupted=INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["COMMANDS", "PROGRAM", "QUIET", "main", "parser", "usage"]

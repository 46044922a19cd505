"""What the two command-line programs have in common: exit codes, what a command is, its answer, and its mistakes."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from edge_sdk.core import logs
from edge_sdk.core.errors import EdgeError

DONE, WRONG = 0, 2  # exit codes

T = TypeVar("T", int, float)


class Command(Protocol):
    """What a command module has."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the flags."""

    def run(self, args: argparse.Namespace) -> int:
        """Does it; returns the exit code."""


def at_least(least: float, kind: Callable[[str], T]) -> Callable[[str], T]:
    """Returns a `type` for arguments: a number of that kind that is not below `least`."""

    def read(text: str) -> T:
        try:
            number = kind(text)
        except ValueError:
            number = None
        if number is None or not number >= least:
            raise argparse.ArgumentTypeError(f"expected a number of at least {least:g}, found {text!r}")
        return number

    return read


def log_arguments(parser: argparse.ArgumentParser, level: str) -> None:
    """Declares --log-format, and --log-level with this default."""
    parser.add_argument("--log-format", choices=logs.FORMATS, default="text", help="of the log on stderr")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default=level)


def carry_out(command: Command, args: argparse.Namespace, *, name: str, interrupted: int) -> int:
    """Runs a command and returns the exit code; what the user can mend is one sentence on stderr.

    Args:
        command: what runs.
        args: its arguments, and those of the log.
        name: of program and command, for the sentence.
        interrupted: exit code after Ctrl-C.
    """
    logs.setup(args.log_format, logging.getLevelName(args.log_level.upper()))
    try:
        return command.run(args)
    except EdgeError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return WRONG
    except OSError as error:  # a folder that is not there, a disk that is full: the user's to mend, not a bug
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"{name}: {where}{error.strerror or error}\n")
        return WRONG
    except KeyboardInterrupt:
        return interrupted


def say(text: str) -> None:
    """Writes a line to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show(args: argparse.Namespace, plain: Any, text: str) -> None:
    """Writes plain data as JSON where --json was given, else the text."""
    say(json.dumps(plain, indent=1) if args.json else text)


__all__ = ["DONE", "WRONG", "Command", "at_least", "carry_out", "log_arguments", "say", "show"]

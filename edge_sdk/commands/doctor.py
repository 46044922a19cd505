"""`edge-sdk doctor`: what may be wrong with this machine, and the command that mends it.

Exit codes: 0 nothing fails (there may be warnings), 2 something does.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.core.program import DONE, WRONG, say, show

if TYPE_CHECKING:
    from edge_sdk.core.boards import Facts, Finding, Readings

_MARKS = {"fail": "FAIL", "warn": "warn", "ok": "ok  "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("--state-dir", type=Path, default=Path.cwd(), help="where a device would keep its state")
    parser.add_argument("--quick", action="store_true", help="start no kernel and load no library to try it")
    parser.add_argument("--root", type=Path, help="look at a recorded board instead of this machine")
    parser.add_argument(
        "--record", type=Path, metavar="FOLDER", help="write what is seen of this machine into a folder"
    )


def run(args: argparse.Namespace) -> int:
    """Looks for what may be wrong."""
    from edge_sdk.core import boards
    from edge_sdk.core.machine import recorded
    from edge_sdk.runtime import board_record, doctor, probe

    if args.root is not None:
        machine = recorded(args.root)
    else:
        machine = doctor.this_machine(args.state_dir, None if args.quick else probe.run())
    if args.record is not None:
        say(f"{args.record}: {board_record.write(machine, args.record)} files")
        return DONE
    board = boards.find(machine.tree)
    facts, readings, found = board.facts(), board.readings(), doctor.examine(machine, board)
    plain = {"board": asdict(facts), "readings": asdict(readings), "findings": [asdict(f) for f in found]}
    show(args, plain, "\n".join([*_head(facts, readings), *(line for f in found for line in _lines(f))]))
    return WRONG if any(f.state == "fail" for f in found) else DONE


def _head(facts: Facts, readings: Readings) -> list[str]:
    named = (("CUDA", facts.cuda), ("TensorRT", facts.tensorrt), ("cuDNN", facts.cudnn))
    what = [facts.name, facts.system, facts.release, *(f"{name} {version}" for name, version in named if version)]
    how = [
        f"{readings.temp_c:.0f} °C" if readings.temp_c is not None else "",
        f"{readings.power_mw / 1000:.1f} W" if readings.power_mw is not None else "",
        f"power mode {readings.power_mode}" if readings.power_mode else "",
        f"{readings.free_mb / 1000:.1f} GB of memory free" if readings.free_mb is not None else "",
        f"battery {readings.battery_percent:.0f} %" if readings.battery_percent is not None else "",
    ]
    return [", ".join(part for part in parts if part) for parts in (what, how) if any(parts)]


def _lines(finding: Finding) -> list[str]:
    first = f"{_MARKS[finding.state]}  {finding.name}: {finding.found}"
    return [first, f"      > {finding.fix}"] if finding.fix else [first]


__all__ = ["add_arguments", "run"]

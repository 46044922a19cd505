"""`edge-coordinator status`: what a store holds; a coordinator may be running on it."""

from __future__ import annotations

import argparse
from typing import Any

from coordinator.commands.flags import config_argument, json_argument
from coordinator.config import read_config
from coordinator.store.maintenance import Summary, summary
from edge_sdk.core.program import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    config_argument(parser)
    json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the state of the store."""
    data = facts(summary(read_config(args.config).store.dir))
    show(args, data, "\n".join(f"{name.replace('_', ' '):<14} {value}" for name, value in data.items()))
    return 0


def facts(found: Summary) -> dict[str, Any]:
    """Returns a summary as plain data."""
    mine = [v for v in found.journal.versions if v.id.lineage == found.lineage]
    scored = [v for v in mine if v.acc is not None]
    best = max(scored, key=lambda v: v.acc or 0.0, default=None)
    return {
        "federation": found.about.federation,
        "running": found.holder is not None,
        "state": "stopped" if found.holder is None else found.holder.state or "starting, or another command",
        "pid": None if found.holder is None else found.holder.pid,
        "lineage": found.lineage,
        "version": found.number,
        "updates": found.updates,
        "published": mine[-1].id.number if mine else None,
        "best": None if best is None else best.id.number,
        "best_acc": None if best is None else best.acc,
        "versions_held": len(mine),
        "devices": len(found.journal.task_numbers),
        "open_tasks": len(found.journal.tasks),
        "bytes": found.bytes,
    }


__all__ = ["add_arguments", "facts", "run"]

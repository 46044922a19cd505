"""`edge-coordinator versions`: the published versions that are held."""

from __future__ import annotations

import argparse

from coordinator.commands.flags import config_argument, json_argument
from coordinator.config import read_config
from coordinator.store.maintenance import summary
from edge_sdk.core.program import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    config_argument(parser)
    json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Prints one line per version."""
    found = summary(read_config(args.config).store.dir)
    undone = found.journal.rollbacks
    listing = [
        {
            "number": v.id.number,
            "digest": v.id.digest,
            "lineage": v.id.lineage,
            "bytes": v.published.size,
            "codec": v.published.codec,
            "acc": v.acc,
            "undone": any(r.target < v.id.number < r.made for r in undone),
        }
        for v in found.journal.versions
        if v.id.lineage == found.lineage
    ]
    lines = [
        f"{v['number']:>8}  {v['digest']}  {v['bytes']:>11,} B  "
        f"{'' if v['acc'] is None else format(v['acc'], '.2%'):>7}{'  undone' if v['undone'] else ''}"
        for v in listing
    ]
    show(args, listing, "\n".join(lines) or "no version is held")
    return 0


__all__ = ["add_arguments", "run"]

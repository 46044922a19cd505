"""`edge-coordinator rollback`: numbers only grow, so the old tensors become the next version."""

from __future__ import annotations

import argparse
import json

from coordinator.commands.flags import config_argument, json_argument
from coordinator.commands.serve import open_store
from coordinator.config import read_config
from coordinator.store.lock import check_free
from coordinator.store.maintenance import summary
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.program import show
from edge_sdk.core.spec import FederationSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("number", type=int, help="version to go back to; see `edge-coordinator versions`")
    config_argument(parser)
    json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Rolls back; the coordinator must not be running."""
    from coordinator.service.ledger import Ledger

    config = read_config(args.config)
    check_free(config.store.dir)
    found = summary(config.store.dir)
    held = {v.id.number: v.id for v in found.journal.versions if v.id.lineage == found.lineage}
    if args.number not in held:
        raise ConfigError(f"version {args.number} is not held; held are {', '.join(map(str, held)) or 'none'}")
    store = open_store(config)
    try:
        ledger = Ledger(FederationSpec.model_validate(json.loads(found.about.spec)), store)
        ledger.open(None, 0)
        made = ledger.roll_back(held[args.number])
    finally:
        store.close()
    text = f"version {made} has the tensors of {args.number}; updates based on what was undone will be refused"
    show(args, {"made": made, "target": args.number}, text)
    return 0


__all__ = ["add_arguments", "run"]

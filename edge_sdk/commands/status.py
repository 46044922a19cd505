"""`edge-sdk status`: what a device has stored: spec, models, updates that wait, sensors with faults."""

from __future__ import annotations

import argparse

from edge_sdk.commands.configuration import config_argument, load
from edge_sdk.core.program import DONE, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the configuration file."""
    config_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Says what is stored; the device may be running."""
    from edge_sdk.runtime.state import MODEL, SOLO, DeviceState
    from edge_sdk.streams.watch import STATISTICS, read_notes

    config = load(args.file)
    folder = config.device.state_dir / config.device.federation
    state = DeviceState.look(config.device)
    spec = state.spec()
    kept = {name: spec and state.model(name, spec.shape_digest) for name in (MODEL, SOLO)}
    waiting = state.outbox.waiting()
    plain = {
        "device": config.device.id, "federation": config.device.federation,
        "incarnation": f"{state.outbox.incarnation:016x}", "spec": spec.digest if spec else None,
        "models": {name: v.id.number for name, v in kept.items() if v}, "updates_waiting": waiting,
        "faults": list(read_notes(folder / "reservoir" / STATISTICS)),
    }  # fmt: skip
    state.close()
    show(args, plain, "\n".join(f"{name}: {value}" for name, value in plain.items()))
    return DONE


__all__ = ["add_arguments", "run"]

"""`edge-sdk detect`: which sensors are connected, with lines for a configuration."""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict

from edge_sdk.core.errors import EdgeError
from edge_sdk.core.program import DONE, show

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares nothing of its own."""


def run(args: argparse.Namespace) -> int:
    """Lists the sensors; a driver whose library is missing is passed over."""
    from edge_sdk.core import registry

    found = []
    for name in registry.names("sensors"):
        try:
            found += registry.load("sensors", name).detect()
        except EdgeError as error:
            log.info("driver %s: %s", name, error)
    text = "\n".join(f"# {f.driver}: {f.description} ({f.id})\n{f.toml}" for f in found)
    show(args, [asdict(f) for f in found], text or "no sensor found")
    return DONE


__all__ = ["add_arguments", "run"]

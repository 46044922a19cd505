"""`edge-sdk methods`: which methods are installed, and where they come from."""

from __future__ import annotations

import argparse

from edge_sdk.core.program import DONE, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares nothing of its own."""


def run(args: argparse.Namespace) -> int:
    """Lists the methods."""
    from edge_sdk.core import registry
    from edge_sdk.methods.base import find

    rows = [{"name": m.name, "mode": m.mode, "source": m.source} for m in map(find, registry.names("methods"))]
    show(args, rows, "\n".join(f"{r['name']:<20} {r['mode']:<6} {r['source']}" for r in rows))
    return DONE


__all__ = ["add_arguments", "run"]

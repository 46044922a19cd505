"""Registers plug-ins for the length of a test, the way an installed package does: by entry points on sys.path."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from edge_sdk.core import registry


@contextlib.contextmanager
def registered(folder: Path, kind: str, **points: str) -> Iterator[None]:
    """Makes `name = "module:object"` known as plug-ins of a kind; `folder` is an empty directory of the test."""
    info = folder / "edge_sdk_test_plugins-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edge-sdk-test-plugins\nVersion: 0\n", encoding="utf-8")
    lines = [f"[edge_sdk.{kind}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.path.insert(0, str(folder))
    registry._group.cache_clear()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        registry._group.cache_clear()


__all__ = ["registered"]

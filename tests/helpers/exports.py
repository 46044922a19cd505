"""Exported graphs, one export per model and test process: torch takes a second or two for each."""

from __future__ import annotations

import atexit
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path

from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn.records import Needs
from export.to_onnx import export_onnx


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="edge-sdk-graphs-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def _export(spec: str, needs: Needs) -> Path:
    parsed = FederationSpec.model_validate_json(spec)
    path = _folder() / "-".join([parsed.digest, *(name for name, wanted in asdict(needs).items() if wanted), ".onnx"])
    export_onnx(parsed, needs, path)
    return path


def exported(spec: FederationSpec, needs: Needs | None = None) -> Path:
    """Returns the graph of a federation, its sidecar beside it; tests do not change either."""
    return _export(spec.canonical(), needs or Needs())


__all__ = ["exported"]

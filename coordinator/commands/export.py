"""`edge-coordinator export`: a published version as one file, for other programs or as a start for another store."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from coordinator.commands.flags import config_argument
from coordinator.config import read_config
from coordinator.store import Stored
from coordinator.store.files import pack_tensors, read_tensors, write_atomically
from coordinator.store.maintenance import Summary, summary, version_file
from edge_sdk.core import registry
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.program import say
from edge_sdk.core.records import ModelTensors
from edge_sdk.core.spec import FederationSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    config_argument(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a file ending in .onnx or .safetensors")
    parser.add_argument("--version", default="newest", help="newest, best or a number; default: newest")


def run(args: argparse.Namespace) -> int:
    """Writes the file and says which version it is."""
    stored = export(read_config(args.config).store.dir, args.version, args.output)
    say(f"{args.output}: version {stored.id.number}")
    return 0


def export(folder: Path, version: str, output: Path) -> Stored:
    """Writes a version of a store as one file and returns which it is.

    Raises:
        ConfigError: the version is not held, or the file's ending is of no known format.
        StoreError: the folder holds no store.
    """
    write = _FORMATS.get(output.suffix)
    if write is None:
        raise ConfigError(f"{output}: must end in {' or '.join(_FORMATS)}")
    found = summary(folder)
    stored = choose(found, version)
    output.parent.mkdir(parents=True, exist_ok=True)
    spec = FederationSpec.model_validate(json.loads(found.about.spec))
    write(spec, stored, read_tensors(version_file(folder, stored)), output)
    return stored


def choose(found: Summary, name: str) -> Stored:
    """Returns the version that is meant; ConfigError names those that are held."""
    mine = [v for v in found.journal.versions if v.id.lineage == found.lineage]
    scored = [v for v in mine if v.acc is not None]
    named = {str(v.id.number): v for v in mine}
    if mine:
        named["newest"] = mine[-1]
    if scored:
        named["best"] = max(scored, key=lambda v: v.acc or 0.0)
    if name not in named:
        raise ConfigError(f"--version {name}: not held; there are {', '.join(named) or 'none'}")
    return named[name]


def _safetensors(spec: FederationSpec, stored: Stored, tensors: ModelTensors, path: Path) -> None:
    write_atomically(path, pack_tensors(tensors))


def _onnx(spec: FederationSpec, stored: Stored, tensors: ModelTensors, path: Path) -> None:
    from edge_sdk.methods.base import find

    standalone = registry.load("exporters", "standalone")
    standalone(spec, find(spec.method.name).needs, tensors, path, version=f"{stored.id.number}-{stored.id.digest}")


_FORMATS: dict[str, Callable[[FederationSpec, Stored, ModelTensors, Path], None]] = {
    ".onnx": _onnx, ".safetensors": _safetensors,
}  # fmt: skip

__all__ = ["add_arguments", "choose", "export", "run"]

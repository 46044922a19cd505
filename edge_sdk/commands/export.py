"""`edge-sdk export`: the model that a device has, as one file for other programs or for this board's TensorRT."""

from __future__ import annotations

import argparse
import logging
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_sdk.core.errors import ConfigError
from edge_sdk.core.program import DONE, at_least, show

PRECISIONS = ("fp32", "fp16", "int8")

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("file", type=Path, help="the device's configuration, TOML")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a file ending in .onnx or .plan (TensorRT)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="int8: .onnx only; fp16: .plan only")
    parser.add_argument("--target", choices=("x86", "arm", "tensorrt"), help="of int8; default: this machine")
    parser.add_argument(
        "--max-drop", type=at_least(0, float), default=0.005, help="accuracy that int8 may lose, 0 … 1; default: 0.005"
    )
    parser.add_argument("--max-batch", type=at_least(1, int), default=64, help="rows of a .plan at once; default: 64")
    parser.add_argument("--limit", type=at_least(0, float), default=1800.0, help="seconds for a build; default: 1800")


def run(args: argparse.Namespace) -> int:
    """Writes the file and says what it holds."""
    write = _FORMATS.get((args.output.suffix, args.precision))
    if write is None:
        known = ", ".join(f"{suffix} in {precision}" for suffix, precision in _FORMATS)
        raise ConfigError(f"{args.output}: cannot be written in {args.precision}; there are {known}")
    from edge_sdk.methods.base import find
    from edge_sdk.runtime import stock

    found = stock.read(args.file)
    told = write(args, found, find(found.spec.method.name).needs)
    size = args.output.stat().st_size
    plain = {"file": str(args.output), "version": found.version, "precision": args.precision, "bytes": size, **told}
    lines = [f"{args.output}: version {found.version} in {args.precision}, {size / 1e6:.1f} MB"]
    show(args, plain, "\n".join([*lines, *_sentences(told)]))
    return DONE


def _sentences(told: dict[str, Any]) -> list[str]:
    if not told:
        return []
    against = "accuracy" if told["labelled"] else "agreement with float32"
    right = f"{against} {told['accuracy']:.1%} beside {told['accuracy_fp32']:.1%} in float32"
    fast = f"one window takes {told['latency_ms']:.3g} ms beside {told['latency_fp32_ms']:.3g} ms on this machine"
    return [
        f"{right}, on {told['evaluated']} windows; calibrated with {told['calibrated']} for {told['target']}",
        f"{fast} ({told['speedup']:.2f} times as fast)",
    ]


def _onnx(args: argparse.Namespace, found: Any, needs: Any) -> dict[str, Any]:
    from edge_sdk.core import registry

    registry.load("exporters", "standalone")(
        found.spec, needs, found.tensors, args.output, version=found.version, graph=found.graph
    )
    return {}


def _int8(args: argparse.Namespace, found: Any, needs: Any) -> dict[str, Any]:
    from edge_sdk.core import registry

    arm = platform.machine().lower() in ("aarch64", "arm64")
    done = registry.load("exporters", "int8")(
        found.spec, needs, found.tensors, args.output, data=found.windows, max_drop=args.max_drop,
        target=args.target or ("arm" if arm else "x86"), version=found.version, graph=found.graph,
    )  # fmt: skip
    return {**asdict(done.report), "speedup": done.report.speedup}


def _plan(args: argparse.Namespace, found: Any, needs: Any) -> dict[str, Any]:
    from edge_sdk.core import registry

    registry.load("exporters", "tensorrt")(
        found.spec, needs, found.tensors, args.output, precision=args.precision, max_batch=args.max_batch,
        graph=found.graph, limit_s=args.limit, progress=lambda text: log.info("building: %s", text),
    )  # fmt: skip
    return {}


_FORMATS: dict[tuple[str, str], Callable[[argparse.Namespace, Any, Any], dict[str, Any]]] = {
    (".onnx", "fp32"): _onnx,
    (".onnx", "int8"): _int8,
    (".plan", "fp32"): _plan,
    (".plan", "fp16"): _plan,
}

__all__ = ["PRECISIONS", "add_arguments", "run"]

"""`edge-sdk bench`: how fast the engines of this machine run a device's model, per engine, precision and batch."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sdk.core.errors import ConfigError, EdgeError, PluginError
from edge_sdk.core.program import DONE, WRONG, at_least, show

if TYPE_CHECKING:
    from edge_sdk.runtime.measuring import Case, Figures
    from edge_sdk.runtime.stock import Stock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("file", type=Path, help="a device's configuration (.toml), or an exported graph (.onnx)")
    parser.add_argument("--engines", default="ort", help="comma-separated: ort, torch, tensorrt; default: ort")
    parser.add_argument("--provider", choices=("cpu", "cuda", "tensorrt"), default="cpu", help="of ort and torch")
    parser.add_argument("--precisions", default="fp32", help="comma-separated: fp32, fp16, int8 (ort on the CPU)")
    parser.add_argument("--batches", default="1", help="comma-separated numbers of windows; default: 1")
    parser.add_argument("--threads", type=at_least(1, int), default=1, help="of one prediction, on the CPU; default: 1")
    parser.add_argument("--seconds", type=at_least(0, float), default=2.0, help="to predict for, each; default: 2")
    parser.add_argument("--plot", type=Path, help="write a plot to this file (.png, .svg, .pdf)")


def run(args: argparse.Namespace) -> int:
    """Measures every case in a process of its own and shows them side by side."""
    from edge_sdk.runtime import stock

    found = stock.read(args.file)
    if args.plot is not None:
        _plottable(args.plot)  # what stands in the way is said before, not after the measuring
    if not args.json:
        _rich()
    rows: list[Figures] = []
    troubles: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="edge-sdk-bench-") as folder:
        for name, case in _cases(args, found, Path(folder), troubles):
            try:
                rows.append(asyncio.run(_measured(case)))
            except EdgeError as error:
                troubles[name] = str(error)
    if args.plot is not None and rows:
        plot(rows, args.plot)
    told = {
        "model": found.version, "windows": "noise" if not len(found.windows.y) else "of this device",
        "figures": [asdict(row) for row in rows], "troubles": troubles,
    }  # fmt: skip
    show(args, told, "" if args.json else table(rows, troubles))
    return WRONG if troubles else DONE


async def _measured(case: Case) -> Figures:
    from edge_sdk.core.compute import TRAIN, FieldCompute
    from edge_sdk.runtime import measuring

    compute = FieldCompute(niceness=0)
    try:
        return await compute.run(TRAIN, 0, measuring.measure, case)
    finally:
        await compute.aclose()


def _cases(
    args: argparse.Namespace, found: Stock, folder: Path, troubles: dict[str, str]
) -> Iterator[tuple[str, Case]]:  # fmt: skip
    from edge_sdk.core.interfaces import EngineOptions
    from edge_sdk.runtime.measuring import STANDALONE, Case

    graph = found.graph or _exported(found, folder)
    sample = found.sample
    for engine in args.engines.split(","):
        for precision in args.precisions.split(","):
            source, kind = graph, engine
            if precision == "int8":
                try:
                    source, kind = _int8(engine, found, graph, folder), STANDALONE
                except EdgeError as error:
                    troubles[f"{engine} int8"] = str(error)
                    continue
            for batch in _numbers(args.batches):
                rows = [i % len(sample.y) for i in range(batch)]
                yield (
                    f"{engine} {precision} batch {batch}",
                    Case(
                        engine=kind,
                        options=EngineOptions(
                            provider=args.provider, precision=precision, threads=args.threads, max_batch=max(64, batch)
                        ),
                        graph=source,
                        tensors=found.tensors,
                        x={m: a[rows] for m, a in sample.x.items()},
                        seconds=args.seconds,
                    ),
                )


def _numbers(text: str) -> list[int]:
    if not all(part.isdecimal() and int(part) > 0 for part in text.split(",")):
        raise ConfigError(f"--batches: expected numbers of windows such as 1,16, found {text!r}")
    return [int(part) for part in text.split(",")]


def _exported(found: Stock, folder: Path) -> Path:
    from edge_sdk.runtime import jobs

    path = folder / "graph.onnx"
    jobs.export_graph(found.spec, path)
    return path


def _int8(engine: str, found: Stock, graph: Path, folder: Path) -> Path:
    """Returns the model in int8; how accurate it is is the business of `edge-sdk export`."""
    from edge_sdk.core import registry
    from edge_sdk.methods.base import find

    if engine != "ort":
        raise ConfigError(f"int8 is run by ort, not by {engine}")
    path = folder / "int8.onnx"
    registry.load("exporters", "int8")(
        found.spec,
        find(found.spec.method.name).needs,
        found.tensors,
        path,
        data=found.sample,
        max_drop=1.0,
        graph=graph,
    )
    return path


def _rich() -> Any:
    try:
        import rich.table
    except ImportError as error:
        raise PluginError(f"the table needs rich ({error}): pip install 'edge-sdk[view]', or ask for --json") from error
    return rich


def _plottable(path: Path) -> None:
    """Raises ConfigError if no plot can be written to this file."""
    _matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise ConfigError(f"--plot {path}: expected a name that ends with one of {', '.join(sorted(kinds))}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no folder {path.absolute().parent}; make it first")


def _matplotlib() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise PluginError(f"--plot needs matplotlib ({error}): pip install 'edge-sdk[view]'") from error
    mpl.use("Agg")
    return mpl


_COLUMNS = (
    "engine",
    "on",
    "precision",
    "batch",
    "p50 ms",
    "p99 ms",
    "windows/s",
    "open ms",
    "swap ms",
    "memory MB",
    "mJ/window",
)


def table(rows: Sequence[Figures], troubles: dict[str, str]) -> str:
    """Returns the figures as a table, and what could not be measured below it."""
    if not rows:
        return "\n".join(f"{name}: {text}" for name, text in troubles.items())
    from rich.console import Console

    made = _rich().table.Table(*_COLUMNS)
    for r in rows:
        made.add_row(
            r.engine, r.provider.removesuffix("ExecutionProvider"), r.precision, str(r.batch), f"{r.p50_ms:.3g}",
            f"{r.p99_ms:.3g}", f"{r.per_s:.4g}", f"{r.open_ms:.3g}", _or_dash(r.swap_ms), f"{r.memory_mb:.3g}",
            _or_dash(r.energy_mj),
        )  # fmt: skip
    console = Console(width=120, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(made)
    return "\n".join([capture.get().rstrip(), *(f"{name}: {text}" for name, text in troubles.items())])


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def plot(rows: Sequence[Figures], path: Path) -> None:
    """Draws the median of every case as a bar, with a line up to the 99th percentile."""
    _matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = [f"{r.engine} {r.precision}, batch {r.batch}" for r in rows]
    medians = [r.p50_ms for r in rows]
    axes.barh(names, medians, xerr=([0.0] * len(rows), [max(0.0, r.p99_ms - r.p50_ms) for r in rows]), capsize=3)
    axes.invert_yaxis()
    axes.set_xlabel("latency, ms: median, and up to the 99th percentile")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: {error}") from error


__all__ = ["add_arguments", "plot", "run", "table"]

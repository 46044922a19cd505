"""The demo's results: the table, `report.json` and `curves.png`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from coordinator.demo.state import DemoState, Scored
from coordinator.simulation.report import LAST_VERSIONS


@dataclass(frozen=True, slots=True)
class Summary:
    """Accuracy of one score over the run; fractions in [0, 1]."""

    before: float  # version 0
    last: float
    best: float
    median: float  # of the last evaluated versions
    minimum: float  # of the last evaluated versions


def summarise(values: Sequence[float]) -> Summary:
    """Returns the summary of a score per evaluated version, oldest first."""
    recent = values[-LAST_VERSIONS:]
    return Summary(values[0], values[-1], max(values), median(recent), min(recent))


def accuracy(curve: Sequence[Scored]) -> dict[str, Summary]:
    """Returns the summaries of the fused model and of each modality alone."""
    scores = {"fused": summarise([p.acc for p in curve])}
    for m in curve[0].acc_by_modality:
        scores[m] = summarise([p.acc_by_modality[m] for p in curve])
    return scores


def report(demo: DemoState, alone: Mapping[str, float], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of `report.json`.

    Args:
        demo: what happened.
        alone: modality → accuracy of a model trained on it alone with the same budget (median of last versions).
        facts: the demo's settings.
    """
    devices = demo.devices.values()
    latency = np.array([ms for d in devices for ms in d.latency_ms])
    swaps = np.array([ms for d in devices for ms in d.swap_ms])
    parameters = facts["parameters"]
    return {
        **facts,
        "updates_applied": demo.applied,
        "updates_rejected": sum(d.rejected for d in devices),
        "mean_staleness": demo.staleness_sum / max(1, demo.applied),
        "accuracy": {name: _rounded(s) for name, s in accuracy(demo.curve).items()},
        "alone": dict(alone),
        "bytes_up": demo.bytes_up,
        "bytes_up_float32": round(
            demo.bytes_up * sum(d.raw_up for d in devices) / max(1, sum(d.queued for d in devices))
        ),
        "bytes_down": sum(d.bytes_down for d in devices),
        "bytes_down_float32": 4 * parameters * sum(d.fetched for d in devices),
        "predictions": sum(d.predictions for d in devices),
        "latency_ms": _percentiles(latency),
        "swap_ms": _percentiles(swaps),
        "swaps": int(swaps.size),
        "imbalance": dict(demo.rho),
        "curve": [{"version": p.version, "acc": p.acc, "acc_by_modality": dict(p.acc_by_modality)} for p in demo.curve],
    }


def _rounded(summary: Summary) -> dict[str, float]:
    return {name: round(getattr(summary, name), 4) for name in Summary.__slots__}


def _percentiles(values: np.ndarray) -> dict[str, float]:
    if values.size == 0:
        return {"p50": float("nan"), "p99": float("nan")}
    return {"p50": round(float(np.percentile(values, 50)), 3), "p99": round(float(np.percentile(values, 99)), 3)}


def show(console: Console, result: Mapping[str, Any]) -> None:
    """Prints the closing tables."""
    scores = Table(title="Accuracy on people no device has seen", title_justify="left")
    recent = f"last {LAST_VERSIONS}"
    for column in ("fused model", "before", "last", "best", f"median, {recent}", f"minimum, {recent}", "trained alone"):
        scores.add_column(column, justify="left" if column == "fused model" else "right")
    for name, s in result["accuracy"].items():
        label = "all sensors" if name == "fused" else f"{name} only"
        cells = [f"{100 * s[k]:.1f} %" for k in ("before", "last", "best", "median", "minimum")]
        other = result["alone"].get(name)
        scores.add_row(label, *cells, "" if other is None else f"{100 * other:.1f} %")
    console.print(scores)
    facts = Table(show_header=False, title="The run", title_justify="left")
    for name, value in _facts(result):
        facts.add_row(name, value)
    console.print(facts)


def _facts(r: Mapping[str, Any]) -> list[tuple[str, str]]:
    up = r["bytes_up_float32"] / max(1, r["bytes_up"])
    down = r["bytes_down_float32"] / max(1, r["bytes_down"])
    latency, swap = r["latency_ms"], r["swap_ms"]
    refused = f"{r['updates_rejected']} refused"
    return [
        ("updates applied", f"{r['updates_applied']} ({refused}), mean staleness {r['mean_staleness']:.2f}"),
        ("bytes up", f"{r['bytes_up']:,} ({up:.1f} × smaller than float32)"),
        ("bytes down", f"{r['bytes_down']:,} ({down:.1f} × smaller than float32)"),
        ("predictions", f"{r['predictions']:,}; latency p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms"),
        ("hot-swaps", f"{r['swaps']}; p50 {swap['p50']:.1f} ms, p99 {swap['p99']:.1f} ms"),
        ("imbalance ρ", ", ".join(f"{m} {v:+.3f}" for m, v in r["imbalance"].items()) or "not known yet"),
        ("wall time", f"{r['wall_seconds']:.0f} s"),
    ]  # fmt: skip


def save(result: Mapping[str, Any], demo: DemoState, folder: Path) -> None:
    """Writes `report.json` and `curves.png`."""
    (folder / "report.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(demo, result["alone"], folder / "curves.png")


def plot(demo: DemoState, alone: Mapping[str, float], path: Path) -> None:
    """Draws accuracy and imbalance over versions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    versions = [p.version for p in demo.curve]
    top.plot(versions, [100 * p.acc for p in demo.curve], label="fused", color="black", linewidth=2)
    for k, m in enumerate(demo.curve[0].acc_by_modality):
        colour = f"C{k}"
        top.plot(
            versions, [100 * p.acc_by_modality[m] for p in demo.curve], label=f"{m} only (fused model)", color=colour
        )
        if m in alone:
            top.axhline(100 * alone[m], color=colour, linestyle=":", label=f"{m} trained alone")
    top.set_ylabel("accuracy on unseen people, %")
    top.set_ylim(0, 100)
    top.legend(loc="lower right", ncols=2)
    for k, m in enumerate(demo.rho):
        bottom.plot(
            [v for v, _ in demo.rho_curve], [rho.get(m, 0.0) for _, rho in demo.rho_curve], label=m, color=f"C{k}"
        )
    bottom.axhline(0.0, color="grey", linewidth=0.8)
    bottom.set_ylabel("imbalance ρ")
    bottom.set_xlabel("model version (updates applied)")
    figure.savefig(path, dpi=120)


__all__ = ["Summary", "accuracy", "plot", "report", "save", "show", "summarise"]

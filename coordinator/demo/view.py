"""The demo's live view in the terminal."""

from __future__ import annotations

import numpy as np
from rich.console import Group
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from coordinator.demo.state import DemoState

BARS = " ▁▂▃▄▅▆▇█"


def render(demo: DemoState, *, target: int, elapsed_s: float) -> Panel:
    """Returns the whole view: progress, accuracy, balance and one row per device."""
    progress = Table.grid(padding=(0, 2))
    progress.add_row(
        f"version {demo.version}", ProgressBar(total=target, completed=demo.version, width=40),
        f"{demo.version} of {target} updates", f"{elapsed_s:.0f} s",
    )  # fmt: skip
    body = Group(progress, Text(), _scores(demo), Text(), _devices(demo))
    return Panel(body, title="Edge SDK: four devices learn together", subtitle="Ctrl-C stops everything")


def _scores(demo: DemoState) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("", "accuracy", "", "imbalance ρ", "mixing rate"):
        table.add_column(name)
    if not demo.curve:
        table.add_row("fused", "…", "waiting for the first version", "", "")
        return table
    last = demo.curve[-1]
    table.add_row("fused", f"{100 * last.acc:.1f} %", _spark([p.acc for p in demo.curve]), "", _rate(demo, "fusion"))
    for m, acc in last.acc_by_modality.items():
        rho = f"{demo.rho[m]:+.3f}" if m in demo.rho else "…"
        line = _spark([p.acc_by_modality[m] for p in demo.curve])
        table.add_row(f"{m} only", f"{100 * acc:.1f} %", line, rho, _rate(demo, f"encoder.{m}"))
    return table


def _rate(demo: DemoState, module: str) -> str:
    return f"{demo.rates[module]:.3f}" if module in demo.rates else "…"


def _spark(values: list[float], width: int = 48) -> str:
    recent = values[-width:]
    return "".join(BARS[round(v * (len(BARS) - 1))] for v in recent)


def _devices(demo: DemoState) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("device", "late", "updates", "staleness", "predictions", "p50 ms", "model", "state"):
        table.add_column(name, justify="left" if name in ("device", "late", "state") else "right", no_wrap=True)
    for name, d in demo.devices.items():
        p50 = f"{np.percentile(d.latency_ms, 50):.2f}" if d.latency_ms else "…"
        model = str(d.version) if d.version >= 0 else "…"
        table.add_row(name, d.late, str(d.applied), str(d.staleness), str(d.predictions), p50, model, d.state)
    return table


__all__ = ["render"]

"""Plots of a comparison as PNG: accuracy over normalised time, imbalance and rates over updates, uni-modal bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coordinator.simulation.compare.document import png
from coordinator.simulation.compare.runner import Result
from coordinator.simulation.compare.study import Run, Study
from coordinator.simulation.compare.tables import Pairs, Row


def all_of(study: Study, pairs: Pairs, table: Sequence[Row]) -> dict[str, bytes]:
    """Returns file name → PNG; a plot that has nothing to show is left out."""
    made = {
        "accuracy.png": png(lambda figure: _accuracy(figure, study, pairs)),
        "unimodal.png": png(lambda figure: _bars(figure, table)),
    }
    if all("running" in result for _, result in pairs):
        made["regret.png"] = png(lambda figure: _regret(figure, study, pairs))
    traced = [
        (run, result) for run, result in _first_seed(pairs)
        if any(t["figures"] for t in result["trace"]) and (not study.balance or run.label in study.balance)
    ]  # fmt: skip
    if traced:
        made["balance.png"] = png(lambda figure: _balance(figure, traced), height=2.4 * len(traced) + 1)
    return made


def _first_seed(pairs: Pairs) -> list[tuple[Run, Result]]:
    seed = min(run.seed for run, _ in pairs)
    return [(run, result) for run, result in pairs if run.seed == seed]


def _accuracy(figure: Any, study: Study, pairs: Pairs) -> None:
    """Median over seeds of fused accuracy, time as a share of what the reference took in all; the range as a shade.

    In a world where training takes no time versions stand for it.
    """
    axes = figure.subplots()
    key = "virtual_s" if all(r["virtual_seconds"] > 1.0 for _, r in pairs) else "version"
    ends = {run.seed: max(1e-9, *(p[key] for p in r["curve"])) for run, r in pairs if run.label == study.base}
    for k, variant in enumerate(study.variants):
        curves = [
            ([p[key] / ends[run.seed] for p in r["curve"]], [100 * p["acc"] for p in r["curve"]])
            for run, r in pairs
            if run.label == variant.label and run.seed in ends and r["curve"]
        ]
        if not curves:
            continue
        grid = np.linspace(0, max(times[-1] for times, _ in curves), 100)
        values = np.stack([np.interp(grid, times, accs) for times, accs in curves])
        axes.plot(
            grid, np.median(values, axis=0), label=variant.label, color=f"C{k % 10}", linestyle=("-", "--")[k // 10 % 2]
        )
        axes.fill_between(grid, values.min(0), values.max(0), color=f"C{k % 10}", alpha=0.12, linewidth=0)
    axes.set_xlabel(f"{'simulated time' if key == 'virtual_s' else 'versions'}, {study.base} = 1")
    axes.set_ylabel("fused accuracy on the test split, %")
    axes.legend(fontsize="small", ncols=2)
    axes.grid(alpha=0.3)


def regret(study: Study, pairs: Pairs) -> dict[str, Any]:
    """Returns label → Σ_t F_t(Θ^t) − F_t(Θ*) after every round, mean over seeds, (T,).

    Θ* is the best fixed model of all runs of a seed; see `simulation.regret`.
    """
    fixed: dict[int, Any] = {}
    for run, result in pairs:
        loss = np.array(result["running"]["best_loss"])
        if run.seed not in fixed or loss.sum() < fixed[run.seed].sum():
            fixed[run.seed] = loss
    size = min(len(result["running"]["loss"]) for _, result in pairs)
    found = {}
    for variant in study.variants:
        mine = [(fixed[run.seed], r["running"]["loss"]) for run, r in pairs if run.label == variant.label]
        if mine:
            curves = [np.cumsum(np.array(loss)[:size] - best[:size]) for best, loss in mine]
            found[variant.label] = np.mean(curves, axis=0)
    return found


def _regret(figure: Any, study: Study, pairs: Pairs) -> None:
    axes = figure.subplots()
    for k, (label, curve) in enumerate(regret(study, pairs).items()):
        axes.plot(
            np.arange(1, len(curve) + 1), curve, label=label, color=f"C{k % 10}",
            linestyle=("-", "--", ":")[k // 10 % 3],
        )  # fmt: skip
    axes.set_xlabel("rounds")
    axes.set_ylabel("regret against the best fixed model found, nats")
    axes.legend(fontsize="small", ncols=2)
    axes.grid(alpha=0.3)


def _bars(figure: Any, table: Sequence[Row]) -> None:
    axes = figure.subplots()
    names = ["fused", *table[0].acc_by_modality]
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        bars = [row.acc if name == "fused" else row.acc_by_modality[name] for row in table]
        places = np.arange(len(table)) + (k - (len(names) - 1) / 2) * width
        axes.bar(
            places, [100 * c.mean for c in bars], width, yerr=[100 * c.std for c in bars], label=name,
            color="black" if name == "fused" else f"C{k - 1}",
        )  # fmt: skip
    axes.set_xticks(np.arange(len(table)), [row.label for row in table], rotation=30, ha="right")
    axes.set_ylabel("accuracy, %")
    axes.legend(fontsize="small")


def _balance(figure: Any, traced: Sequence[tuple[Run, Result]]) -> None:
    """What a method says of its state, the rates it gives, and how far each update moved every module; first seed."""
    columns = {"figures": "figures of the method", "rates": "mixing rates or weights", "norms": "‖change‖ of a module"}
    shown = {key: title for key, title in columns.items() if any(t.get(key) for _, r in traced for t in r["trace"])}
    grid = figure.subplots(len(traced), len(shown), squeeze=False, sharex=True)
    for row, (run, result) in zip(grid, traced, strict=True):
        for axes, key in zip(row, shown, strict=True):
            names = sorted({name for t in result["trace"] for name in t.get(key, {})})[:8]
            for name in names:
                points = [(t["updates"], t[key][name]) for t in result["trace"] if name in t[key]]
                axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
            if names:
                axes.legend(fontsize="x-small")
                axes.grid(alpha=0.3)
            else:
                axes.text(0.5, 0.5, "it has none", ha="center", va="center", transform=axes.transAxes, color="gray")
                axes.set_yticks([])
        row[0].set_ylabel(run.label, fontsize="small")
    for axes, title in zip(grid[0], shown.values(), strict=True):
        axes.set_title(title, fontsize="small")
    for axes in grid[-1]:
        axes.set_xlabel("updates applied")


__all__ = ["all_of", "regret"]

"""Tables of a comparison: mean ± standard deviation over seeds, as records, Markdown, CSV and for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from coordinator.simulation.compare.runner import Result
from coordinator.simulation.compare.study import Run, Study

Pairs = Sequence[tuple[Run, Result]]


@dataclass(frozen=True, slots=True)
class Cell:
    """Mean and sample standard deviation over seeds; NaN where nothing could be measured."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Cell:
        """Returns the cell of some values; those that are NaN make it NaN."""
        if not values:
            return cls(float("nan"), float("nan"))
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        """Returns "mean ± std", "–" for NaN."""
        if np.isnan(self.mean):
            return "–"
        return f"{scale * self.mean:.{digits}f} ± {scale * self.std:.{digits}f}"


@dataclass(frozen=True, slots=True)
class Row:
    """One variant over all seeds; accuracies in [0, 1]."""

    label: str
    method: str
    seeds: tuple[int, ...]
    acc: Cell  # of the final model
    acc_median: Cell  # over the last evaluated versions
    acc_by_modality: Mapping[str, Cell]
    acc_missing: Mapping[str, Cell]  # modality → all others together; empty with two modalities: the other one alone
    time: Cell  # to the target accuracy, as a share of the reference's; NaN: not every seed got there
    reached: int  # seeds that got there
    bytes_up: Cell
    bytes_down: Cell
    staleness: Cell
    virtual_s: Cell
    wall_s: Cell


def time_to(result: Result, target: float) -> float:
    """Returns the virtual second at which a run first had this accuracy; NaN if it never had."""
    return next((float(p["virtual_s"]) for p in result["curve"] if p["acc"] >= target), float("nan"))


def rows(study: Study, pairs: Pairs, unimodal: str = "zero_feature") -> list[Row]:
    """Returns one row per variant.

    Time to accuracy is measured per seed: the target is `share` of the reference's median accuracy with that seed, the
    unit the time that the reference took itself.

    Args:
        study: what is compared.
        pairs: runs and results.
        unimodal: way in which Acc-[modality] is asked; see `coordinator.evaluate.unimodal`.
    """
    base = {run.seed: result for run, result in pairs if run.label == study.base}
    targets = {seed: study.share * result["acc_median"] for seed, result in base.items()}
    units = {seed: time_to(result, targets[seed]) for seed, result in base.items()}
    made = []
    for variant in study.variants:
        mine = [(run.seed, result) for run, result in pairs if run.label == variant.label]
        times = [_ratio(time_to(r, targets[s]), units[s]) for s, r in mine if s in units]
        reached = [t for t in times if not np.isnan(t)]
        results = [result for _, result in mine]
        if not results:
            continue
        made.append(
            Row(
                variant.label, results[0]["method"], tuple(seed for seed, _ in mine),
                acc=_cell(results, "acc"), acc_median=_cell(results, "acc_median"),
                acc_by_modality=_by_modality(results, unimodal), acc_missing=_missing(results),
                time=Cell.of(reached) if len(reached) == len(mine) else Cell.of([]), reached=len(reached),
                bytes_up=_cell(results, "bytes_up"), bytes_down=_cell(results, "bytes_down"),
                staleness=_cell(results, "mean_staleness"), virtual_s=_cell(results, "virtual_seconds"),
                wall_s=_cell(results, "wall_seconds"),
            )
        )  # fmt: skip
    return made


def _ratio(time: float, unit: float) -> float:
    """Returns time / unit; NaN in a world where training takes no time."""
    return time / unit if unit > 0 else float("nan")


def _by_modality(results: Sequence[Result], way: str) -> dict[str, Cell]:
    return {m: Cell.of([result["unimodal"][way][m] for result in results]) for m in results[0]["unimodal"][way]}


def _missing(results: Sequence[Result]) -> dict[str, Cell]:
    asked = [result.get("missing", {}) for result in results]  # results of older versions do not say
    return {m: Cell.of([one.get(m, float("nan")) for one in asked]) for m in asked[0]} if len(asked[0]) > 2 else {}


def _cell(results: Sequence[Result], key: str) -> Cell:
    return Cell.of([float(result[key]) for result in results])


def header(study: Study, table: Sequence[Row]) -> list[str]:
    """Returns the column titles."""
    modalities = list(table[0].acc_by_modality) if table else []
    published = ["published Acc"] if study.published else []
    return [
        "method", "Acc, %", "median of the last, %", *(f"Acc-{m}, %" for m in modalities),
        *(f"without {m}, %" for m in (table[0].acc_missing if table else ())), *published,
        f"time to {100 * study.share:g} % of {study.base}", "MB up", "MB down", "staleness",
    ]  # fmt: skip


def cells(study: Study, row: Row) -> list[str]:
    """Returns a row as text, in the order of `header`."""
    published = [_published(study, row.label)] if study.published else []
    time = row.time.text() if row.reached == len(row.seeds) else f"{row.reached} of {len(row.seeds)} got there"
    return [
        row.label, row.acc.text(100), row.acc_median.text(100),
        *(cell.text(100) for cell in (*row.acc_by_modality.values(), *row.acc_missing.values())), *published, time,
        row.bytes_up.text(1e-6, 1), row.bytes_down.text(1e-6, 1), row.staleness.text(),
    ]  # fmt: skip


def _published(study: Study, label: str) -> str:
    told = study.published.get(label, {})
    return f"{told['acc']:.2f}" if "acc" in told else "–"


def markdown(study: Study, table: Sequence[Row]) -> str:
    """Returns the table as Markdown."""
    titles = header(study, table)
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(cells(study, row)) + " |" for row in table]
    return "\n".join(lines) + "\n"


def comma_separated(study: Study, table: Sequence[Row]) -> str:
    """Returns the table as CSV: mean and standard deviation in columns of their own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names: list[str] = []
    for row in table:
        columns = _columns(row)
        if not names:
            names = ["label", "method", "seeds", *(f"{c}_{part}" for c in columns for part in ("mean", "std"))]
            writer.writerow(names)
        seeds = " ".join(map(str, row.seeds))
        writer.writerow([row.label, row.method, seeds, *(x for c in columns.values() for x in (c.mean, c.std))])
    return out.getvalue()


def _columns(row: Row) -> dict[str, Cell]:
    return {
        "acc": row.acc, "acc_median": row.acc_median, **{f"acc_{m}": c for m, c in row.acc_by_modality.items()},
        **{f"acc_without_{m}": c for m, c in row.acc_missing.items()},
        "time": row.time, "bytes_up": row.bytes_up, "bytes_down": row.bytes_down, "staleness": row.staleness,
        "virtual_seconds": row.virtual_s, "wall_seconds": row.wall_s,
    }  # fmt: skip


def as_json(study: Study, table: Sequence[Row]) -> dict[str, Any]:
    """Returns the table as plain data."""
    return {
        "title": study.title,
        "reference": study.base,
        "share": study.share,
        "notes": list(study.notes),
        "published": study.published,
        "rows": [
            {"label": row.label, "method": row.method, "seeds": list(row.seeds), "reached": row.reached}
            | {name: {"mean": _number(cell.mean), "std": _number(cell.std)} for name, cell in _columns(row).items()}
            for row in table
        ],
    }


def _number(value: float) -> float | None:
    """Returns what JSON can say: it knows no NaN."""
    return None if np.isnan(value) else value


def terminal(study: Study, table: Sequence[Row]) -> Table:
    """Returns the table for the terminal: what fits."""
    shown = Table(title=study.title, title_justify="left", caption=f"time: to {100 * study.share:g} % of {study.base}")
    modalities = list(table[0].acc_by_modality) if table else []
    shown.add_column("method", no_wrap=True)
    for title in ("Acc", "median", *modalities, "time", "MB up"):
        shown.add_column(title, justify="right")
    for row in table:
        accuracies = (row.acc, row.acc_median, *row.acc_by_modality.values())
        time = f"{row.time.mean:.2f}" if row.reached == len(row.seeds) else f"{row.reached}/{len(row.seeds)}"
        shown.add_row(
            row.label, *(f"{100 * c.mean:.1f} ±{100 * c.std:.1f}" for c in accuracies), time,
            f"{1e-6 * row.bytes_up.mean:.1f}",
        )  # fmt: skip
    return shown


__all__ = [
    "Cell",
    "Pairs",
    "Row",
    "as_json",
    "cells",
    "comma_separated",
    "header",
    "markdown",
    "rows",
    "terminal",
    "time_to",
]

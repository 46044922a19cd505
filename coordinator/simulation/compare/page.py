"""One self-contained HTML page of a comparison: the table, the plots, and how to do it again."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from coordinator.simulation.compare import document
from coordinator.simulation.compare.study import Study
from coordinator.simulation.compare.tables import Row, cells, header


def page(study: Study, table: Sequence[Row], plots: Mapping[str, bytes], command: str) -> str:
    """Returns the page; nothing in it is fetched from elsewhere."""
    seeds = ", ".join(map(str, sorted({seed for row in table for seed in row.seeds})))
    return document.document(
        study.title,
        f"<p>Mean ± standard deviation over seeds {seeds}. <code>{html.escape(command)}</code></p>"
        + document.table(header(study, table), [cells(study, row) for row in table])
        + document.items(study.notes)
        + "".join(document.picture(name, data) for name, data in plots.items()),
    )


__all__ = ["page"]

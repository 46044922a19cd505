"""One self-contained HTML page of a comparison: the table, the plots, and how to do it again."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

from coordinator.simulation.compare.study import Study
from coordinator.simulation.compare.tables import Row, cells, header

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1100px;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:14px}"
    "td,th{border-bottom:1px solid #ddd;padding:.3rem .6rem;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}code{background:#f4f4f4;padding:.1rem .3rem}"
)


def page(study: Study, table: Sequence[Row], plots: Mapping[str, bytes], command: str) -> str:
    """Returns the page; nothing in it is fetched from elsewhere."""
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in header(study, table))
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(study, row)) + "</tr>" for row in table
    )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in study.notes)
    pictures = "".join(
        f'<p><img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}"></p>'
        for name, data in plots.items()
    )
    seeds = ", ".join(map(str, sorted({seed for row in table for seed in row.seeds})))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(study.title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(study.title)}</h1>"
        f"<p>Mean ± standard deviation over seeds {seeds}. <code>{html.escape(command)}</code></p>"
        f"<table><tr>{titles}</tr>{lines}</table><ul>{notes}</ul>{pictures}</html>\n"
    )


__all__ = ["page"]

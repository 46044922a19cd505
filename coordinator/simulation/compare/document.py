"""Pieces of a self-contained HTML page: tables and matplotlib pictures; nothing is fetched from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Drawing = Callable[[Any], None]  # draws into a matplotlib figure

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1100px;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;font-size:14px}"
    "td,th{border-bottom:1px solid #ddd;padding:.3rem .6rem;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}code{background:#f4f4f4;padding:.1rem .3rem}"
)


def document(title: str, body: str) -> str:
    """Returns the page; `body` is HTML, the title plain text."""
    name = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
        f"<style>{_STYLE}</style><h1>{name}</h1>{body}</html>\n"
    )


def table(titles: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of plain text."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def items(lines: Iterable[str]) -> str:
    """Returns a list of plain text."""
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def picture(name: str, data: bytes) -> str:
    """Returns a PNG inside the page."""
    return f'<p><img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}"></p>'


def png(draw: Drawing, height: float = 5.0) -> bytes:
    """Returns what a drawing looks like; ten inches wide."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    out = io.BytesIO()
    figure.savefig(out, dpi=110)
    return out.getvalue()


__all__ = ["Drawing", "document", "items", "picture", "png", "table"]

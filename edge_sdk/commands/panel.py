"""How `edge-sdk monitor` draws: a table, waveforms and pictures of block characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_sdk.core.records import Array
from edge_sdk.runtime.gauges import SPAN_S, Reading, Trace, lost

BLOCKS = "▁▂▃▄▅▆▇█"
PICTURE_COLUMNS, PICTURE_ROWS = 40, 12  # characters; a row shows two lines of pixels
_TITLES = ("sensor", "driver", "state", "rate, Hz", "age, s", "samples", "lost", "gaps", "reconnects", "sample")
_COLOURS = {"streaming": "green", "ended": "cyan", "opening": "yellow", "closed": "yellow"}


def row(reading: Reading) -> tuple[str, ...]:
    """Returns the cells of one modality."""
    age = "-" if reading.age_s is None else f"{reading.age_s:.2f}"
    shape = "x".join(map(str, reading.shape)) or "-"
    return (
        reading.modality, reading.driver, reading.state, f"{reading.rate_hz:.1f}", age, str(reading.samples),
        str(lost(reading)), str(reading.gaps), str(reading.reconnects), shape,
    )  # fmt: skip


def spark(points: Sequence[float]) -> str:
    """Returns a line of blocks from the least to the greatest point; a space where nothing came."""
    known = [p for p in points if not math.isnan(p)]
    if not known:
        return " " * len(points)
    low, span = min(known), (max(known) - min(known)) or 1.0
    return "".join(" " if math.isnan(p) else BLOCKS[round((p - low) / span * (len(BLOCKS) - 1))] for p in points)


def caption(trace: Trace) -> str:
    """Returns the range that a waveform spans."""
    known = [p for p in trace.points if not math.isnan(p)]
    if not known:
        return ""
    return f"0 … {max(known):.3g}" if trace.envelope else f"{min(known):.3g} … {max(known):.3g}"


def plain(readings: Sequence[Reading]) -> str:
    """Returns the table and the waveforms as text without colour."""
    rows = [_TITLES, *map(row, readings)]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(_TITLES))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip() for cells in rows]
    for reading in readings:
        lines += [f"  {reading.modality}.{t.name:<8} {spark(t.points)}  {caption(t)}" for t in reading.traces]
        lines += [f"  {reading.modality}: {reading.text}"] if reading.text else []
        lines += [f"  {reading.modality}: {reading.error}"] if reading.error else []
    return "\n".join(lines)


def thumbnail(picture: Array) -> Array:
    """Returns a picture of at most PICTURE_COLUMNS x 2·PICTURE_ROWS pixels with its proportions: uint8 (h, w, 3)."""
    height, width = picture.shape[:2]
    step = max(height / (2 * PICTURE_ROWS), width / PICTURE_COLUMNS, 1.0)
    tall, wide = max(2, int(height / step) // 2 * 2), max(1, int(width / step))
    y, x = np.arange(tall) * height // tall, np.arange(wide) * width // wide
    return np.asarray(picture[y][:, x], np.uint8)


def drawing(readings: Sequence[Reading], title: str) -> Any:
    """Returns what rich shows."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{title} · Ctrl-C ends", title_justify="left", expand=False)
    for number, name in enumerate(_TITLES):
        table.add_column(name, justify="left" if number < 3 else "right", no_wrap=True)
    for reading in readings:
        cells: list[str | Text] = list(row(reading))
        cells[2] = Text(reading.state, _COLOURS.get(reading.state, "red"))
        table.add_row(*cells)
    parts: list[Any] = [table]
    for reading in readings:
        if reading.error:
            parts.append(Text(f"{reading.modality}: {reading.error}", "red"))
        for trace in reading.traces:
            label = f"{reading.modality} {trace.name}"
            parts.append(Text.assemble(f"{label:<16.16} ", (spark(trace.points), "cyan"), f"  {caption(trace)}"))
        if reading.text:
            parts.append(Text(f"{reading.modality}: {reading.text}"))
    pictures = [blocks(thumbnail(r.picture), r.modality) for r in readings if r.picture is not None]
    if pictures:
        beside = Table.grid(padding=(0, 2))
        beside.add_row(*pictures)
        parts.append(beside)
    parts.append(Text(f"waveforms: the last {SPAN_S:g} s", "dim"))
    return Group(*parts)


def blocks(picture: Array, name: str) -> Any:
    """Returns a picture of half blocks: two pixels in a character, the upper as its colour, the lower behind it."""
    from rich.text import Text

    text = Text(f"{name}\n", no_wrap=True)
    for y in range(0, len(picture) - 1, 2):
        for upper, lower in zip(picture[y].tolist(), picture[y + 1].tolist(), strict=True):
            text.append("▀", "rgb({},{},{}) on rgb({},{},{})".format(*upper, *lower))
        text.append("\n")
    return text


__all__ = ["blocks", "caption", "drawing", "plain", "row", "spark", "thumbnail"]

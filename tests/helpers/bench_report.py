"""The report of the hardware suite: one HTML page with tables and plots, nothing fetched from elsewhere."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coordinator.simulation.compare import document
from edge_sdk.core.clock import NS
from edge_sdk.core.records import Int64
from tests.helpers.bench_measures import Heard, Measured, activity
from tests.helpers.benches import Sensor

SHOWN_S = 1.0  # of a waveform
MARKS = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}


@dataclass(frozen=True, slots=True)
class Replug:
    """How one sensor went and came back."""

    noticed_s: float  # from the plug to the state
    returned_s: float  # from the plug to the first sample
    said: str


@dataclass
class Ledger:
    """What the tests found out."""

    title: str = ""
    sensors: dict[str, Sensor] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # sensor or kind → why it is not there
    heard: dict[str, Heard] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    knocked: dict[str, tuple[Heard, Int64]] = field(default_factory=dict)  # and when the knocks began, ns
    offsets_ms: dict[str, tuple[float, float]] = field(default_factory=dict)  # median, spread
    replugs: dict[str, Replug] = field(default_factory=dict)
    soak: list[dict[str, Measured]] = field(default_factory=list)
    soak_piece_s: float = 0.0
    memory_mb: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)  # processor time of the listener over wall time
    verdicts: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)  # (test, sensor) → (outcome, reason)


def page(ledger: Ledger) -> str:
    """Returns the report."""
    plots = {"intervals": _intervals, "knocks": _knocks, "replugs": _replugs, "soak": _soak}
    body = [
        _summary(ledger), "<h2>Sensors</h2>", _figures(ledger), "<h2>Tests</h2>", _verdicts(ledger),
        *(_section(name, made) for name, plot in plots.items() if (made := plot(ledger)) is not None),
        _soak_figures(ledger),
    ]  # fmt: skip
    return document.document(f"Hardware: {ledger.title}", "".join(body))


_HEADINGS = {
    "intervals": "Intervals between samples, and what was delivered",
    "knocks": "Clock offsets: the same knock, seen by every sensor",
    "replugs": "Unplugged and plugged in again",
    "soak": "Soak",
}


def _section(name: str, data: bytes) -> str:
    return f"<h2>{html.escape(_HEADINGS[name])}</h2>{document.picture(name, data)}"


def _summary(ledger: Ledger) -> str:
    outcomes = [outcome for outcome, _ in ledger.verdicts.values()]
    said = ", ".join(f"{outcomes.count(o)} {o}" for o in MARKS if o in outcomes)
    away = document.items(f"{name} is not here: {why}" for name, why in ledger.absent.items())
    return f"<p>{len(ledger.sensors)} sensors; {said}.</p>{away}"


def _figures(ledger: Ledger) -> str:
    titles = ("sensor", "driver", "rate, Hz", "expected", "jitter, ms", "lost", "longest interval, ms", "age, ms",
              "stated error, ms", "offset, ms")  # fmt: skip
    rows = []
    for name, sensor in ledger.sensors.items():
        m, offset = ledger.measured.get(name), ledger.offsets_ms.get(name)
        figures = ["-"] * 7
        if m is not None:
            figures = [
                f"{m.rate_hz:.2f}", f"{sensor.rate_hz:g}", f"{m.jitter_ms:.2f}", f"{m.lost} ({m.loss:.2%})",
                f"{1e3 * m.hole_s:.1f}", f"{m.age_ms:.1f}", f"{m.err_ms:.1f}",
            ]  # fmt: skip
        rows.append((name, sensor.config.driver, *figures, "-" if offset is None else f"{offset[0]:+.0f}"))
    note = "<p>Jitter: what 95 % of the intervals keep. Age: of the newest sample when it reaches the event loop."
    first = next(iter(ledger.offsets_ms), "")
    return document.table(titles, rows) + note + (f" Offset: against {html.escape(first)}.</p>" if first else "</p>")


def _verdicts(ledger: Ledger) -> str:
    tests = list(dict.fromkeys(test for test, _ in ledger.verdicts))
    names = list(dict.fromkeys(name for _, name in ledger.verdicts))
    rows = [
        (test.removeprefix("test_").replace("_", " "), *(_mark(ledger, test, name) for name in names)) for test in tests
    ]
    reasons = [
        f"{name}, {test.removeprefix('test_').replace('_', ' ')}: {MARKS[outcome]}: {reason}"
        for (test, name), (outcome, reason) in ledger.verdicts.items()
        if reason
    ]
    return document.table(("test", *names), rows) + document.items(reasons)


def _mark(ledger: Ledger, test: str, name: str) -> str:
    return MARKS[ledger.verdicts[test, name][0]] if (test, name) in ledger.verdicts else ""


def _intervals(ledger: Ledger) -> bytes | None:
    if not ledger.heard:
        return None

    def draw(figure: Any) -> None:
        grid = figure.subplots(len(ledger.heard), 3, squeeze=False, width_ratios=(3, 1.5, 2))
        for (left, middle, right), (name, heard) in zip(grid, ledger.heard.items(), strict=True):
            steps = np.diff(heard.times) / 1e6
            at = (heard.times[1:] - heard.times[0]) / NS
            left.plot(at, steps, ".", markersize=2, rasterized=True)
            left.axhline(1e3 / ledger.measured[name].rate_hz, color="C3", linewidth=0.8)
            left.set_ylabel(f"{name}\nms")
            low, high = np.quantile(steps, (0.005, 0.995))
            room = max(0.05 * high, (high - low) / 2)
            middle.hist(steps, bins=40, range=(low - room, high + room), log=True)
            _delivered(right, heard)
        grid[0][0].set_title("interval over time (red: mean)", fontsize="small")
        grid[0][1].set_title("how often", fontsize="small")
        grid[0][2].set_title(f"last {SHOWN_S:g} s, or last frame", fontsize="small")
        grid[-1][0].set_xlabel("s")
        grid[-1][1].set_xlabel("ms")

    return document.png(draw, height=1.8 * len(ledger.heard) + 0.6)


def _delivered(axes: Any, heard: Heard) -> None:
    if heard.picture.size:
        axes.imshow(heard.picture)
        axes.axis("off")
        return
    shown = heard.times > heard.times[-1] - SHOWN_S * NS
    axes.plot((heard.times[shown] - heard.times[-1]) / NS, heard.levels[shown], linewidth=0.7)


def _knocks(ledger: Ledger) -> bytes | None:
    if not ledger.knocked:
        return None

    def draw(figure: Any) -> None:
        columns = max(len(begun) for _, begun in ledger.knocked.values())
        grid = figure.subplots(len(ledger.knocked), columns, squeeze=False, sharex="col")
        first = next(iter(ledger.knocked.values()))[1]
        for row, (name, (heard, begun)) in zip(grid, ledger.knocked.items(), strict=True):
            level = activity(heard)
            for k, (axes, at) in enumerate(zip(row, first, strict=False)):
                t = (heard.times - at) / 1e6
                near = np.abs(t) < 400
                axes.plot(t[near], level[near], ".-", linewidth=0.7, markersize=3)
                if k < len(begun):
                    axes.axvline((begun[k] - at) / 1e6, color="C3", linewidth=0.8)
                axes.set_yticks([])
            row[0].set_ylabel(name)
        for k, axes in enumerate(grid[0]):
            axes.set_title(f"knock {k + 1}", fontsize="small")
        for axes in grid[-1]:
            axes.set_xlabel("ms after the first sensor noticed")

    return document.png(draw, height=1.1 * len(ledger.knocked) + 0.8)


def _replugs(ledger: Ledger) -> bytes | None:
    if not ledger.replugs:
        return None

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        places = np.arange(len(ledger.replugs))
        axes.barh(places - 0.2, [r.noticed_s for r in ledger.replugs.values()], 0.35, label="until it was noticed")
        axes.barh(places + 0.2, [r.returned_s for r in ledger.replugs.values()], 0.35, label="until it delivered again")
        axes.set_yticks(places, list(ledger.replugs))
        axes.invert_yaxis()
        axes.set_xlabel("s")
        axes.legend(fontsize="small")

    return document.png(draw, height=0.5 * len(ledger.replugs) + 1.2)


def _soak(ledger: Ledger) -> bytes | None:
    if not ledger.soak:
        return None

    def draw(figure: Any) -> None:
        rate, loss, memory, core = figure.subplots(1, 4)
        at = (np.arange(len(ledger.soak)) + 0.5) * ledger.soak_piece_s
        for name, sensor in ledger.sensors.items():
            pieces = [piece[name] for piece in ledger.soak if name in piece]
            if len(pieces) == len(at):
                rate.plot(at, [100 * (m.rate_hz / sensor.rate_hz - 1) for m in pieces], ".-", label=name)
                loss.plot(at, [100 * m.loss for m in pieces], ".-", label=name)
        memory.plot(at, ledger.memory_mb, ".-", color="black")
        core.plot(at, ledger.cores, ".-", color="black")
        titles = ("rate against expected, %", "lost, %", "memory of the process, MB", "cores used")
        for axes, title in zip((rate, loss, memory, core), titles, strict=True):
            axes.set_title(title, fontsize="small")
            axes.set_xlabel("s")
        for axes, top in ((loss, 0.1), (memory, 1.0), (core, 0.01)):
            axes.set_ylim(0, 1.1 * max(top, axes.dataLim.y1))
        rate.legend(fontsize="x-small")

    return document.png(draw, height=3.0)


def _soak_figures(ledger: Ledger) -> str:
    """Returns the soak's sums as a table; "" without a soak."""
    if not ledger.soak:
        return ""
    rows = []
    for name in ledger.sensors:
        pieces = [piece[name] for piece in ledger.soak if name in piece]
        samples, lost = sum(m.samples for m in pieces), sum(m.lost for m in pieces)
        rate, worst = (
            (f"{np.median([m.rate_hz for m in pieces]):.2f}", max(m.loss for m in pieces)) if pieces else ("-", 1)
        )
        rows.append((name, str(samples), f"{lost} ({lost / max(1, samples + lost):.2%})", f"{worst:.2%}", rate))
    titles = ("sensor", "samples", "lost", "lost in the worst piece", "rate, median, Hz")
    return f"<p>{len(ledger.soak)} pieces of {ledger.soak_piece_s:g} s:</p>" + document.table(titles, rows)


__all__ = ["Ledger", "Replug", "page"]

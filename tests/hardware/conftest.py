"""One bench for all tests: the board of `--board FILE.toml`, or virtual devices; and the report at the end."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.core.config import DeviceConfig, load_toml
from edge_sdk.core.errors import ConfigError
from tests.helpers.bench_measures import Heard, Measured, knocks, measure
from tests.helpers.bench_report import Ledger, page
from tests.helpers.benches import KINDS, Bench, Board, CannotDo, HardwareSection, Sensor
from tests.helpers.virtual_bench import MAKERS, VirtualBench

LEDGER = pytest.StashKey[Ledger]()


@lru_cache
def named(board: Path | None) -> tuple[str, ...]:
    """Returns the sensors to try, and the kinds of sensors that a board has none of."""
    if board is None:
        return tuple(MAKERS)
    try:
        config = load_toml(board, DeviceConfig)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error
    sections = {name: section for name, section in config.sensors.items() if not section.shares}
    there = {KINDS.get(section.driver, section.driver) for section in sections.values()}
    return (*sections, *sorted(set(KINDS.values()) - there))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Soaks are long, and people at a bench take their time: nothing is cut short."""
    if config.getoption("--board") is not None or config.getoption("--soak") is not None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.timeout(0))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "sensor" in metafunc.fixturenames:
        metafunc.parametrize("sensor", named(metafunc.config.getoption("--board")), indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if LEDGER in item.session.stash and (report.when == "call" or (report.when == "setup" and not report.passed)):
        callspec = getattr(item, "callspec", None)
        if callspec is not None and "sensor" in callspec.params:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            if report.failed and call.excinfo is not None:
                why = str(call.excinfo.value).splitlines()[0]
            test = item.originalname  # type: ignore[attr-defined]
            verdict = (report.outcome, why.removeprefix("Skipped: "))
            item.session.stash[LEDGER].verdicts[test, callspec.params["sensor"]] = verdict
    return report


@pytest.fixture(scope="session")
def ledger(request: pytest.FixtureRequest) -> Ledger:
    return request.session.stash.setdefault(LEDGER, Ledger())


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ledger: Ledger) -> Iterator[Bench]:
    """The bench, listening; the report is written when it is over."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, which draws the report (extra `view`)")
    board, report = request.config.getoption("--board"), request.config.getoption("--report")
    somebody = request.config.getoption("capture") == "no" and sys.stdin.isatty()
    made: Bench
    if board is None:
        if sys.platform != "linux":
            pytest.skip("virtual devices need Linux; name a board with --board FILE.toml")
        made = VirtualBench(tmp_path_factory.mktemp("bench"))
    else:
        made = Board(board, input if somebody else None)
        report = report or made.hardware.report
        made.absent |= {
            kind: f"{board} names none" for kind in named(board) if kind not in {*made.sensors, *made.absent}
        }
    if (soak_s := request.config.getoption("--soak")) is not None:
        pieces = HardwareSection().soak_pieces if board is None else made.hardware.soak_pieces
        made.hardware = made.hardware.model_copy(update={"soak_s": soak_s, "soak_pieces": pieces})
    ledger.title, ledger.sensors, ledger.absent = made.title, made.sensors, made.absent
    with made:
        yield made
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(page(ledger), encoding="utf-8")
        sys.__stderr__.write(f"\nreport: {report}\n")  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def sensor(request: pytest.FixtureRequest, bench: Bench) -> Sensor:
    name = request.param
    if name not in bench.sensors:
        pytest.skip(f"no {name} on this bench: {bench.absent[name]}")
    if name in bench.silent:
        pytest.fail(f"{name} delivers nothing: {bench.silent[name]}")
    return bench.sensors[name]


def figures(bench: Bench, heard: dict[str, Heard]) -> dict[str, Measured]:
    """Returns the figures of every sensor that delivered enough for any."""
    return {name: measure(heard[name]) for name in bench.sensors if len(heard[name].times) > 2}


@pytest.fixture(scope="session")
def measured(bench: Bench, ledger: Ledger) -> dict[str, Measured]:
    """Figures of every sensor, from one measurement of all at once."""
    heard = bench.listener.capture(bench.hardware.seconds)
    ledger.measured = figures(bench, heard)
    ledger.heard = {name: heard[name] for name in ledger.measured}
    return ledger.measured


@pytest.fixture(scope="session")
def knocked(bench: Bench, ledger: Ledger) -> dict[str, tuple[Heard, Any]]:
    """What every sensor noticed of some knocks: what it heard, and when they began."""

    def knock() -> None:
        for _ in range(bench.hardware.knocks):
            bench.knock()
            bench.listener.rest(0.7)

    try:
        heard = bench.listener.capture(1.0, knock)
    except CannotDo as error:
        pytest.skip(str(error))
    there = [name for name in bench.notices if len(heard[name].times)]
    ledger.knocked = {name: (heard[name], knocks(heard[name], bench.hardware.knocks)) for name in there}
    return ledger.knocked


@pytest.fixture(scope="session")
def soaked(bench: Bench, ledger: Ledger) -> list[dict[str, Measured]]:
    """Figures of every sensor, piece by piece of a long time; memory and processor time beside them."""
    hardware = bench.hardware
    ledger.soak_piece_s = piece_s = hardware.soak_s / hardware.soak_pieces
    before_s = bench.listener.saved()[1]["cpu_s"]
    for _ in range(hardware.soak_pieces):
        bench.listener.ask("mark")
        bench.listener.rest(piece_s)
        heard, told = bench.listener.saved()
        ledger.soak.append(figures(bench, heard))
        ledger.memory_mb.append(told["rss_mb"])
        ledger.cores.append((told["cpu_s"] - before_s) / piece_s)
        before_s = told["cpu_s"]
    return ledger.soak

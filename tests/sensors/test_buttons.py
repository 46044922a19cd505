"""Labels by buttons: a board on a pseudo-terminal, and GPIO lines with a stand-in for the vendor's library."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import subprocess
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_sdk.core import registry
from edge_sdk.core.clock import NS, WallClock, monotonic_ns
from edge_sdk.core.compute import FieldCompute
from edge_sdk.core.errors import ConfigError, PluginError
from edge_sdk.core.records import Label
from sensors import buttons
from sensors.buttons import ButtonLabels, GpioLabels, Press, SerialLabels

CLASSES = {"1": "walk", "2": "sit"}


class Board:
    """The board's side of a pseudo-terminal; `port` is a link that survives a replug."""

    def __init__(self, folder: Path) -> None:
        self.port = folder / "ttyBTN"
        self.plug()

    def plug(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.port.unlink(missing_ok=True)
        self.port.symlink_to(os.ttyname(self._slave))

    def says(self, text: str) -> None:
        os.write(self._master, text.encode())

    def unplug(self) -> None:
        os.close(self._slave)
        os.close(self._master)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    pytest.importorskip("serial", reason="pyserial is not installed: pip install 'edge-sdk[serial]'")
    made = Board(tmp_path)
    yield made
    with contextlib.suppress(OSError):
        made.unplug()


def serial(board: Board, **options: Any) -> SerialLabels:
    return SerialLabels({"port": str(board.port), "classes": CLASSES, **options}, WallClock())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the source tells nobody but its log
        await asyncio.sleep(0.002)


async def told(source: ButtonLabels, count: int, *steps: Callable[[], Any]) -> list[Label]:
    """Returns so many labels; the steps are done one after the other, each when the one before was seen."""
    found: list[Label] = []
    labels = source.labels()

    async def act() -> None:
        for step in steps:
            seen = len(history)
            step()
            await until(lambda: len(history) > seen)  # noqa: B023 - awaited at once

    history: list[Press] = []
    take = source.take

    def noted(press: Press) -> None:
        take(press)
        history.append(press)

    source.take = noted  # type: ignore[method-assign]
    acting = asyncio.ensure_future(act())
    async for label in labels:
        found.append(label)
        if len(found) == count:
            break
    await acting
    await labels.aclose()  # type: ignore[attr-defined]
    return found


def test_a_press_begins_a_class_and_the_next_one_ends_it(board: Board) -> None:
    before = monotonic_ns()
    source = serial(board)
    found = asyncio.run(
        told(source, 2, lambda: board.says("1\r\n"), lambda: board.says("2\n"), lambda: board.says("2\n"))
    )
    assert [label.name for label in found] == ["walk", "sit"]
    assert before < found[0].start_ns < found[0].end_ns == found[1].start_ns < found[1].end_ns < monotonic_ns()


def test_a_class_lasts_as_long_as_its_button_is_held(board: Board) -> None:
    source = serial(board, mode="hold")
    steps = [lambda t=t: board.says(t) for t in ("+1\n", "+2\n", "-2\n", "-1\n")]  # type: ignore[misc]
    found = asyncio.run(told(source, 3, *steps))
    assert [label.name for label in found] == ["walk", "sit", "walk"]


def test_a_button_without_a_class_is_said_once_and_counted(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    source = serial(board)
    with caplog.at_level(logging.WARNING):
        asyncio.run(told(source, 1, *[lambda t=t: board.says(t) for t in ("7\n", "7\n", "1\n", "1\n")]))  # type: ignore[misc]
    assert source.unknown == 2
    assert [m for m in caplog.messages if "no class" in m] == [
        "labels by serial: no class for button '7'; there are 1, 2"
    ]


def test_a_board_that_is_unplugged_ends_its_class_and_comes_back(
    board: Board, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(buttons, "RETRY_S", 0.02)

    async def main() -> list[Label]:
        source = serial(board)
        labels = source.labels()
        found = []

        async def act() -> None:
            board.says("1\n")
            await until(lambda: source._on is not None)
            board.port.unlink()
            board.unplug()
            await until(lambda: source.reconnects >= 3)
            board.plug()
            await until(lambda: not source._trouble)
            board.says("2\n2\n")

        acting = asyncio.ensure_future(act())
        async for label in labels:
            found.append(label)
            if len(found) == 2:
                break
        await acting
        await labels.aclose()  # type: ignore[attr-defined]
        return found

    with caplog.at_level(logging.INFO):
        found = asyncio.run(main())
    assert [label.name for label in found] == ["walk", "sit"]
    said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert ["went away" in m for m in said] == [True, False]
    assert "no such port" in said[1]
    assert caplog.messages[-1] == "labels by serial: work again"


class Edge(enum.Enum):
    RISING_EDGE = 1
    FALLING_EDGE = 2
    BOTH = 3


@dataclass
class Lines:
    """gpiod's request: events come through a pipe, so that a loop can wait for them."""

    asked: dict[Any, Any]
    events: list[Any] = field(default_factory=list)
    gone: bool = False

    def __post_init__(self) -> None:
        self.lines = [line for group in self.asked for line in group]
        self.offsets = [line if isinstance(line, int) else 105 for line in self.lines]
        self.fd, self._write = os.pipe()

    def edge(self, offset: int, kind: Edge, age_s: float = 0.0) -> None:
        t_ns = monotonic_ns() - round(age_s * NS)
        self.events.append(SimpleNamespace(line_offset=offset, event_type=kind, timestamp_ns=t_ns))
        os.write(self._write, b"!")

    def wait_edge_events(self, timeout: float) -> bool:
        return bool(self.events) or self.gone

    def read_edge_events(self) -> list[Any]:
        if self.gone:
            raise OSError(19, "No such device")
        os.read(self.fd, len(self.events))
        events, self.events = self.events, []
        return events

    def release(self) -> None:
        os.close(self.fd)
        os.close(self._write)


class Gpiod:
    """The parts of gpiod that buttons use."""

    EdgeEvent = SimpleNamespace(Type=Edge)
    line = SimpleNamespace(
        Direction=enum.Enum("Direction", "INPUT"),
        Edge=Edge,
        Bias=enum.Enum("Bias", "PULL_UP PULL_DOWN AS_IS DISABLED"),
        Clock=enum.Enum("Clock", "MONOTONIC"),
    )

    def __init__(self) -> None:
        self.fails: list[Exception] = []
        self.requests: list[Lines] = []

    def LineSettings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802 - the library's name
        return settings

    def request_lines(self, path: str, consumer: str, config: dict[Any, Any]) -> Lines:
        if self.fails:
            raise self.fails.pop(0)
        self.requests.append(Lines(config))
        return self.requests[-1]


@pytest.fixture
def gpiod(monkeypatch: pytest.MonkeyPatch) -> Gpiod:
    made = Gpiod()
    monkeypatch.setattr(buttons, "gpio_library", lambda: made)
    return made


def gpio(**options: Any) -> GpioLabels:
    return GpioLabels({"classes": {"PQ.05": "walk", "106": "sit"}, **options}, WallClock())


def test_gpio_lines_are_asked_for_and_their_edges_timed_by_the_kernel(gpiod: Gpiod) -> None:
    source = gpio(mode="hold")

    def edge(offset: int, kind: Edge, age_s: float = 0.0) -> Callable[[], None]:
        return lambda: gpiod.requests[0].edge(offset, kind, age_s)

    begin = monotonic_ns()

    async def main() -> list[Label]:
        steps = [edge(105, Edge.RISING_EDGE), edge(106, Edge.RISING_EDGE), edge(106, Edge.FALLING_EDGE)]
        return await told(source, 2, *steps)

    found = asyncio.run(main())
    assert [label.name for label in found] == ["walk", "sit"]
    ((lines, settings),) = gpiod.requests[0].asked.items()
    assert lines == ("PQ.05", 106)
    assert (settings["active_low"], settings["bias"].name, settings["debounce_period"].microseconds) == (
        True, "PULL_UP", 10_000,
    )  # fmt: skip
    assert begin <= found[0].start_ns < monotonic_ns()


def test_a_press_that_waited_is_placed_when_it_happened() -> None:
    source = gpio_without_library()
    now = monotonic_ns()
    source.take(Press("PQ.05", down=True, age_ns=2 * NS))
    source.take(Press("PQ.05", down=True, age_ns=1 * NS))
    (label,) = source._held._done
    assert label.start_ns == pytest.approx(now - 2 * NS, abs=50_000_000)
    assert label.end_ns == pytest.approx(now - 1 * NS, abs=50_000_000)


def gpio_without_library() -> GpioLabels:
    pytest.importorskip("gpiod", reason="gpiod is not installed: pip install 'edge-sdk[gpio]'")
    return gpio()


def test_lines_that_somebody_else_has_are_said_once_and_tried_again(
    gpiod: Gpiod, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(buttons, "RETRY_S", 0.01)
    gpiod.fails = [OSError(16, "Device or resource busy")] * 3
    source = gpio()

    async def main() -> list[Label]:
        async def act() -> None:
            await until(lambda: bool(gpiod.requests))
            gpiod.requests[0].edge(105, Edge.RISING_EDGE)
            await until(lambda: source._on is not None)
            gpiod.requests[0].gone = True
            os.write(gpiod.requests[0]._write, b"!")

        acting = asyncio.ensure_future(act())
        found = await told(source, 1)
        await acting
        return found

    with caplog.at_level(logging.WARNING):
        found = asyncio.run(main())
    assert [label.name for label in found] == ["walk"]  # it ended with its line
    assert source.reconnects >= 3
    assert [m.partition(": ")[2][:46] for m in caplog.messages] == [
        "/dev/gpiochip0: lines PQ.05, 106 cannot be had",
        "GPIO lines went away: [Errno 19] No such devic",
    ]


def test_a_chip_that_is_not_there_and_no_permission(tmp_path: Path) -> None:
    gone = buttons._explain_gpio(str(tmp_path / "gpiochip9"), (1,), FileNotFoundError(2, "No such file"))
    assert "gpiochip9: no such GPIO chip; here: " in gone
    (tmp_path / "gpiochip0").touch()
    denied = buttons._explain_gpio(str(tmp_path / "gpiochip0"), (1,), PermissionError(13, "Permission denied"))
    assert "permission denied; it belongs to group" in denied


def test_the_real_library_says_what_is_wrong() -> None:
    source = gpio_without_library()
    source._options = source._options.model_copy(update={"chip": "/dev/null"})
    with pytest.raises(buttons.SensorUnavailable, match=r"/dev/null: lines PQ\.05, 106 cannot be had"):
        source.open()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("serial", {"classes": CLASSES}, r"labels\.options:port: required"),
        ("serial", {"port": "/dev/x", "classes": {}}, r"labels\.options:classes"),
        ("gpio", {"classes": {"1": "walk"}, "bias": "up"}, r"labels\.options:bias: .*found 'up'"),
        ("gpio", {"classes": {"1": "walk"}, "colour": 1}, r"labels\.options:colour: unknown key"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        registry.load("labels", name)(options, WallClock(), epoch_ns=0)


@pytest.mark.parametrize(("name", "module"), [("serial", "serial"), ("gpio", "gpiod")])
def test_without_the_library_the_line_to_install_it(name: str, module: str) -> None:
    options = "{'port': '/dev/x', 'classes': {'1': 'walk'}}" if name == "serial" else "{'classes': {'1': 'walk'}}"
    code = (
        f"import sys; sys.modules['{module}'] = None\n"
        "from edge_sdk.core import registry\nfrom edge_sdk.core.clock import WallClock\n"
        f"try: registry.load('labels', '{name}')({options}, WallClock())\n"
        f"except Exception as error: assert type(error).__name__ == {PluginError.__name__!r}; print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"pip install 'edge-sdk[{name}]'" in done.stdout


def test_a_port_that_takes_its_time_to_open_holds_nobody_up(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening waits for what only another task of the loop does: on the loop itself it would wait for ever."""
    ready = threading.Event()
    opened = buttons.Port

    def slow(path: str, baud: int) -> buttons.Port:
        assert ready.wait(10), "the event loop stood still while the port was opened"
        ports.append(opened(path, baud))
        return ports[-1]

    ports: list[buttons.Port] = []
    monkeypatch.setattr(buttons, "Port", slow)

    async def main() -> Label:
        source = serial(board)
        source.compute = FieldCompute()
        labels = source.labels()
        first = asyncio.ensure_future(labels.__anext__())  # type: ignore[arg-type]
        asyncio.get_running_loop().call_later(0.05, ready.set)
        await until(lambda: len(ports) == 1)
        await asyncio.sleep(0)  # the source takes what its worker has opened
        for on in ("1", None):
            board.says("1\n")
            await until(lambda: source._on == on)  # noqa: B023 - awaited at once
        label = await first
        await labels.aclose()  # type: ignore[attr-defined]
        await source.compute.aclose()
        return label

    assert asyncio.run(main()).name == "walk"

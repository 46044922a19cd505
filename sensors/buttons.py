"""Labels by buttons: on a small board that writes lines to a serial port, or on GPIO lines.

A source that cannot be opened, or goes away, is tried again for as long as the program runs; a class that was held then
ends. Everything else of the device goes on.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field

from edge_sdk.core.clock import Clock, WallClock, monotonic_ns
from edge_sdk.core.compute import SHORT
from edge_sdk.core.config import parse
from edge_sdk.core.errors import PluginError, SensorUnavailable
from edge_sdk.core.held import Held
from edge_sdk.core.interfaces import LabelSource
from edge_sdk.core.records import Label
from edge_sdk.core.spec import Model
from sensors.serial_port import Port, explain, library

logger = logging.getLogger(__name__)

RETRY_S = 2.0  # between attempts to open, on the stream clock
LINE_MAX = 256  # bytes without an end of line


@dataclass(frozen=True, slots=True)
class Press:
    """What happened to a button."""

    button: str
    down: bool
    age_ns: int = 0  # how long ago, host, ns


class ButtonOptions(Model):
    """Keys that both sources have."""

    mode: Literal["press", "hold"] = "press"  # press: begins its class, again or another one ends it; hold: while down
    piece_s: float = Field(default=5.0, gt=0)  # a long span is told in pieces of this


class Device(Protocol):
    """Open buttons."""

    def fileno(self) -> int:
        """Returns what becomes readable when something happens."""

    def read(self) -> list[Press]:
        """Returns what happened since the last time, without waiting; SensorUnavailable: the device went away."""

    def close(self) -> None:
        """Lets go of the device."""


class ButtonLabels(LabelSource):
    """What both sources share: opening again, and from presses to spans.

    Args:
        options: `mode`, `piece_s`.
        classes: button → class.
        clock: the stream clock.
    """

    name: ClassVar[str]

    def __init__(self, options: ButtonOptions, classes: Mapping[str, str], clock: Clock) -> None:
        self.unknown = 0  # presses of buttons without a class
        self.reconnects = 0
        self._mode = options.mode
        self._classes = classes
        self._clock = clock
        self._speed = clock.speed if isinstance(clock, WallClock) else 1.0
        self._held = Held(clock, options.piece_s)
        self._down: list[str] = []  # buttons that are held, the newest last
        self._on: str | None = None  # what was pressed last, in mode "press"
        self._trouble = ""

    @abstractmethod
    def open(self) -> Device:
        """Returns the open buttons; SensorUnavailable says what to do. It may take its time: it runs off the loop."""

    async def labels(self) -> AsyncIterator[Label]:
        """Yields spans as they end, and pieces of long ones; waits for ever."""
        loop = asyncio.get_running_loop()
        while True:
            device = await self._opened()
            number = device.fileno()
            loop.add_reader(number, self._readable, device)
            try:
                async for label in self._held.labels():
                    yield label
            finally:
                loop.remove_reader(number)
                device.close()
            self.reconnects += 1

    async def _opened(self) -> Device:
        while True:
            try:
                device = await self.compute.run(SHORT, 0, self.open)
            except SensorUnavailable as error:
                self._say(error)
                self.reconnects += 1
                await self._clock.sleep(RETRY_S)
                continue
            if self._trouble:
                logger.info("labels by %s: work again", self.name)
            self._trouble = ""
            return device

    def _readable(self, device: Device) -> None:
        try:
            presses = device.read()
        except SensorUnavailable as error:
            self._say(error)
            asyncio.get_running_loop().remove_reader(device.fileno())
            self._down, self._on = [], None
            self._held.end()
            return
        for press in presses:
            self.take(press)

    def take(self, press: Press) -> None:
        """Begins or ends a class."""
        if press.button not in self._classes:
            self.unknown += 1
            level = logging.WARNING if self.unknown == 1 else logging.DEBUG
            known = ", ".join(self._classes)
            logger.log(level, "labels by %s: no class for button %r; there are %s", self.name, press.button, known)
            return
        name = self._name(press)
        self._held.press(name, self._clock.now_ns() - round(press.age_ns * self._speed))

    def _name(self, press: Press) -> str | None:
        """Returns the class that holds from this press on."""
        if self._mode == "press":
            if press.down:
                self._on = None if self._on == press.button else press.button
            return None if self._on is None else self._classes[self._on]
        self._down = [b for b in self._down if b != press.button] + [press.button] * press.down
        return self._classes[self._down[-1]] if self._down else None

    def _say(self, error: Exception) -> None:
        """Repeated trouble is said once."""
        if str(error) != self._trouble:
            logger.warning("labels by %s: %s", self.name, error)
        self._trouble = str(error)


class SerialOptions(ButtonOptions):
    """Keys of `[labels.<name>.options]` for `serial`."""

    port: str  # device file; /dev/serial/by-id/… survives a reboot
    baud: int = Field(default=9600, ge=50)
    classes: dict[str, str] = Field(min_length=1)  # what the board calls a button → class


class SerialLabels(ButtonLabels):
    """A board that writes a line per press: `NAME` or `+NAME`, and `-NAME` when the button is let go.

    Args:
        options: see `SerialOptions`.
        clock: the stream clock.
        epoch_ns: not used.
    """

    name = "serial"

    def __init__(self, options: Mapping[str, Any], clock: Clock, *, epoch_ns: int | None = None) -> None:
        self._options = o = parse(options, SerialOptions, "labels.options")
        super().__init__(o, o.classes, clock)
        library()

    def open(self) -> Device:
        return _SerialButtons(Port(self._options.port, self._options.baud))


class ButtonLines:
    """Lines of a board to presses; pure."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Press]:
        """Returns the presses of the lines that are complete with these bytes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_MAX:
            self._rest = b""
        names = [line.decode(errors="replace").strip() for line in lines]
        return [Press(name.lstrip("+-"), down=not name.startswith("-")) for name in names if name.strip("+-")]


class _SerialButtons:
    def __init__(self, port: Port) -> None:
        self._port = port
        self._lines = ButtonLines()

    def fileno(self) -> int:
        return self._port.fileno()

    def read(self) -> list[Press]:
        return self._lines.feed(self._port.drain(0))

    def close(self) -> None:
        self._port.close()


class GpioOptions(ButtonOptions):
    """Keys of `[labels.<name>.options]` for `gpio`."""

    chip: str = "/dev/gpiochip0"
    classes: dict[str, str] = Field(min_length=1)  # line, by name ("PQ.05") or number → class
    bias: Literal["pull_up", "pull_down", "disabled", "as_is"] = "pull_up"
    active_low: bool = True  # the button connects the line to ground
    debounce_s: float = Field(default=0.01, ge=0, le=1)


class GpioLabels(ButtonLabels):
    """Buttons on GPIO lines, by the kernel's character device; times are the kernel's.

    Args:
        options: see `GpioOptions`.
        clock: the stream clock.
        epoch_ns: not used.
    """

    name = "gpio"

    def __init__(self, options: Mapping[str, Any], clock: Clock, *, epoch_ns: int | None = None) -> None:
        self._options = o = parse(options, GpioOptions, "labels.options")
        super().__init__(o, o.classes, clock)
        self._gpiod = gpio_library()

    def open(self) -> Device:
        gpiod, o = self._gpiod, self._options
        lines = tuple(int(line) if line.isdecimal() else line for line in o.classes)
        line = gpiod.line
        settings = gpiod.LineSettings(
            direction=line.Direction.INPUT,
            edge_detection=line.Edge.BOTH,
            bias=line.Bias[o.bias.upper()],
            active_low=o.active_low,
            debounce_period=dt.timedelta(seconds=o.debounce_s),
            event_clock=line.Clock.MONOTONIC,
        )
        try:
            request = gpiod.request_lines(o.chip, consumer="edge-sdk labels", config={lines: settings})
        except (OSError, ValueError, KeyError) as error:
            raise SensorUnavailable(_explain_gpio(o.chip, lines, error)) from error
        return _GpioButtons(gpiod, request)


class _GpioButtons:
    def __init__(self, gpiod: Any, request: Any) -> None:
        self._gpiod = gpiod
        self._request = request
        self._names = {
            offset: str(line) for offset, line in zip(request.offsets, request.lines, strict=True)
        }  # the lines as they were asked for

    def fileno(self) -> int:
        return int(self._request.fd)

    def read(self) -> list[Press]:
        rising = self._gpiod.EdgeEvent.Type.RISING_EDGE
        try:
            events = self._request.read_edge_events() if self._request.wait_edge_events(0) else []
        except OSError as error:
            raise SensorUnavailable(f"GPIO lines went away: {error}") from error
        now_ns = monotonic_ns()
        return [
            Press(self._names[e.line_offset], e.event_type is rising, max(0, now_ns - e.timestamp_ns)) for e in events
        ]

    def close(self) -> None:
        self._request.release()


def gpio_library() -> Any:
    """Returns gpiod; PluginError tells how to install it."""
    try:
        import gpiod
        import gpiod.line
    except ImportError as error:
        raise PluginError("labels by gpio need gpiod: pip install 'edge-sdk[gpio]'") from error
    return gpiod


def _explain_gpio(chip: str, lines: tuple[int | str, ...], error: Exception) -> str:
    """Returns why GPIO lines cannot be had, and what to do."""
    if isinstance(error, PermissionError):
        return explain(chip, error)
    if isinstance(error, FileNotFoundError) and not Path(chip).exists():
        here = ", ".join(sorted(str(p) for p in Path("/dev").glob("gpiochip*"))) or "none"
        return f"{chip}: no such GPIO chip; here: {here}"
    asked = ", ".join(map(str, lines))
    return f"{chip}: lines {asked} cannot be had: {error}; `gpioinfo` says what they are called and who uses them"


__all__ = [
    "ButtonLabels",
    "ButtonLines",
    "ButtonOptions",
    "GpioLabels",
    "GpioOptions",
    "Press",
    "SerialLabels",
    "SerialOptions",
]

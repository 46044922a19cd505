"""Labels by keys, for the person who wears the device: a key begins a class, 0 ends it, q goes home."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TextIO

from edge_sdk.codecs import wire
from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.errors import NotConnected, TransportError
from edge_sdk.core.interfaces import Disconnected, Message, Transport
from edge_sdk.core.messages import LabelMessage, SpecMessage
from edge_sdk.core.spec import FederationSpec
from edge_sdk.runtime.labels import KeyLabels
from edge_sdk.runtime.timebase import StreamTime
from edge_sdk.transport.topics import Topics

KEYS = "123456789abcdefghijklmnoprstuvwxyz"  # of the classes, in their order; q ends
QUIT = ("q", "Q", "\x03", "\x04")
NONE = ("0", " ")
_FINGER_NS = 20_000_000  # uncertainty of a person's finger and this program
_REFRESH_S = 0.5
_FAREWELL_S = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

log = logging.getLogger(__name__)


async def classes(transport: Transport, federation: str, *, clock: Clock, wait_s: float) -> tuple[str, ...]:
    """Returns the class names of a federation from its retained spec.

    Raises:
        TransportError: there is no connection, or none came in time; says what is missing.
    """
    topics = Topics(federation)
    await transport.subscribe(topics.spec)
    trouble = f"federation {federation!r} has published no spec on this broker; start its coordinator"
    try:
        async with clock.deadline(wait_s):
            async for event in transport.events():
                if isinstance(event, Disconnected):
                    trouble = event.reason
                    break
                if isinstance(event, Message) and event.topic == topics.spec:
                    spec = wire.decode(SpecMessage, event.payload).spec
                    return FederationSpec.model_validate_json(spec).classes
    except TimeoutError:
        pass
    except ValueError as error:
        trouble = f"the spec of federation {federation!r} cannot be read: {error}"
    raise TransportError(f"the classes are not known: {trouble}")


class Labeller:
    """Publishes labels as keys are pressed.

    Args:
        names: class names.
        transport: started.
        topic: where labels go.
        clock: what they are timed on.
        view: shows a person where they are.
    """

    def __init__(self, names: tuple[str, ...], *, transport: Transport, topic: str, clock: Clock, view: View) -> None:
        self.sent = 0
        self.lost = 0
        self._keys = dict(zip(KEYS, names, strict=False))
        self._transport = transport
        self._topic = topic
        self._clock = clock
        self._view = view
        self._time = StreamTime(clock, clock)
        self._source = KeyLabels({}, clock)
        self._name: str | None = None
        self._since_ns = clock.now_ns()

    async def run(self, keys: AsyncIterator[str]) -> int:
        """Labels until `q` or the end of the keys; returns how many labels were sent."""
        async with self._clock.group() as group:
            group.start(self._publish(), name="publish labels")
            group.start(self._refresh(), name="show the time")
            async for key in keys:
                if key in QUIT:
                    break
                if key in NONE or key in self._keys:
                    self._press(self._keys.get(key))
            self._source.press(None)
            await self._clock.sleep(_FAREWELL_S)  # the last piece is still on its way
            group.cancel()
        return self.sent

    def _press(self, name: str | None) -> None:
        self._source.press(name)
        self._name, self._since_ns = name, self._clock.now_ns()
        self._view.began(name)
        self._show()

    def _show(self) -> None:
        held_s = (self._clock.now_ns() - self._since_ns) / NS
        self._view.holds(self._name, held_s, self.sent, self.lost)

    async def _refresh(self) -> None:
        while True:
            self._show()
            await self._clock.sleep(_REFRESH_S)

    async def _publish(self) -> None:
        async for piece in self._source.labels():
            start_ns, err_ns = self._time.utc(piece.start_ns)
            end_ns, _ = self._time.utc(piece.end_ns)
            message = LabelMessage(piece.name, start_ns, end_ns, _FINGER_NS + err_ns)
            try:
                await self._transport.publish(self._topic, wire.encode(message))
            except NotConnected as error:
                self.lost += 1
                log.warning("a label of %.1f s was lost: %s", (piece.end_ns - piece.start_ns) / NS, error)
                continue
            self.sent += 1


class View:
    """Tells a person, on a terminal or through a pipe, which keys there are and what holds now.

    Args:
        out: where to.
        live: it is a terminal, whose last line can be written again.
    """

    def __init__(self, out: TextIO, *, live: bool) -> None:
        self._out = out
        self._live = live

    def keys(self, device: str, names: tuple[str, ...]) -> None:
        """Shows the classes with their keys."""
        lines = [f"labels for device {device}", *(f"  {key}  {name}" for key, name in zip(KEYS, names, strict=False))]
        lines += ["  0  none of these", "  q  end"]
        if len(names) > len(KEYS):
            lines.append(f"  ({len(names) - len(KEYS)} more classes have no key)")
        self._write("\n".join(lines) + "\n")

    def began(self, name: str | None) -> None:
        """Shows that a class begins."""
        if not self._live:
            self._write(f"label: {name or 'none'}\n")

    def holds(self, name: str | None, held_s: float, sent: int, lost: int) -> None:
        """Shows the class that holds, and for how long it has."""
        if self._live:
            minutes, seconds = divmod(int(held_s), 60)
            missing = f", {lost} lost" if lost else ""
            self._write(f"\r\x1b[K{name or 'none'}  {minutes}:{seconds:02d}  ({sent} labels sent{missing})")

    def end(self) -> None:
        """Leaves the line that is written again and again."""
        if self._live:
            self._write("\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


async def pressed(stream: TextIO) -> AsyncIterator[str]:
    """Yields single characters of a terminal or a pipe; ends with it, and with SIGINT and SIGTERM."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str] = asyncio.Queue()

    def readable() -> None:
        found = os.read(stream.fileno(), 64).decode(errors="ignore")  # past the stream's buffer, which select ignores
        for key in found or ("",):
            queue.put_nowait(key)

    with raw(stream):
        loop.add_reader(stream.fileno(), readable)
        for number in _SIGNALS:
            loop.add_signal_handler(number, queue.put_nowait, "")
        try:
            while key := await queue.get():
                yield key
        finally:
            loop.remove_reader(stream.fileno())
            for number in _SIGNALS:
                loop.remove_signal_handler(number)


@contextmanager
def raw(stream: TextIO) -> Iterator[None]:
    """Makes a terminal give each key at once; a pipe is left alone."""
    if not stream.isatty():
        yield
        return
    before = termios.tcgetattr(stream)
    tty.setcbreak(stream)
    try:
        yield
    finally:
        termios.tcsetattr(stream, termios.TCSADRAIN, before)


__all__ = ["KEYS", "NONE", "QUIT", "Labeller", "View", "classes", "pressed", "raw"]

"""Labels by keys, for the person who wears the device: a digit begins a class, any other key ends it."""

from __future__ import annotations

import asyncio
import logging
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from edge_sdk.codecs import wire
from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.errors import NotConnected, WireFormatError
from edge_sdk.core.interfaces import Message, Transport
from edge_sdk.core.messages import LabelMessage, SpecMessage
from edge_sdk.core.spec import FederationSpec
from edge_sdk.runtime.labels import KeyLabels
from edge_sdk.transport.topics import Topics

QUIT = ("q", "\x03", "\x04")
_UTC_ERR_NS = 20_000_000  # a person's finger and this program

log = logging.getLogger(__name__)


async def classes(transport: Transport, federation: str, *, clock: Clock, wait_s: float) -> tuple[str, ...]:
    """Returns the class names of a federation from its retained spec; () if none comes in time."""
    topics = Topics(federation)
    await transport.subscribe(topics.spec)
    try:
        async with clock.deadline(wait_s):
            async for event in transport.events():
                if isinstance(event, Message) and event.topic == topics.spec:
                    spec = wire.decode(SpecMessage, event.payload).spec
                    return FederationSpec.model_validate_json(spec).classes
    except TimeoutError:
        log.warning("no spec of federation %r on this broker within %g s", federation, wait_s)
    except WireFormatError as error:
        log.warning("the spec of federation %r cannot be read: %s", federation, error)
    return ()


async def label(
    keys: AsyncIterator[str], names: tuple[str, ...], *, transport: Transport, topic: str, clock: Clock,
    say: Callable[[str], None],
) -> int:  # fmt: skip
    """Publishes labels as keys are pressed, until `q` or the end of the keys; returns how many were sent."""
    source = KeyLabels({}, clock)
    sent = 0

    async def publish() -> None:
        nonlocal sent
        offset_ns = clock.utc_ns() - clock.now_ns()
        async for piece in source.labels():
            message = LabelMessage(piece.name, piece.start_ns + offset_ns, piece.end_ns + offset_ns, _UTC_ERR_NS)
            try:
                await transport.publish(topic, wire.encode(message))
            except NotConnected as error:
                log.warning("a label of %.1f s was lost: %s", (piece.end_ns - piece.start_ns) / NS, error)
                continue
            sent += 1

    async with clock.group() as group:
        group.start(publish(), name="publish labels")
        async for key in keys:
            if key in QUIT:
                break
            name = names[int(key) - 1] if key.isdigit() and 0 < int(key) <= len(names) else None
            source.press(name)
            say(f"label: {name or 'none'}")
        source.press(None)
        await clock.sleep(0.2)  # the last piece is still on its way
        group.cancel()
    return sent


async def pressed(stream: TextIO) -> AsyncIterator[str]:
    """Yields single characters of a terminal or a pipe; ends with it."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str] = asyncio.Queue()

    def readable() -> None:
        queue.put_nowait(stream.read(1))

    with raw(stream):
        loop.add_reader(stream.fileno(), readable)
        try:
            while key := await queue.get():
                if key != "\n":
                    yield key
        finally:
            loop.remove_reader(stream.fileno())


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


__all__ = ["QUIT", "classes", "label", "pressed", "raw"]

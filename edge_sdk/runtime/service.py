"""Telling systemd how the program is doing: ready, alive, a line of status, stopping (the sd_notify protocol).

The watchdog is fed by a coroutine of the very loop that senses and predicts: where that loop stands still, systemd
starts the program anew. Without a NOTIFY_SOCKET all of this does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

from edge_sdk.core.clock import Clock
from edge_sdk.runtime.events import LinkChanged, TrainingWaits

log = logging.getLogger(__name__)


class Service:
    """The connection to systemd; an observer of the device's events.

    Args:
        clock: the loop's clock.
        environment: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID count; None: the process's own.
    """

    def __init__(self, clock: Clock, environment: Mapping[str, str] | None = None) -> None:
        given = os.environ if environment is None else environment
        self._clock = clock
        self._address = _address(given.get("NOTIFY_SOCKET", ""))
        self._interval_s = _interval_s(given)
        self._link, self._training = "", ""
        self._troubled = False

    def __call__(self, event: Any) -> None:
        if isinstance(event, LinkChanged):
            self._link = "connected" if event.connected else f"offline: {event.detail}"
        elif isinstance(event, TrainingWaits):
            self._training = f"training waits: {event.reason}" if event.reason else ""
        else:
            return
        self._tell(f"STATUS={'; '.join(part for part in (self._link, self._training) if part)}")

    async def around(self, work: Coroutine[Any, Any, None]) -> None:
        """Awaits the program's work, feeding the watchdog from the same loop; ends with it, as it ends."""
        try:
            async with self._clock.group() as group:
                feeding = group.start(self._feed(), name="watchdog")
                await work
                feeding.cancel()
        finally:
            self._tell("STOPPING=1")

    async def _feed(self) -> None:
        self._tell("READY=1")
        while self._interval_s is not None and self._address is not None:
            self._tell("WATCHDOG=1")
            await self._clock.sleep(self._interval_s)

    def _tell(self, text: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.settimeout(0.0)
                out.sendto(text.replace("\n", " ").encode(), self._address)
            self._troubled = False
        except OSError as error:
            level = logging.DEBUG if self._troubled else logging.WARNING
            log.log(level, "systemd cannot be told %s: %s", text.partition("=")[0], error)
            self._troubled = True


def _address(told: str) -> str | None:
    """Returns the socket's address; "@" stands for the NUL of the abstract name space."""
    if told[:1] not in ("/", "@"):
        return None
    return f"\0{told[1:]}" if told.startswith("@") else told


def _interval_s(given: Mapping[str, str]) -> float | None:
    """Returns half of the watchdog's limit; None where there is none, or it is for another process."""
    if given.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    with suppress(ValueError):
        limit_s = int(given.get("WATCHDOG_USEC", "0")) / 1e6
        return limit_s / 2 if limit_s > 0 else None
    return None


__all__ = ["Service"]

"""Wakes the coordinator when something is due without a message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from edge_sdk.core.clock import NS, Clock


class Alarm:
    """One alarm, set again after everything that happens.

    Args:
        clock: what it is set on.
        ring: awaited when the time has come.
    """

    def __init__(self, clock: Clock, ring: Callable[[], Awaitable[None]]) -> None:
        self._clock = clock
        self._ring = ring
        self._due_ns: int | None = None
        self._changed = asyncio.Event()

    def set(self, times_ns: list[int | None]) -> None:
        """Sets the alarm to the earliest of some times; None stands for never."""
        due_ns = min((t for t in times_ns if t is not None), default=None)
        if due_ns != self._due_ns:
            self._due_ns = due_ns
            self._changed.set()

    async def run(self) -> None:
        """Rings, for ever."""
        while True:
            self._changed.clear()
            left_s = float("inf") if self._due_ns is None else max(0, self._due_ns - self._clock.now_ns()) / NS
            try:
                async with self._clock.deadline(left_s):
                    await self._changed.wait()
            except TimeoutError:
                self._due_ns = None
                await self._ring()


__all__ = ["Alarm"]

"""Labels that a person gives as they go: a key or button begins a class, and ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from edge_sdk.core.clock import Clock
from edge_sdk.core.records import Label


class Held:
    """Makes labels of what holds now. A long activity is told in pieces, so that its windows need not wait for its end.

    Args:
        clock: the stream clock.
        piece_s: longest span told at once.
    """

    def __init__(self, clock: Clock, piece_s: float) -> None:
        self._clock = clock
        self._piece_s = piece_s
        self._name: str | None = None
        self._since_ns = 0
        self._ended = False
        self._done: list[Label] = []
        self._changed = asyncio.Event()

    def press(self, name: str | None, t_ns: int | None = None) -> None:
        """The person does this from a time on (None: now); name None: nothing that has a name."""
        self._end_piece(self._clock.now_ns() if t_ns is None else t_ns)
        self._name = name
        self._changed.set()

    def end(self) -> None:
        """Nobody can tell any more: what holds ends now, and so does labels()."""
        self.press(None)
        self._ended = True

    def _end_piece(self, now_ns: int) -> None:
        if self._name is not None and now_ns > self._since_ns:
            self._done.append(Label(self._since_ns, now_ns, self._name))
        self._since_ns = max(now_ns, self._since_ns)

    async def labels(self) -> AsyncIterator[Label]:
        """Yields a piece per change, and at least one every `piece_s` while a class lasts; waits until end()."""
        self._ended = False
        while not self._ended:
            try:
                async with self._clock.deadline(float("inf") if self._name is None else self._piece_s):
                    await self._changed.wait()
            except TimeoutError:
                self._end_piece(self._clock.now_ns())
            self._changed.clear()
            done, self._done = self._done, []
            for label in done:
                yield label


__all__ = ["Held"]

"""The task that a device has been given: at most one waits, at most one is under way."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass

from edge_sdk.core.clock import Clock
from edge_sdk.core.messages import QUERY, Task

KINDS = ("train", QUERY)  # that a trainer carries out
_REMEMBERED = 16  # tasks whose updates were accepted; a broker may deliver a task twice

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offered:
    """A task and when it came."""

    task: Task
    t_ns: int  # receipt, on the device's clock


class Desk:
    """Takes tasks from the coordinator and gives them to the trainer.

    Args:
        device: our id, for messages.
        clock: stamps receipts.
    """

    def __init__(self, device: str, clock: Clock) -> None:
        self._device = device
        self._clock = clock
        self._waiting: Offered | None = None
        self._current = ""
        self._owed = ""  # its update is on its way; what the coordinator says of it is still to come
        self._finished: deque[str] = deque(maxlen=_REMEMBERED)
        self._changed = asyncio.Event()

    @property
    def idle(self) -> bool:
        """Says whether there is neither a task waiting nor one under way."""
        return self._waiting is None and not self._current

    def offer(self, task: Task) -> None:
        """Takes a task from the wire; the newest one counts, one that is known already is passed over."""
        if task.kind == "stop":
            log.info("%s: the coordinator ends training; predicting goes on", self._device)
            self._waiting = None
        elif task.kind not in KINDS:
            log.warning("%s: task %s is of kind %r, which this version cannot do", self._device, task.id, task.kind)
        elif task.id not in (self._current, self._owed, *self._finished):
            self._waiting = Offered(task, self._clock.now_ns())
            self._changed.set()

    async def take(self) -> Offered:
        """Waits for a task and marks it as under way."""
        while self._waiting is None:
            self._changed.clear()
            await self._changed.wait()
        offered, self._waiting = self._waiting, None
        self._current = offered.task.id
        return offered

    def put_down(self) -> None:
        """The task under way has ended without an update; it may be offered again."""
        self._current = ""

    def hand_in(self) -> None:
        """The update of the task under way is in the outbox."""
        self._owed, self._current = self._current, ""

    def settled(self, task: str, *, accepted: bool) -> None:
        """The coordinator has answered the update of a task; one that was accepted will not be done again."""
        if self._owed == task:
            self._owed = ""
        if accepted:
            self._finished.append(task)
            if self._waiting is not None and self._waiting.task.id == task:
                self._waiting = None


__all__ = ["KINDS", "Desk", "Offered"]

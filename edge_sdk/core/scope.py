"""Deadlines and groups of tasks, as Python 3.10 lacks them (`asyncio.timeout` and `TaskGroup` came with 3.11).

Both interrupt the task they are in by cancelling it. Two reasons to cancel may fall on one instant (under virtual
time they often do), and asyncio delivers them as one CancelledError. So a scope that ends for its own reason asks
whether somebody else wants the task to stop as well, and if so lets the cancellation go on: a scope further out says
so itself; a cancel from outside shows in `Task.cancelling()`, from Python 3.11 on. On 3.10 such a cancel that falls
into the same turn of the loop as our own is taken for ours.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Coroutine
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Scope:
    """A stretch of one task that can interrupt it; the base of Deadline and Group."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._outer: Scope | None = None
        self._interrupted = False  # this scope has cancelled its task
        self._before = 0  # cancel requests that the task already had

    def _enter(self) -> None:
        self._task = asyncio.current_task()
        if self._task is None:
            raise RuntimeError("a deadline or a group needs a task around it")
        outer = _innermost.get()
        self._outer = outer if outer is not None and outer._task is self._task else None
        self._before = _cancelling(self._task)
        _innermost.set(self)  # no token: an async generator may leave in another context than it entered

    def _interrupt(self) -> None:
        assert self._task is not None
        self._interrupted = True
        self._task.cancel()

    def _leave(self) -> bool:
        """Takes our own cancel request back; says whether somebody else wants the task to stop as well."""
        assert self._task is not None
        _innermost.set(self._outer)
        if self._interrupted and sys.version_info >= (3, 11):
            self._task.uncancel()
        scope = self._outer
        while scope is not None and not scope._interrupted:
            scope = scope._outer
        return scope is not None or _cancelling(self._task) > self._before


_innermost: ContextVar[Scope | None] = ContextVar("innermost scope", default=None)


def _cancelling(task: asyncio.Task[Any]) -> int:
    if sys.version_info >= (3, 11):
        return task.cancelling()
    return 0


class Deadline(Scope):
    """Async context manager that raises TimeoutError when its body takes longer than `delay_s` loop seconds."""

    def __init__(self, delay_s: float) -> None:
        super().__init__()
        self._delay_s = delay_s
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Deadline:
        self._enter()
        if math.isfinite(self._delay_s):
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self._delay_s), self._interrupt)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # it holds our context, and that this scope
        others = self._leave()
        if self._interrupted and kind is asyncio.CancelledError and not others:
            raise TimeoutError(f"took longer than {self._delay_s:g} s") from error


class Group(Scope):
    """Tasks that live and die together: the first error cancels the others and is raised as it is."""

    def __init__(self) -> None:
        super().__init__()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._error: BaseException | None = None
        self._leaving = False
        self._stopping = False  # the tasks have been told once; a second time would break into their cleaning up

    async def __aenter__(self) -> Group:
        self._enter()
        return self

    def start(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Starts a named task of the group.

        Raises:
            RuntimeError: the group has ended, or is being stopped.
        """
        if self._stopping or (self._leaving and not self._tasks):
            coroutine.close()
            raise RuntimeError(f"cannot start {name!r}: the group has ended")
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def cancel(self) -> None:
        """Asks every task of the group to stop."""
        for task in tuple(self._tasks):
            task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None or self._error is not None:
            return
        self._error = task.exception()
        self._stop()
        if not self._leaving:
            self._interrupt()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving = True
        if kind is not None and kind is not asyncio.CancelledError and self._error is None:
            self._error = error  # the body's own error came first, and goes on by itself
        if kind is not None:
            self._stop()
        outside = await self._wait()
        others = self._leave()
        if self._interrupted and others:
            raise asyncio.CancelledError from self._error
        if self._error is not None and self._error is not error:
            raise self._error
        if outside is not None and error is None:
            raise outside

    async def _wait(self) -> BaseException | None:
        """Waits for all tasks; returns the CancelledError that came in from outside meanwhile."""
        outside: BaseException | None = None
        while self._tasks:
            try:
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError as cancelled:
                outside = cancelled
                self._stop()
        return outside

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self.cancel()


__all__ = ["Deadline", "Group", "Scope"]

"""Time: the only module that reads it or waits for it.

Product code is handed a `Clock` and never asks which one. `WallClock` is the host's monotonic clock, optionally sped
up (a replay at 20 × sees 20 s pass in one); `VirtualClock` belongs to a `VirtualLoop`, on which waiting takes no time:
when nothing is ready, time jumps to the next timer. A thread that outlives its await would let virtual time run away
(a 50 ms thread once cost over 2,000 virtual seconds), hence `core.compute`.

Python 3.10 has neither `asyncio.timeout` nor `TaskGroup`: `Clock.deadline` and `Clock.group` stand for them
(`core.scope`).
"""

from __future__ import annotations

import asyncio
import heapq
import math
import selectors
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar, cast

from edge_sdk.core.errors import Deadlock
from edge_sdk.core.scope import Deadline, Group

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

NS = 1_000_000_000
T = TypeVar("T")


monotonic_ns = time.monotonic_ns  # for threads of drivers, which have no Clock


class Clock(ABC):
    """The seam between product code and time."""

    @abstractmethod
    def now_ns(self) -> int:
        """Monotonic time, ns."""

    @abstractmethod
    def utc_ns(self) -> int:
        """Time of day, ns since 1970-01-01 UTC."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Waits for this long on this clock."""

    @abstractmethod
    def deadline(self, seconds: float) -> Deadline:
        """Returns a context manager that raises TimeoutError after this long; `inf` never does."""

    async def sleep_until(self, t_ns: int) -> None:
        """Waits until `now_ns() >= t_ns`."""
        await self.sleep(max(0, t_ns - self.now_ns()) / NS)

    def group(self) -> Group:
        """Returns a task group."""
        return Group()


class WallClock(Clock):
    """The host's monotonic clock, `speed` times as fast.

    Args:
        speed: seconds of this clock per second of the host.
    """

    def __init__(self, speed: float = 1.0) -> None:
        if speed <= 0:
            raise ValueError(f"speed must be positive, found {speed}")
        self.speed = speed
        self._start_ns = time.monotonic_ns()
        self._utc_ns = time.time_ns()

    def now_ns(self) -> int:
        if self.speed == 1.0:
            return time.monotonic_ns()
        return self._start_ns + int((time.monotonic_ns() - self._start_ns) * self.speed)

    def utc_ns(self) -> int:
        if self.speed == 1.0:
            return time.time_ns()
        return self._utc_ns + self.now_ns() - self._start_ns

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.speed)

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds / self.speed)


class VirtualClock(Clock):
    """The clock of a `VirtualLoop`."""

    def __init__(self, loop: VirtualLoop, epoch_utc_ns: int = 1_600_000_000 * NS) -> None:
        self._loop = loop
        self._epoch_utc_ns = epoch_utc_ns

    def now_ns(self) -> int:
        return self._loop.now_ns

    def utc_ns(self) -> int:
        return self._epoch_utc_ns + self._loop.now_ns

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds)


class _Timer(asyncio.TimerHandle):
    """A timer in whole nanoseconds; timers of one instant keep the order in which they were set."""

    def __init__(
        self, when_ns: int, order: int, callback: Callable[..., object], args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop, context: Context | None,
    ) -> None:  # fmt: skip
        super().__init__(when_ns / NS, callback, args, loop, context)
        self.when_ns = when_ns
        self.order = order

    def _run(self) -> None:
        loop = cast(VirtualLoop, self._loop)  # type: ignore[attr-defined]
        if self.when_ns > loop.now_ns:  # the base class compares floats, which are coarse after months
            loop.advance(self.when_ns)
        super()._run()

    def __lt__(self, other: object) -> bool:
        return (self.when_ns, self.order) < (cast(_Timer, other).when_ns, cast(_Timer, other).order)


_LOOK_EVERY = 32  # turns of the loop


class _NeverWaiting(selectors.SelectSelector):
    """A selector that looks but never waits, and moves virtual time instead.

    Nothing of a simulation comes from outside: while there is work to do it looks now and then only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.jump: Callable[[], None] = lambda: None
        self._passed = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._passed += 1
        if timeout == 0 and self._passed % _LOOK_EVERY:
            return []
        ready = super().select(0)
        if not ready and timeout != 0:
            self.jump()
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on which waiting takes no time.

    Nothing ready and no timer set raises `Deadlock`, which names the tasks that wait.
    """

    def __init__(self) -> None:
        selector = _NeverWaiting()
        super().__init__(selector)
        selector.jump = self._jump
        self._order = 0
        self.advance(0)

    def advance(self, to_ns: int) -> None:
        """Moves time; it is asked for far more often than it moves."""
        self.now_ns = to_ns
        self._now_s = to_ns / NS
        self._clock_resolution = math.ulp(self._now_s)  # pops exactly the timers that are due, none earlier

    def time(self) -> float:
        return self._now_s

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: Unpack[Ts],
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self._set(self.now_ns + round(delay * NS), callback, args, context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: Unpack[Ts],
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self._set(round(when * NS), callback, args, context)

    def _set(
        self, when_ns: int, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> asyncio.TimerHandle:
        self._order += 1
        timer = _Timer(max(when_ns, self.now_ns), self._order, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]  # where the base class looks for timers
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def _jump(self) -> None:
        scheduled: list[_Timer] = self._scheduled  # type: ignore[attr-defined]
        if not scheduled:
            waiting = sorted(task.get_name() for task in asyncio.all_tasks(self))
            raise Deadlock(f"virtual time stands still at {self.time():g} s; waiting: {', '.join(waiting)}")
        self.advance(max(self.now_ns, scheduled[0].when_ns))


def run_virtual(main: Callable[[VirtualClock], Coroutine[Any, Any, T]]) -> T:
    """Runs `main(clock)` on a fresh virtual loop and returns its result."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main(VirtualClock(loop)))
    finally:
        _cancel_all(loop)
        loop.close()


def _cancel_all(loop: VirtualLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())


__all__ = [
    "NS",
    "Clock",
    "Deadline",
    "Group",
    "VirtualClock",
    "VirtualLoop",
    "WallClock",
    "monotonic_ns",
    "run_virtual",
]

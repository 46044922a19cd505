"""Work that leaves the event loop: the only way there, besides the threads of `streams.pump`.

A job is a module-level function with plain records and arrays as arguments, so that it can cross a process border.
Lanes: "train" is one spawned, niced child (a training *thread* was seen to push the p99 of predictions from 5 to
75 ms); "short" is a small thread pool; every other lane name is one ordered worker thread of its own (stores).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from edge_sdk.core.clock import NS, Clock
from edge_sdk.core.errors import ComputeError

P = ParamSpec("P")
T = TypeVar("T")

TRAIN = "train"
SHORT = "short"


class Compute(ABC):
    """The seam between coroutines and blocking work."""

    @abstractmethod
    async def run(self, lane: str, cost_ns: int, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs the job and returns its result.

        Args:
            lane: "train", "short", or the name of an ordered lane.
            cost_ns: modelled duration; only simulation looks at it.
            job: a module-level function (in the train lane), any callable elsewhere.
            *args: its arguments; plain records and arrays in the train lane.
            **kwargs: the same.
        """

    async def aclose(self) -> None:  # noqa: B027  nothing to end unless there are workers
        """Ends the workers; jobs under way are awaited (train: terminated)."""


class InlineCompute(Compute):
    """Runs every job at once where it is asked for; for tests and small tools."""

    async def run(self, lane: str, cost_ns: int, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return job(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Stacking:
    """How jobs that are under way at the same time become one computation.

    A job's result does not depend on anything that comes after its start, so that it may be computed at any time before
    it is due: jobs with equal keys are collected until the first of them is due, or there are `most`.
    """

    job: Callable[..., Any]  # the job that can be stacked; others run by themselves
    key: Callable[..., Hashable | None]  # of its arguments; None: it runs by itself
    run: Callable[[list[tuple[Any, ...]]], list[Any]]  # picklable; arguments → a result or Exception for each
    most: int  # jobs in one computation


class ModelledCompute(Compute):
    """Jobs of the train lane finish at start + modelled cost on the given clock, in that order.

    The real work runs inline, or in worker processes while virtual time goes on to other jobs; either way the
    results are the same. The loop blocks for a worker that is not done when its modelled time is up. Which jobs are
    stacked follows from their times on the clock alone, never from how fast the workers are.

    Args:
        clock: virtual, or a wall clock on which modelled durations are slept out.
        workers: worker processes; 0 runs jobs inline.
        initializer: module-level function that every worker runs once (one torch thread, …).
        stacking: how jobs become one computation; None: each runs by itself.
    """

    def __init__(
        self, clock: Clock, workers: int = 0, initializer: Callable[[], None] | None = None,
        stacking: Stacking | None = None,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._pool: Executor | None = None
        self._stacking = stacking
        self._stacks = WeakValueDictionary[Hashable, _Stack]()  # by key, the newest; held by those who wait for it
        if workers > 0:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                workers, mp_context=context, initializer=_start_worker, initargs=(initializer,)
            )

    async def run(self, lane: str, cost_ns: int, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if lane != TRAIN:
            return job(*args, **kwargs)
        end_ns = self._clock.now_ns() + cost_ns
        future: Future[T] | _Place = self._stacked(job, args) or self._submit(job, *args, **kwargs)
        try:
            await self._clock.sleep_until(end_ns)
        except asyncio.CancelledError:
            future.cancel()  # no effect once a worker has begun
            raise
        return future.result()

    def _submit(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return _inline(job, *args, **kwargs) if self._pool is None else self._pool.submit(job, *args, **kwargs)

    def _stacked(self, job: Callable[..., Any], args: tuple[Any, ...]) -> _Place | None:
        """Returns the job's place among those that are collected; None: it is to run by itself."""
        stacking = self._stacking
        key = stacking.key(*args) if stacking is not None and job is stacking.job else None
        if stacking is None or key is None:
            return None
        stack = self._stacks.get(key)
        if stack is None or stack.future is not None:
            stack = self._stacks[key] = _Stack(lambda jobs: self._submit(stacking.run, jobs))
        place = stack.join(args)
        if len(stack.jobs) >= stacking.most:
            stack.start()
        return place

    async def aclose(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class _Stack:
    """Jobs that are going to be one computation.

    Args:
        submit: begins to compute a list of jobs.
    """

    def __init__(self, submit: Callable[[list[tuple[Any, ...]]], Future[list[Any]]]) -> None:
        self.jobs: dict[int, tuple[Any, ...]] = {}  # by number of joining; those that were cancelled have left
        self.future: Future[list[Any]] | None = None
        self._submit = submit
        self._joined = 0
        self._order: list[int] = []

    def join(self, args: tuple[Any, ...]) -> _Place:
        place = _Place(self, self._joined)
        self.jobs[self._joined] = args
        self._joined += 1
        return place

    def start(self) -> Future[list[Any]]:
        """Begins to compute whatever has joined so far, once."""
        if self.future is None:
            self._order = list(self.jobs)
            self.future = self._submit(list(self.jobs.values()))
            self.jobs.clear()
        return self.future

    def outcome(self, number: int) -> Any:
        return self.start().result()[self._order.index(number)]


class _Place:
    """One job's place in a stack; used as its future."""

    def __init__(self, stack: _Stack, number: int) -> None:
        self._stack = stack
        self._number = number

    def cancel(self) -> bool:
        return self._stack.jobs.pop(self._number, None) is not None

    def result(self) -> Any:
        outcome = self._stack.outcome(self._number)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class FieldCompute(Compute):
    """Workers of a real device or coordinator.

    Args:
        initializer: module-level function that the training child runs once.
        niceness: added to the training child's nice value.
    """

    def __init__(self, initializer: Callable[[], None] | None = None, niceness: int = 10) -> None:
        self._initializer = initializer
        self._niceness = niceness
        self._lanes: dict[str, Executor] = {}
        self._running: set[Future[Any]] = set()  # outside the train lane

    async def run(self, lane: str, cost_ns: int, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        executor = self._lanes.get(lane) or self._open(lane)
        try:
            future = executor.submit(job, *args, **kwargs)
            if lane != TRAIN:
                self._running.add(future)
                future.add_done_callback(self._running.discard)
            return await asyncio.wrap_future(future)
        except BrokenProcessPool as error:
            if self._lanes.get(lane) is executor:
                del self._lanes[lane]  # the next job gets a new child
            raise ComputeError(f"the worker of lane {lane!r} died (killed, or out of memory) with its job") from error

    def _open(self, lane: str) -> Executor:
        executor: Executor
        if lane == TRAIN:
            context = multiprocessing.get_context("spawn")
            executor = ProcessPoolExecutor(
                1, mp_context=context, initializer=_start_child, initargs=(self._niceness, self._initializer)
            )
        else:
            workers = 4 if lane == SHORT else 1
            executor = ThreadPoolExecutor(workers, thread_name_prefix=f"edge-{lane}")
        self._lanes[lane] = executor
        return executor

    async def aclose(self) -> None:
        if self._running:
            under_way = [asyncio.wrap_future(future) for future in tuple(self._running)]
            await asyncio.gather(*under_way, return_exceptions=True)
        for lane, executor in self._lanes.items():
            if lane == TRAIN:
                _end_children(executor)
            executor.shutdown(cancel_futures=True)
        self._lanes.clear()


class Crew:
    """Threads that help whoever calls through one long piece of arithmetic that does not hold the GIL.

    Every one of them runs the same job once; the job itself shares out the work, and returns when none is left. A
    helper that has not begun by then (its core is taken, or the process is a fork without the threads) is not awaited.

    Args:
        helpers: at most so many threads besides the caller's.
    """

    def __init__(self, helpers: int) -> None:
        self._helpers = helpers
        self._pool = ThreadPoolExecutor(max(helpers, 1), thread_name_prefix="edge-crew")

    def run(self, threads: int, job: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Runs the job here and on `threads` − 1 helpers; returns when nobody is at work any more."""
        helpers = [self._pool.submit(job, *args, **kwargs) for _ in range(min(threads - 1, self._helpers))]
        try:
            job(*args, **kwargs)
        finally:
            for helper in helpers:
                if not helper.cancel():
                    helper.result()


def _inline(job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Runs the job now; what it returns or raises is seen when its modelled time is up, as with workers."""
    future: Future[T] = Future()
    try:
        future.set_result(job(*args, **kwargs))
    except Exception as error:  # noqa: BLE001  handed on to whoever asks for the result
        future.set_exception(error)
    return future


def _start_child(niceness: int, initializer: Callable[[], None] | None) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    os.nice(niceness)
    _start_worker(initializer)


def _start_worker(initializer: Callable[[], None] | None) -> None:
    threading.Thread(target=_end_with_parent, name="edge-parent", daemon=True).start()
    if initializer is not None:
        initializer()


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers; they would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end_children(executor: Executor) -> None:
    """A training phase may last minutes; stopping a device must not wait for it."""
    for process in list((getattr(executor, "_processes", None) or {}).values()):
        process.terminate()


def cost_ns(seconds: float) -> int:
    """Returns a modelled duration in nanoseconds."""
    return round(seconds * NS)


__all__ = [
    "SHORT",
    "TRAIN",
    "Compute",
    "Crew",
    "FieldCompute",
    "InlineCompute",
    "ModelledCompute",
    "Stacking",
    "cost_ns",
]

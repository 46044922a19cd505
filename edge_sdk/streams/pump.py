"""One thread per sensor: opens the driver, reads it, brings it back when it fails, hands chunks to the event loop.

    closed → opening → streaming ⇄ stalled
                  ↑____________________↓
                        failed (waits for its back-off, then opens again; wrong options: for good)

Silence alone only makes a stream `stalled`; a driver that knows it should deliver raises SensorTimeout and is opened
again. This is one of the three places where errors are caught: a driver may raise anything.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from edge_sdk.core.clock import NS, Clock, WallClock, monotonic_ns
from edge_sdk.core.config import SensorConfig
from edge_sdk.core.errors import ConfigError, DataError, PluginError
from edge_sdk.core.interfaces import Driver
from edge_sdk.core.records import Chunk
from edge_sdk.streams.counters import Counters, Drop

logger = logging.getLogger(__name__)

READ_S = 0.2  # longest single read, s of the host: how long stopping may take
STALL_S = 2.0  # silence after which a stream counts as stalled, s of the host
CLOSE_S = 5.0  # how long aclose() waits for a driver that does not return
MAX_BYTES = 64 << 20  # chunks that wait for the event loop


class State(str, Enum):
    """Where a sensor stands."""

    CLOSED = "closed"
    OPENING = "opening"
    STREAMING = "streaming"
    STALLED = "stalled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waiting times between attempts: doubled each time, ± half at random so that devices do not march in step."""

    first_s: float = 0.5
    limit_s: float = 30.0

    def delay_s(self, attempt: int, rng: random.Random) -> float:
        """Returns how long to wait after the given number of failures in a row (0 = the first)."""
        return float(min(self.limit_s, self.first_s * 2.0 ** min(attempt, 30)) * rng.uniform(0.5, 1.5))


class Pump:
    """Runs one driver.

    Args:
        driver: the sensor; only the pump's thread touches it from start() on.
        config: drop policy and bounds.
        clock: the stream clock; its now_ns() is called from the thread.
        sink: gets every chunk, on the event loop.
        epoch_ns: where replayed time begins on the stream clock, the same for all sensors of a device.
        backoff: waiting times between attempts, s of the host.
        rng: for the jitter of the back-off.
        changed: called on the event loop after every change of state.
    """

    def __init__(
        self,
        driver: Driver,
        config: SensorConfig,
        clock: Clock,
        sink: Callable[[Chunk], None],
        *,
        epoch_ns: int | None = None,
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
        changed: Callable[[], None] | None = None,
    ) -> None:
        self.counters = Counters()
        self.state = State.CLOSED
        self.exhausted = False  # a finite source has delivered everything
        self.error = ""  # what went wrong last; "" while streaming
        self._driver = driver
        self._queue = _Queue(config, self.counters)
        self._sink = sink
        self._backoff = backoff or Backoff()
        self._rng = rng or random.Random(driver.stream)
        self._changed = changed or (lambda: None)
        self._rate = _Rate()
        self._stop = threading.Event()
        self._failures = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        driver.now_ns = clock.now_ns
        driver.speed = clock.speed if isinstance(clock, WallClock) else 1.0
        driver.epoch_ns = epoch_ns

    @property
    def stream(self) -> str:
        """Modality name."""
        return self._driver.stream

    @property
    def last_age_s(self) -> float:
        """Age of the newest sample on the stream clock, s; inf before the first."""
        return self.counters.last_age_s(self._driver.now_ns())

    async def start(self) -> None:
        """Starts the thread and returns at once; the state says how it goes on."""
        if self._loop is not None:
            raise RuntimeError(f"the pump of {self.stream!r} was started before")
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name=f"edge-pump-{self.stream}", daemon=True).start()

    async def aclose(self) -> None:
        """Stops the thread and waits until the driver is closed."""
        self._stop.set()
        self._queue.close()
        if self._loop is None:
            return
        handle = self._loop.call_later(CLOSE_S, self._give_up)
        await self._ended.wait()
        handle.cancel()

    def _give_up(self) -> None:
        logger.warning("sensor %s: its driver does not come back from read(); left behind", self.stream)
        self._ended.set()

    def _run(self) -> None:
        """The thread."""
        final = State.CLOSED
        while not self._stop.is_set():
            try:
                self._session()
            except EOFError:
                self._post(self._exhaust)  # behind the last chunks
                break
            except (ConfigError, DataError, PluginError) as error:
                self._trouble(error)
                final = State.FAILED
                break
            except Exception as error:  # noqa: BLE001 - drivers wrap libraries that raise anything
                self._trouble(error)
            finally:
                self._close_driver()
            if not self._stop.is_set():
                self._set(State.FAILED)
                self._stop.wait(self._backoff.delay_s(self._failures - 1, self._rng))
                self.counters.reconnects += 1
        self._set(final)
        self._post(self._ended.set)

    def _exhaust(self) -> None:
        self.exhausted = True

    def _session(self) -> None:
        """Opens the driver and reads it until it fails or the pump is stopped."""
        self._set(State.OPENING)
        self._driver.open()
        self._set(State.STREAMING)
        heard_ns = monotonic_ns()
        fresh = self.counters.chunks > 0
        while not self._stop.is_set():
            chunk = self._driver.read(READ_S)
            if chunk is None:
                if monotonic_ns() - heard_ns > STALL_S * NS:
                    self._set(State.STALLED)
                continue
            heard_ns = monotonic_ns()
            self._recovered()
            self._accept(replace(chunk, gap_before=True) if fresh else chunk)
            fresh = False

    def _accept(self, chunk: Chunk) -> None:
        counters = self.counters
        n = len(chunk.data)
        if n:
            counters.newest_ns = end_ns(chunk)
            counters.measured_hz = self._rate.update(chunk.t_ns, counters.samples)
        counters.chunks += 1
        counters.samples += n
        if self._queue.put(chunk):
            self._post(self._drain)

    def _drain(self) -> None:
        """Hands over what has come together since the last time; on the event loop."""
        for chunk in self._queue.take():
            self.counters.used += len(chunk.data)
            self._sink(chunk)

    def _trouble(self, error: Exception) -> None:
        """Repeated trouble is said once; `reconnects` counts it."""
        self.error = f"{type(error).__name__}: {error}"
        self._failures += 1
        if self._failures == 1:
            logger.warning("sensor %s: %s", self.stream, self.error)

    def _recovered(self) -> None:
        if self._failures:
            logger.info("sensor %s: delivers again after %d failures", self.stream, self._failures)
        self._failures = 0
        self.error = ""
        self._set(State.STREAMING)

    def _close_driver(self) -> None:
        try:
            self._driver.close()
        except Exception as error:  # noqa: BLE001 - a device that is gone may refuse even to be closed
            logger.debug("sensor %s: close failed: %s", self.stream, error)

    def _set(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._post(self._changed)

    def _post(self, callback: Callable[[], object]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop was closed without aclose(): nobody is left to tell
            self._stop.set()


class _Queue:
    """Chunks between the thread and the event loop, bounded in bytes and in seconds of the stream clock."""

    def __init__(self, config: SensorConfig, counters: Counters) -> None:
        self._policy = config.drop
        self._span_ns = round(config.buffer_s * NS)
        self._counters = counters
        self._chunks: deque[Chunk] = deque()
        self._bytes = 0
        self._gap = False  # the chunk before the oldest one was dropped
        self._closed = False
        self._condition = threading.Condition()

    def put(self, chunk: Chunk) -> bool:
        """Adds a chunk; True: the queue was empty, so that take() has to be asked for."""
        with self._condition:
            if self._policy == "block":
                while self._full(chunk) and not self._closed:
                    self._condition.wait(READ_S)
            reason = Drop.SUPERSEDED if self._policy == "latest" else Drop.OVERRUN
            first = not self._chunks
            while self._policy != "block" and self._chunks and (self._policy == "latest" or self._full(chunk)):
                self._forget_oldest(reason)
            self._chunks.append(chunk)
            self._bytes += chunk.data.nbytes
            return first

    def take(self) -> list[Chunk]:
        """Empties the queue."""
        with self._condition:
            chunks = list(self._chunks)
            self._chunks.clear()
            self._bytes = 0
            if self._gap and chunks:
                chunks[0] = replace(chunks[0], gap_before=True)
                self._gap = False
            self._condition.notify()
        return chunks

    def close(self) -> None:
        """Lets a thread go on that waits for room."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def _full(self, chunk: Chunk) -> bool:
        if not self._chunks:
            return False
        too_big = self._bytes + chunk.data.nbytes > MAX_BYTES
        return too_big or chunk.t_ns - self._chunks[0].t_ns > self._span_ns

    def _forget_oldest(self, reason: Drop) -> None:
        oldest = self._chunks.popleft()
        self._bytes -= oldest.data.nbytes
        self._counters.drop(reason, len(oldest.data))
        self._gap = True


class _Rate:
    """Samples per second over the last five to ten seconds."""

    SPAN_NS = 5 * NS

    def __init__(self) -> None:
        self._marks: list[tuple[int, int]] = []  # (time, samples before it): at most an old and a newer one

    def update(self, t_ns: int, samples: int) -> float:
        """Returns the rate up to a chunk that begins at `t_ns`, before which `samples` samples came."""
        if not self._marks or t_ns < self._marks[-1][0]:
            self._marks = [(t_ns, samples)]
        if t_ns - self._marks[-1][0] > self.SPAN_NS:
            self._marks = [self._marks[-1], (t_ns, samples)]
        then_ns, before = self._marks[0]
        return (samples - before) * NS / (t_ns - then_ns) if t_ns > then_ns else 0.0


def end_ns(chunk: Chunk) -> int:
    """Returns the time of a chunk's last sample."""
    if chunk.times_ns is not None:
        return int(chunk.times_ns[-1])
    return chunk.t_ns + (len(chunk.data) - 1) * chunk.period_ns


__all__ = ["Backoff", "Pump", "State"]

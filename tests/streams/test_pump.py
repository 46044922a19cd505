"""The pump: states, reconnects, drop policies, counters; on the wall clock, with drivers that do what they are told."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from edge_sdk.core.clock import NS, WallClock
from edge_sdk.core.config import SensorConfig
from edge_sdk.core.errors import ConfigError, SensorUnavailable
from edge_sdk.core.records import Chunk
from edge_sdk.streams import pump as pump_module
from edge_sdk.streams.counters import Counters, Drop
from edge_sdk.streams.pump import Backoff, Pump, State
from tests.helpers.streams import ScriptedDriver, chunk

FAST = Backoff(first_s=0.001, limit_s=0.004)


class Bench:
    """A pump and what it handed over."""

    def __init__(self, driver: ScriptedDriver, **config: object) -> None:
        self.driver = driver
        self.chunks: list[Chunk] = []
        self._changed = asyncio.Event()
        settings = SensorConfig.model_validate({"driver": "scripted", **config})
        self.pump = Pump(driver, settings, WallClock(), self._take, backoff=FAST, changed=self._changed.set)

    def _take(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until something that happened makes this true."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_chunks_arrive_in_order_and_are_counted() -> None:
    async def main() -> None:
        driver = ScriptedDriver("acc", {"script": [chunk("acc", i * 10, 10, seq=i) for i in range(100)]})
        bench = Bench(driver)
        assert bench.pump.state is State.CLOSED
        await bench.pump.start()
        await bench.until(lambda: len(bench.chunks) == 100)
        assert bench.pump.state is State.STREAMING
        await bench.pump.aclose()
        counters = bench.pump.counters
        assert [c.seq for c in bench.chunks] == list(range(100))
        assert (counters.samples, counters.chunks, counters.used) == (1000, 100, 1000)
        assert counters.dropped == {}
        assert counters.measured_hz == pytest.approx(50)
        assert counters.newest_ns == 999 * 20_000_000
        assert counters.last_age_s(counters.newest_ns + 5 * NS) == 5
        assert bench.pump.state is State.CLOSED
        assert (driver.opens, driver.closes) == (1, 1)

    run(main)


def test_comes_back_after_errors_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        script = [chunk("acc", 0, 10), OSError(5, "Input/output error"), chunk("acc", 50, 10, seq=1)]
        driver = ScriptedDriver("acc", {"script": script})
        driver.fail_opens = [SensorUnavailable("not there yet; plug it in")] * 3
        bench = Bench(driver)
        await bench.pump.start()
        await bench.until(lambda: len(bench.chunks) == 2)
        assert bench.pump.counters.reconnects == 4
        assert bench.pump.error == ""
        assert [c.gap_before for c in bench.chunks] == [False, True]
        await bench.pump.aclose()

    with caplog.at_level(logging.INFO):
        run(main)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [
        "sensor acc: SensorUnavailable: not there yet; plug it in",
        "sensor acc: OSError: [Errno 5] Input/output error",
    ]
    assert "delivers again after 3 failures" in caplog.text


def test_wrong_options_fail_for_good() -> None:
    async def main() -> None:
        driver = ScriptedDriver("acc", {})
        driver.fail_opens = [ConfigError("sensors.acc.options:port: missing")]
        bench = Bench(driver)
        await bench.pump.start()
        await bench.until(lambda: bench.pump.state is State.FAILED)
        await bench.pump._ended.wait()
        assert driver.opens == 1
        assert "port" in bench.pump.error
        assert not bench.pump.exhausted
        await bench.pump.aclose()

    run(main)


def test_a_finite_source_is_exhausted_after_its_last_chunk() -> None:
    async def main() -> None:
        driver = ScriptedDriver("acc", {"script": [chunk("acc", 0, 10), chunk("acc", 10, 10), EOFError()]})
        bench = Bench(driver)
        await bench.pump.start()
        await bench.until(lambda: bench.pump.exhausted)
        assert len(bench.chunks) == 2
        await bench.until(lambda: bench.pump.state is State.CLOSED)
        assert driver.closes == 1
        await bench.pump.aclose()

    run(main)


def test_silence_is_called_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "STALL_S", 0.0)

    async def main() -> None:
        driver = ScriptedDriver("acc", {"script": [chunk("acc", 0, 1), None]})
        bench = Bench(driver)
        await bench.pump.start()
        await bench.until(lambda: bench.pump.state is State.STALLED)
        driver.script.put(chunk("acc", 1, 1, seq=1))
        await bench.until(lambda: len(bench.chunks) == 2)
        assert bench.pump.state is State.STREAMING
        assert bench.pump.counters.reconnects == 0
        await bench.pump.aclose()

    run(main)


def test_stopping_while_waiting_to_reconnect() -> None:
    async def main() -> None:
        driver = ScriptedDriver("acc", {})
        driver.fail_opens = [SensorUnavailable("never")] * 1000
        pump = Pump(driver, SensorConfig(driver="x"), WallClock(), lambda _: None, backoff=Backoff(3600, 3600))
        await pump.start()
        await pump.aclose()
        assert pump.state is State.CLOSED

    run(main)


def test_closing_before_starting_and_twice() -> None:
    async def main() -> None:
        bench = Bench(ScriptedDriver("acc", {}))
        await bench.pump.aclose()
        await bench.pump.aclose()
        bench = Bench(ScriptedDriver("acc", {}))
        await bench.pump.start()
        with pytest.raises(RuntimeError, match="started before"):
            await bench.pump.start()
        await bench.pump.aclose()
        await bench.pump.aclose()

    run(main)


def test_driver_is_given_the_stream_clock() -> None:
    clock = WallClock(20.0)
    driver = ScriptedDriver("acc", {})
    Pump(driver, SensorConfig(driver="x"), clock, lambda _: None, epoch_ns=77)
    assert driver.speed == 20.0
    assert driver.epoch_ns == 77
    assert abs(driver.now_ns() - clock.now_ns()) < 20 * NS


def queued(policy: str, chunks: list[Chunk], *, buffer_s: float = 1.0) -> tuple[list[Chunk], Counters]:
    counters = Counters()
    queue = pump_module._Queue(SensorConfig(driver="x", drop=policy, buffer_s=buffer_s), counters)
    asked = [queue.put(c) for c in chunks]
    assert asked[0]
    return queue.take(), counters


def test_drop_oldest_keeps_the_newest_seconds_and_marks_the_gap() -> None:
    chunks = [chunk("acc", i * 25, 25, seq=i) for i in range(10)]
    kept, counters = queued("drop_oldest", chunks)
    assert [c.seq for c in kept] == [7, 8, 9]
    assert [c.gap_before for c in kept] == [True, False, False]
    assert counters.dropped == {Drop.OVERRUN: 7 * 25}


def test_drop_oldest_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "MAX_BYTES", 1000)
    chunks = [chunk("acc", i * 10, 10, seq=i) for i in range(20)]  # 120 bytes each
    kept, counters = queued("drop_oldest", chunks, buffer_s=1e6)
    assert [c.seq for c in kept] == list(range(12, 20))
    assert counters.dropped == {Drop.OVERRUN: 120}


def test_latest_keeps_one() -> None:
    kept, counters = queued("latest", [chunk("acc", i, 1, seq=i) for i in range(5)])
    assert [c.seq for c in kept] == [4]
    assert counters.dropped == {Drop.SUPERSEDED: 4}


def test_block_waits_for_room_and_loses_nothing() -> None:
    async def main() -> None:
        driver = ScriptedDriver("acc", {"script": [chunk("acc", i * 50, 50, seq=i) for i in range(40)]})
        bench = Bench(driver, drop="block", buffer_s=0.001)
        await bench.pump.start()
        await bench.until(lambda: len(bench.chunks) == 40)
        assert bench.pump.counters.dropped == {}
        assert not any(c.gap_before for c in bench.chunks)
        await bench.pump.aclose()

    run(main)


def test_block_does_not_block_stopping() -> None:
    async def main() -> None:
        counters = Counters()
        queue = pump_module._Queue(SensorConfig(driver="x", drop="block", buffer_s=0.001), counters)
        assert queue.put(chunk("acc", 0, 1))
        queue.close()
        assert not queue.put(replace(chunk("acc", 500, 1), seq=1))
        assert len(queue.take()) == 2

    run(main)


def test_backoff_grows_to_its_limit_with_jitter() -> None:
    backoff, rng = Backoff(0.5, 30.0), random.Random(0)
    delays = [[backoff.delay_s(attempt, rng) for _ in range(200)] for attempt in range(12)]
    for attempt, drawn in enumerate(delays):
        middle = min(30.0, 0.5 * 2**attempt)
        assert 0.5 * middle <= min(drawn) < 0.6 * middle
        assert 1.4 * middle < max(drawn) <= 1.5 * middle
    assert backoff.delay_s(100_000, rng) <= 45.0


def test_measured_rate_follows_the_last_seconds() -> None:
    rate = pump_module._Rate()
    samples = 0
    for i in range(30):
        hz = rate.update(i * NS, samples)
        samples += 100 if i < 15 else 40
    assert hz == pytest.approx(40)

# ruff: noqa: PT012  what a block raises, and when, is what is tested here
from __future__ import annotations

import asyncio
import random
import socket
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from edge_sdk.core.clock import NS, Clock, VirtualClock, VirtualLoop, WallClock, run_virtual
from edge_sdk.core.errors import Deadlock

ON_311 = sys.version_info >= (3, 11)


class TestVirtualTime:
    def test_waiting_takes_no_time_and_counts_whole_nanoseconds(self) -> None:
        async def main(clock: VirtualClock) -> None:
            for _ in range(1000):
                await clock.sleep(0.1)  # ten times 0.1 is not 1.0 in floats
            assert clock.now_ns() == 100 * NS
            await clock.sleep(86_400 * 365)
            assert clock.now_ns() == 100 * NS + 86_400 * 365 * NS
            assert clock.utc_ns() - clock.now_ns() == 1_600_000_000 * NS

        run_virtual(main)

    def test_nanoseconds_keep_their_order_after_a_year(self) -> None:
        async def main(clock: VirtualClock) -> list[int]:
            await clock.sleep(86_400 * 365)
            start = clock.now_ns()
            woken: list[int] = []

            async def sleeper(i: int) -> None:
                await clock.sleep_until(start + i)
                assert i <= clock.now_ns() - start <= i + 4  # never early; the base class counts in floats
                woken.append(i)

            await asyncio.gather(*(sleeper(i) for i in (5, 3, 1, 4, 2)))
            return woken

        assert run_virtual(main) == [1, 2, 3, 4, 5]

    def test_one_instant_keeps_the_order_of_setting(self) -> None:
        async def main(clock: VirtualClock) -> None:
            loop = asyncio.get_running_loop()
            seen: list[int] = []
            for i in range(500):
                loop.call_later(1.0, seen.append, i)
            for i in range(500, 1000):
                loop.call_at(1.0, seen.append, i)
            await clock.sleep(1.0)
            assert seen == list(range(1000))

        run_virtual(main)

    def test_timers_run_in_time_order_whatever_the_order_of_setting(self) -> None:
        async def main(clock: VirtualClock) -> None:
            rng = random.Random(3)
            delays = [rng.randrange(1, 10**12) for _ in range(2000)]
            woken: list[int] = []

            async def sleeper(ns: int) -> None:
                await clock.sleep_until(ns)
                assert clock.now_ns() == ns
                woken.append(ns)

            await asyncio.gather(*(sleeper(ns) for ns in delays))
            assert woken == sorted(delays)

        run_virtual(main)

    def test_cancelled_timers_neither_run_nor_hold_time_up(self) -> None:
        async def main(clock: VirtualClock) -> None:
            loop = asyncio.get_running_loop()
            seen: list[int] = []
            timers = [loop.call_later(float(i), seen.append, i) for i in range(1, 401)]
            for timer in timers[:399]:  # more than the share at which the base class rebuilds its heap
                timer.cancel()
            await clock.sleep(400.0)
            assert seen == [400]
            assert clock.now_ns() == 400 * NS

        run_virtual(main)

    def test_time_does_not_go_back(self) -> None:
        async def main(clock: VirtualClock) -> None:
            await clock.sleep(5.0)
            seen: list[int] = []
            asyncio.get_running_loop().call_at(1.0, lambda: seen.append(clock.now_ns()))
            asyncio.get_running_loop().call_later(-3.0, lambda: seen.append(clock.now_ns()))
            await clock.sleep_until(2 * NS)
            await clock.sleep(0.0)
            await clock.sleep(1.0)
            assert seen == [5 * NS, 5 * NS]

        run_virtual(main)

    def test_nothing_ready_and_no_timer_is_a_deadlock_that_names_who_waits(self) -> None:
        cleaned: list[str] = []

        async def stuck() -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cleaned.append("stuck")

        async def main(clock: VirtualClock) -> None:
            await clock.sleep(2.5)
            async with clock.group() as group:
                group.start(stuck(), name="device d1 trainer")
                group.start(stuck(), name="coordinator service")

        with pytest.raises(Deadlock, match=r"at 2\.5 s; waiting: .*coordinator service, device d1 trainer"):
            run_virtual(main)
        assert cleaned == ["stuck", "stuck"]

    def test_tasks_left_over_are_cancelled_at_the_end(self) -> None:
        cleaned: list[int] = []

        async def endless(clock: VirtualClock) -> None:
            try:
                await clock.sleep(1e9)
            finally:
                cleaned.append(1)

        async def main(clock: VirtualClock) -> str:
            _ = asyncio.ensure_future(endless(clock))  # noqa: RUF006
            await clock.sleep(0.0)
            return "done"

        assert run_virtual(main) == "done"
        assert cleaned == [1]

    def test_errors_come_through(self) -> None:
        async def main(clock: VirtualClock) -> None:
            await clock.sleep(1.0)
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            run_virtual(main)

    def test_sockets_work_beside_virtual_time(self) -> None:
        async def main(clock: VirtualClock) -> bytes:
            left, right = socket.socketpair()
            with left, right:
                left.setblocking(False)
                right.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(left, b"hello")
                return await loop.sock_recv(right, 5)

        assert run_virtual(main) == b"hello"

    def test_loops_share_nothing(self) -> None:
        first, second = VirtualLoop(), VirtualLoop()
        try:
            first.run_until_complete(VirtualClock(first).sleep(3.0))
            assert (first.now_ns, second.now_ns) == (3 * NS, 0)
        finally:
            first.close()
            second.close()


class TestWallClock:
    def test_speed(self) -> None:
        clock = WallClock(speed=100.0)

        async def main() -> int:
            before = clock.now_ns()
            await clock.sleep(1.0)
            with pytest.raises(TimeoutError):
                async with clock.deadline(1.0):
                    await clock.sleep(50.0)
            return clock.now_ns() - before

        assert 2 * NS <= asyncio.run(main()) < 60 * NS
        assert abs((clock.utc_ns() - clock.now_ns()) - (clock.utc_ns() - clock.now_ns())) < NS

    def test_speed_must_be_positive(self) -> None:
        with pytest.raises(ValueError, match="positive"):
            WallClock(speed=0.0)

    def test_normal_speed_is_the_host_clock(self) -> None:
        import time

        assert abs(WallClock().now_ns() - time.monotonic_ns()) < NS
        assert abs(WallClock().utc_ns() - time.time_ns()) < NS


def either(main: Any) -> None:
    """Runs a coroutine function on virtual time and on a fast wall clock."""
    run_virtual(main)
    asyncio.run(main(WallClock(speed=20.0)))


class TestDeadline:
    def test_in_time(self) -> None:
        async def main(clock: Clock) -> None:
            async with clock.deadline(2.0):
                await clock.sleep(0.1)
            await clock.sleep(3.0)  # no late cancellation

        either(main)

    def test_too_late(self) -> None:
        async def main(clock: Clock) -> None:
            cleaned = []
            with pytest.raises(TimeoutError, match="took longer than"):
                async with clock.deadline(1.0):
                    try:
                        await clock.sleep(100.0)
                    finally:
                        await clock.sleep(0.5)  # cleaning up may take its time
                        cleaned.append(True)
            assert cleaned == [True]
            await clock.sleep(1.0)

        either(main)

    def test_infinite_and_none_at_all(self) -> None:
        async def main(clock: VirtualClock) -> None:
            async with clock.deadline(float("inf")):
                await clock.sleep(1e6)
            with pytest.raises(TimeoutError):
                async with clock.deadline(0.0):
                    await clock.sleep(1.0)
            with pytest.raises(TimeoutError):
                async with clock.deadline(-5.0):
                    await clock.sleep(1.0)
            async with clock.deadline(0.0):
                pass  # a body that never waits is never too late

        run_virtual(main)

    def test_errors_of_the_body_come_through(self) -> None:
        async def main(clock: VirtualClock) -> None:
            with pytest.raises(KeyError):
                async with clock.deadline(1.0):
                    try:
                        await clock.sleep(2.0)
                    except asyncio.CancelledError:
                        raise KeyError("cleanup") from None

        run_virtual(main)

    def test_inner_expires_first(self) -> None:
        async def main(clock: VirtualClock) -> None:
            async with clock.deadline(5.0):
                with pytest.raises(TimeoutError, match="longer than 1 s"):
                    async with clock.deadline(1.0):
                        await clock.sleep(10.0)
                await clock.sleep(3.0)
            assert clock.now_ns() == 4 * NS

        run_virtual(main)

    def test_outer_expires_first(self) -> None:
        async def main(clock: VirtualClock) -> None:
            with pytest.raises(TimeoutError, match="longer than 1 s"):
                async with clock.deadline(1.0), clock.deadline(5.0):
                    await clock.sleep(10.0)

        run_virtual(main)

    def test_both_at_one_instant_and_the_body_goes_on_after_the_inner_one(self) -> None:
        async def main(clock: VirtualClock) -> None:
            tries = 0
            with pytest.raises(TimeoutError, match="longer than 4 s"):
                async with clock.deadline(4.0):
                    while True:
                        tries += 1
                        try:
                            async with clock.deadline(2.0):
                                await clock.sleep(10.0)
                        except TimeoutError:
                            continue
            assert tries == 2
            assert clock.now_ns() == 4 * NS

        run_virtual(main)

    def test_cancelled_from_outside_before_it_expires(self) -> None:
        async def main(clock: VirtualClock) -> None:
            async def work() -> None:
                async with clock.deadline(10.0):
                    await clock.sleep(100.0)

            task = asyncio.ensure_future(work())
            await clock.sleep(1.0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()

        run_virtual(main)

    @pytest.mark.skipif(not ON_311, reason="tasks do not count cancel requests before Python 3.11")
    @pytest.mark.parametrize("first", ["outside", "deadline"])
    def test_cancelled_from_outside_at_the_instant_it_expires(self, first: str) -> None:
        async def main(clock: VirtualClock) -> None:
            async def work() -> None:
                async with clock.deadline(1.0):
                    await clock.sleep(100.0)

            task = asyncio.ensure_future(work())
            loop = asyncio.get_running_loop()
            if first == "deadline":
                await clock.sleep(0.0)
            loop.call_at(1.0, task.cancel)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()

        run_virtual(main)

    def test_used_after_an_earlier_cancellation_was_swallowed(self) -> None:
        async def main(clock: VirtualClock) -> None:
            async def stubborn() -> str:
                try:
                    await clock.sleep(100.0)
                except asyncio.CancelledError:
                    with pytest.raises(TimeoutError):
                        async with clock.deadline(1.0):  # farewell with a time limit
                            await clock.sleep(100.0)
                return "said goodbye"

            task = asyncio.ensure_future(stubborn())
            await clock.sleep(1.0)
            task.cancel()
            assert await task == "said goodbye"

        run_virtual(main)

    def test_inside_an_asynchronous_generator(self) -> None:
        async def main(clock: VirtualClock) -> None:
            async def ticks() -> AsyncIterator[int]:
                for i in range(3):
                    async with clock.deadline(5.0):
                        await clock.sleep(1.0)
                        yield i

            got = [i async for i in ticks()]
            assert got == [0, 1, 2]
            generator = ticks()
            assert await generator.__anext__() == 0
            # goes on in another task, that is in another context
            with pytest.raises(StopAsyncIteration):
                await asyncio.ensure_future(_exhaust(generator))

        run_virtual(main)

    def test_no_count_is_left_behind(self) -> None:
        async def main(clock: VirtualClock) -> None:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with clock.deadline(1.0):
                        await clock.sleep(2.0)
            if ON_311:
                task = asyncio.current_task()
                assert task is not None
                assert task.cancelling() == 0

        run_virtual(main)


async def _exhaust(generator: AsyncIterator[int]) -> None:
    while True:
        await generator.__anext__()


async def _fail(clock: Clock, after_s: float, error: BaseException) -> None:
    await clock.sleep(after_s)
    raise error


class TestGroup:
    def test_waits_for_all_and_hands_back_results(self) -> None:
        async def main(clock: Clock) -> None:
            async def answer(i: int) -> int:
                await clock.sleep(1.0 - i / 10)
                return i

            async with clock.group() as group:
                tasks = [group.start(answer(i), name=f"t{i}") for i in range(5)]
            assert [t.result() for t in tasks] == list(range(5))
            assert [t.get_name() for t in tasks] == [f"t{i}" for i in range(5)]

        either(main)

    def test_first_error_cancels_the_others_and_is_raised_as_it_is(self) -> None:
        async def main(clock: Clock) -> None:
            cleaned = []

            async def patient() -> None:
                try:
                    await clock.sleep(1000.0)
                finally:
                    await clock.sleep(0.1)
                    cleaned.append(True)

            error = ValueError("first")
            with pytest.raises(ValueError, match="first") as caught:
                async with clock.group() as group:
                    group.start(patient(), name="patient")
                    group.start(_fail(clock, 1.0, error), name="failing")
                    group.start(_fail(clock, 1.5, KeyError("second")), name="later")
                    await clock.sleep(1000.0)  # the body is interrupted as well
            assert caught.value is error
            assert cleaned == [True]
            await clock.sleep(1.0)

        either(main)

    def test_stopping_does_not_break_into_cleaning_up(self) -> None:
        async def main(clock: VirtualClock) -> None:
            cleaned = []

            async def tidy() -> None:
                try:
                    await clock.sleep(1000.0)
                finally:
                    await clock.sleep(5.0)
                    cleaned.append(clock.now_ns())

            async def work() -> None:
                async with clock.group() as group:
                    group.start(tidy(), name="tidy")
                    await clock.sleep(1000.0)

            task = asyncio.ensure_future(work())
            for _ in range(3):  # an impatient user
                await clock.sleep(1.0)
                task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert cleaned == [6 * NS]

        run_virtual(main)

    def test_error_while_the_group_is_already_waiting(self) -> None:
        async def main(clock: VirtualClock) -> None:
            with pytest.raises(ValueError, match="late"):
                async with clock.group() as group:
                    group.start(clock.sleep(1000.0), name="patient")
                    group.start(_fail(clock, 1.0, ValueError("late")), name="failing")
            assert clock.now_ns() == NS

        run_virtual(main)

    def test_two_errors_at_one_instant(self) -> None:
        async def main(clock: VirtualClock) -> None:
            with pytest.raises(ValueError, match="a"):
                async with clock.group() as group:
                    group.start(_fail(clock, 1.0, ValueError("a")), name="a")
                    group.start(_fail(clock, 1.0, KeyError("b")), name="b")
                    await clock.sleep(1.0)
                    await clock.sleep(1.0)

        run_virtual(main)

    def test_error_of_the_body_comes_first(self) -> None:
        async def main(clock: VirtualClock) -> None:
            async def sore() -> None:
                try:
                    await clock.sleep(1000.0)
                except asyncio.CancelledError:
                    raise KeyError("cleanup") from None

            with pytest.raises(ValueError, match="body"):
                async with clock.group() as group:
                    group.start(sore(), name="sore")
                    await clock.sleep(1.0)
                    raise ValueError("body")

        run_virtual(main)

    def test_cancelled_from_outside(self) -> None:
        async def main(clock: VirtualClock) -> None:
            cleaned = []

            async def child() -> None:
                try:
                    await clock.sleep(1000.0)
                finally:
                    cleaned.append(clock.now_ns())

            async def work(body_s: float) -> None:
                async with clock.group() as group:
                    group.start(child(), name="child")
                    await clock.sleep(body_s)

            for body_s in (0.0, 500.0):  # in the group's wait, and in the body
                task = asyncio.ensure_future(work(body_s))
                await clock.sleep(1.0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert task.cancelled()
            assert cleaned == [NS, 2 * NS]

        run_virtual(main)

    def test_children_that_take_their_time_to_stop_are_waited_for(self) -> None:
        async def main(clock: VirtualClock) -> None:
            async def slow() -> None:
                try:
                    await clock.sleep(1000.0)
                finally:
                    await clock.sleep(10.0)

            async def work() -> None:
                async with clock.group() as group:
                    group.start(slow(), name="slow")

            task = asyncio.ensure_future(work())
            await clock.sleep(1.0)
            task.cancel()
            await asyncio.wait([task])
            assert clock.now_ns() == 11 * NS
            assert task.cancelled()

        run_virtual(main)

    def test_cancel_ends_the_children_and_not_the_body(self) -> None:
        async def main(clock: VirtualClock) -> None:
            async with clock.group() as group:
                group.start(clock.sleep(1000.0), name="child")
                await clock.sleep(1.0)
                group.cancel()
                await clock.sleep(1.0)
            assert clock.now_ns() == 2 * NS

        run_virtual(main)

    def test_a_cancelled_child_is_no_error(self) -> None:
        async def main(clock: VirtualClock) -> None:
            async with clock.group() as group:
                child = group.start(clock.sleep(1000.0), name="child")
                group.start(clock.sleep(3.0), name="other")
                await clock.sleep(1.0)
                child.cancel()
            assert clock.now_ns() == 3 * NS

        run_virtual(main)

    def test_children_may_start_children(self) -> None:
        async def main(clock: VirtualClock) -> None:
            done = []

            async with clock.group() as group:

                async def grandchild() -> None:
                    await clock.sleep(5.0)
                    done.append(clock.now_ns())

                async def child() -> None:
                    await clock.sleep(1.0)
                    group.start(grandchild(), name="grandchild")

                group.start(child(), name="child")
            assert done == [6 * NS]

        run_virtual(main)

    def test_nothing_starts_after_the_end(self) -> None:
        async def main(clock: VirtualClock) -> None:
            async with clock.group() as group:
                pass
            with pytest.raises(RuntimeError, match=r"'late'.*ended"):
                group.start(clock.sleep(1.0), name="late")

        run_virtual(main)

    def test_nested_groups_that_fail_at_one_instant(self) -> None:
        async def main(clock: VirtualClock) -> None:
            went_on = False
            with pytest.raises(KeyError, match="outer"):
                async with clock.group() as outer:
                    outer.start(_fail(clock, 1.0, KeyError("outer")), name="outer")
                    try:
                        async with clock.group() as inner:
                            inner.start(_fail(clock, 1.0, ValueError("inner")), name="inner")
                            await clock.sleep(1000.0)
                    except ValueError:
                        await clock.sleep(1.0)
                        went_on = True
            assert not went_on
            assert clock.now_ns() == NS

        run_virtual(main)

    def test_deadline_around_a_group(self) -> None:
        async def main(clock: VirtualClock) -> None:
            with pytest.raises(TimeoutError):
                async with clock.deadline(1.0), clock.group() as group:
                    group.start(clock.sleep(1000.0), name="child")
            assert clock.now_ns() == NS
            await clock.sleep(1.0)

        run_virtual(main)

    def test_deadline_inside_a_group_of_a_group(self) -> None:
        async def main(clock: VirtualClock) -> None:
            async def child() -> str:
                try:
                    async with clock.deadline(1.0):
                        await clock.sleep(1000.0)
                except TimeoutError:
                    return "late"
                return "in time"

            async with clock.group() as outer:
                async with clock.group() as inner:
                    a = inner.start(child(), name="a")
                b = outer.start(child(), name="b")
            assert (a.result(), b.result()) == ("late", "late")

        run_virtual(main)

    def test_group_that_fails_when_its_deadline_expires(self) -> None:
        async def main(clock: VirtualClock) -> None:
            rounds = 0
            with pytest.raises(TimeoutError):
                async with clock.deadline(3.0):
                    while True:
                        rounds += 1
                        try:
                            async with clock.group() as group:
                                group.start(_fail(clock, 1.5, ValueError("again")), name="failing")
                                await clock.sleep(1000.0)
                        except ValueError:
                            continue
            assert rounds == 2
            assert clock.now_ns() == 3 * NS

        run_virtual(main)

    def test_no_count_is_left_behind(self) -> None:
        async def main(clock: VirtualClock) -> None:
            with pytest.raises(ValueError, match="x"):
                async with clock.group() as group:
                    group.start(_fail(clock, 1.0, ValueError("x")), name="failing")
                    await clock.sleep(1000.0)
            await clock.sleep(1.0)
            if ON_311:
                task = asyncio.current_task()
                assert task is not None
                assert task.cancelling() == 0

        run_virtual(main)

    def test_without_a_task(self) -> None:
        async def enter(manager: Any) -> None:
            await manager.__aenter__()

        clock = WallClock()
        for manager in (clock.group(), clock.deadline(1.0)):
            coroutine: Coroutine[Any, Any, None] = enter(manager)
            with pytest.raises(RuntimeError):
                coroutine.send(None)

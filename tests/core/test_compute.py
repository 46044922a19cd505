from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from edge_sdk.core.clock import NS, VirtualClock, WallClock, run_virtual
from edge_sdk.core.compute import SHORT, TRAIN, Crew, FieldCompute, InlineCompute, ModelledCompute, Stacking, cost_ns
from edge_sdk.core.errors import ComputeError
from edge_sdk.core.records import RoundData

_MARK: list[str] = []
PARENT = """
import asyncio, os
from edge_sdk.core.compute import TRAIN, FieldCompute

async def main():
    print(await FieldCompute().run(TRAIN, 0, os.getpid), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""

FORK = """
import os, warnings
from edge_sdk.core.compute import Crew

warnings.simplefilter("ignore")  # Python 3.12 warns of a fork beside threads
crew, done = Crew(1), []
crew.run(2, done.append, 0)
child = os.fork()
if child == 0:
    crew.run(2, done.append, 0)  # the helper's thread is not in this process
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def square(x: int, *, plus: int = 0) -> int:
    return x * x + plus


def who(_: int = 0) -> tuple[int, int, bool, list[str]]:
    ignores = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    return os.getpid(), os.nice(0), ignores, list(_MARK)


def mark() -> None:
    _MARK.append("initialised")


def fail(message: str) -> None:
    raise ValueError(message)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def slow(file: Path) -> None:
    file.write_text(str(os.getpid()))
    time.sleep(60)


def slow_square(x: int, seconds: float) -> int:
    time.sleep(seconds)
    return x * x


def parity(x: int) -> int:
    return x % 2


def squares(jobs: list[tuple[int]]) -> list[object]:
    """Returns each square with what it was computed together with."""
    whole = tuple(x for (x,) in jobs)
    return [(x * x, whole) if x >= 0 else ValueError(f"negative: {x}") for x in whole]


class TestInline:
    def test_runs_where_it_is_asked_for(self) -> None:
        compute = InlineCompute()
        assert asyncio.run(compute.run(TRAIN, 10**12, square, 3, plus=1)) == 10
        with pytest.raises(ValueError, match="no"):
            asyncio.run(compute.run(SHORT, 0, fail, "no"))


class TestModelled:
    def test_ends_at_start_plus_cost(self) -> None:
        async def main(clock: VirtualClock) -> None:
            compute = ModelledCompute(clock)
            await clock.sleep(1.0)
            assert await compute.run(TRAIN, cost_ns(2.5), square, 3) == 9
            assert clock.now_ns() == 35 * NS // 10
            assert await compute.run(SHORT, cost_ns(99.0), square, 3) == 9  # only training is modelled
            assert clock.now_ns() == 35 * NS // 10

        run_virtual(main)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_results_come_in_modelled_order_however_long_the_work_takes(self, workers: int) -> None:
        async def main(clock: VirtualClock) -> list[tuple[int, int]]:
            compute = ModelledCompute(clock, workers)
            done: list[tuple[int, int]] = []

            async def job(i: int, cost_s: float, real_s: float) -> None:
                result = await compute.run(TRAIN, cost_ns(cost_s), slow_square, i, real_s)
                done.append((result, clock.now_ns() // NS))

            await asyncio.gather(job(3, 30.0, 0.0), job(1, 10.0, 0.1), job(2, 20.0, 0.02), job(4, 30.0, 0.0))
            await compute.aclose()
            return done

        assert run_virtual(main) == [(1, 10), (4, 20), (9, 30), (16, 30)]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_error_is_seen_when_the_modelled_time_is_up(self, workers: int) -> None:
        async def main(clock: VirtualClock) -> None:
            compute = ModelledCompute(clock, workers)
            with pytest.raises(ValueError, match="diverged"):
                await compute.run(TRAIN, cost_ns(7.0), fail, "diverged")
            assert clock.now_ns() == 7 * NS
            await compute.aclose()

        run_virtual(main)

    def test_cancelled_while_it_runs(self) -> None:
        async def main(clock: VirtualClock) -> None:
            compute = ModelledCompute(clock)
            task = asyncio.ensure_future(compute.run(TRAIN, cost_ns(7.0), square, 3))
            await clock.sleep(1.0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert clock.now_ns() == NS

        run_virtual(main)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_jobs_under_way_at_the_same_time_become_one_computation(self, workers: int) -> None:
        """Until the first is due; 5 has another key, -1 fails alone, 7 comes when the stack is under way."""

        async def main(clock: VirtualClock) -> tuple[list[object], list[int]]:
            compute = ModelledCompute(clock, workers, stacking=Stacking(square, parity, squares, most=8))
            ends = list[int]()

            async def job(i: int, start_s: float, cost_s: float) -> object:
                await clock.sleep(start_s)
                try:
                    return await compute.run(TRAIN, cost_ns(cost_s), square, i)
                except ValueError as error:
                    return str(error)
                finally:
                    ends.append(clock.now_ns() // NS)

            work = (job(2, 0, 10), job(4, 3, 2), job(5, 3, 9), job(-2, 4, 20), job(8, 6, 1))
            found = list(await asyncio.gather(*work))
            await compute.aclose()
            return found, ends

        found, ends = run_virtual(main)
        assert found == [(4, (2, 4, -2)), (16, (2, 4, -2)), (25, (5,)), "negative: -2", (64, (8,))]
        assert ends == [5, 7, 10, 12, 24]

    def test_a_full_stack_is_not_awaited_and_one_that_was_cancelled_leaves_it(self) -> None:
        async def main(clock: VirtualClock) -> list[object]:
            compute = ModelledCompute(clock, stacking=Stacking(square, parity, squares, most=2))
            left = asyncio.ensure_future(compute.run(TRAIN, cost_ns(9.0), square, 0))
            await clock.sleep(1.0)
            left.cancel()
            jobs = (compute.run(TRAIN, cost_ns(5.0), square, i) for i in (2, 4, 6))
            return [*await asyncio.gather(*jobs), await asyncio.gather(left, return_exceptions=True)]

        *found, (cancelled,) = run_virtual(main)
        assert found == [(4, (2, 4)), (16, (2, 4)), (36, (6,))]
        assert isinstance(cancelled, asyncio.CancelledError)

    def test_on_a_wall_clock_modelled_time_is_slept_out(self) -> None:
        async def main() -> int:
            clock = WallClock(speed=50.0)
            before = clock.now_ns()
            assert await ModelledCompute(clock).run(TRAIN, cost_ns(2.0), square, 3) == 9
            return clock.now_ns() - before

        assert asyncio.run(main()) >= 2 * NS


class TestField:
    def test_training_child_is_spawned_niced_initialised_and_deaf_to_ctrl_c(self) -> None:
        async def main() -> None:
            compute = FieldCompute(initializer=mark, niceness=7)
            pid, nice, deaf, marks = await compute.run(TRAIN, 0, who)
            assert pid != os.getpid()
            assert nice == min(19, os.nice(0) + 7)
            assert deaf
            assert marks == ["initialised"]
            assert (await compute.run(TRAIN, 0, who))[0] == pid  # the same child for the next job
            with pytest.raises(ValueError, match="NaN"):
                await compute.run(TRAIN, 0, fail, "NaN")
            await compute.aclose()

        asyncio.run(main())
        assert multiprocessing.active_children() == []

    def test_a_child_that_dies_is_named_and_the_next_job_gets_a_new_one(self) -> None:
        async def main() -> None:
            compute = FieldCompute()
            with pytest.raises(ComputeError, match="'train' died"):
                await compute.run(TRAIN, 0, die)
            assert await compute.run(TRAIN, 0, square, 5) == 25
            await compute.aclose()

        asyncio.run(main())

    def test_a_parent_that_is_killed_leaves_no_child_behind(self) -> None:
        parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.communicate()
        child.wait(timeout=30)  # raises if it lives on

    def test_closing_does_not_wait_for_training(self, tmp_path: Path) -> None:
        async def main() -> float:
            clock = WallClock()
            compute = FieldCompute()
            job = asyncio.ensure_future(compute.run(TRAIN, 0, slow, tmp_path / "pid"))
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                await clock.sleep(0.01)
            before = clock.now_ns()
            await compute.aclose()
            took = clock.now_ns() - before
            with pytest.raises((ComputeError, asyncio.CancelledError)):
                await job
            return took / NS

        assert asyncio.run(main()) < 5.0
        pid = int((tmp_path / "pid").read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    def test_closing_waits_for_short_jobs_without_holding_the_loop(self) -> None:
        async def main() -> None:
            compute, clock = FieldCompute(), WallClock()
            gate = threading.Event()
            job = asyncio.ensure_future(compute.run(SHORT, 0, gate.wait, 10.0))
            await clock.sleep(0.01)
            closing = asyncio.ensure_future(compute.aclose())
            for _ in range(5):
                await clock.sleep(0.005)
            assert not closing.done()
            gate.set()
            await closing
            assert await job is True

        asyncio.run(main())

    def test_a_named_lane_keeps_the_order(self) -> None:
        async def main() -> None:
            compute = FieldCompute()
            seen: list[int] = []

            def append(i: int, wait_s: float) -> int:
                time.sleep(wait_s)
                seen.append(i)
                return threading.get_ident()

            threads = await asyncio.gather(
                *(compute.run("store", 0, append, i, 0.01 if i == 0 else 0.0) for i in range(20))
            )
            assert seen == list(range(20))
            assert len(set(threads)) == 1
            assert threads[0] != threading.get_ident()
            assert await compute.run("outbox", 0, threading.get_ident) != threads[0]
            await compute.aclose()

        asyncio.run(main())

    def test_short_jobs_run_side_by_side(self) -> None:
        async def main() -> None:
            compute = FieldCompute()
            barrier = threading.Barrier(3)
            await asyncio.gather(*(compute.run(SHORT, 0, barrier.wait, 10.0) for _ in range(3)))
            await compute.aclose()

        asyncio.run(main())

    def test_closing_twice_and_unused(self) -> None:
        async def main() -> None:
            compute = FieldCompute()
            await compute.aclose()
            await compute.aclose()

        asyncio.run(main())


def test_cost() -> None:
    assert cost_ns(0.1) == 100_000_000


def test_a_crew_runs_the_job_here_and_there_at_the_same_time() -> None:
    together, seen = threading.Barrier(3, timeout=30), []

    def job(what: str) -> None:
        together.wait()
        seen.append((what, threading.current_thread() is threading.main_thread()))

    Crew(2).run(3, job, "x")
    assert sorted(seen) == [("x", False), ("x", False), ("x", True)]


def test_a_crew_is_no_larger_than_it_was_made_and_one_thread_hands_nothing_over() -> None:
    seen: list[threading.Thread] = []
    crew = Crew(1)
    crew.run(1, lambda: seen.append(threading.current_thread()))
    assert seen == [threading.current_thread()]
    together = threading.Barrier(2, timeout=30)
    crew.run(9, together.wait)


def test_a_helper_that_has_not_begun_is_not_awaited() -> None:
    crew, busy, free = Crew(1), threading.Barrier(2, timeout=30), threading.Event()

    def occupy() -> None:
        busy.wait()
        free.wait(30)

    other = threading.Thread(target=crew.run, args=(2, occupy))
    other.start()  # itself at the barrier with its only helper; then both wait to be freed
    seen: list[int] = []
    deadline = time.monotonic() + 30
    while busy.n_waiting or not other.is_alive():
        assert time.monotonic() < deadline
    crew.run(2, seen.append, 1)
    assert seen == [1]
    free.set()
    other.join(30)


def test_an_error_of_the_job_is_raised() -> None:
    with pytest.raises(ValueError, match="broken"):
        Crew(1).run(2, fail, "broken")


def test_a_crew_works_on_alone_after_a_fork() -> None:
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout == "7\n", run.stderr


def test_rounds_without_extras_cross_a_process_border() -> None:
    """Every default of a record has to be picklable: jobs carry them into other processes."""
    rows = np.zeros(1, np.int64)
    data = RoundData(rows, rows, {}, {})
    assert pickle.loads(pickle.dumps(data)).quality == {}

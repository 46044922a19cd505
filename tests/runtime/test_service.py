from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.runtime.events import LinkChanged, TrainingWaits
from edge_sdk.runtime.service import Service


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        found = []
        with suppress(BlockingIOError):
            while True:
                found.append(self.socket.recv(4096).decode())
        return found


@pytest.fixture(params=["/", "@"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Systemd, str]]:
    name = f"{tmp_path}/notify" if request.param == "/" else f"@edge-sdk-test-{os.getpid()}"
    other = Systemd(f"\0{name[1:]}" if name.startswith("@") else name)
    yield other, name
    other.socket.close()


def test_ready_alive_and_stopping(systemd: tuple[Systemd, str]) -> None:
    other, name = systemd

    async def main(clock: VirtualClock) -> list[str]:
        service = Service(clock, {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())})
        heard: list[str] = []

        async def work() -> None:
            service(LinkChanged("d", connected=True))
            await clock.sleep(46)
            heard.extend(other.heard())
            service(TrainingWaits("d", "too\nhot"))

        await service.around(work())
        return [*heard, "|", *other.heard()]

    heard = run_virtual(main)
    assert heard == [
        "STATUS=connected", "READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1", "|",
        "STATUS=connected; training waits: too hot", "STOPPING=1",
    ]  # fmt: skip


def test_a_loop_that_stands_still_feeds_nobody(systemd: tuple[Systemd, str]) -> None:
    other, name = systemd

    async def main(clock: VirtualClock) -> None:
        async def work() -> None:
            await clock.sleep(1)
            other.heard()
            for _ in range(10_000):  # busy, and never back at the loop
                pass
            assert other.heard() == []

        await Service(clock, {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"}).around(work())

    run_virtual(main)


def test_an_error_and_a_cancel_come_through(systemd: tuple[Systemd, str]) -> None:
    other, name = systemd

    async def main(clock: VirtualClock) -> None:
        async def fail() -> None:
            await clock.sleep(1)
            raise ValueError("as it is")

        service = Service(clock, {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000000"})
        with pytest.raises(ValueError, match="as it is"):
            await service.around(fail())
        task = asyncio.get_running_loop().create_task(service.around(clock.sleep(1e6)))
        await clock.sleep(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(main)
    assert other.heard().count("STOPPING=1") == 2


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "never"},
    ],
)
def test_without_systemd_the_work_is_done_all_the_same(environment: dict[str, str]) -> None:
    async def main(clock: VirtualClock) -> int:
        async def work() -> None:
            await clock.sleep(100)

        service = Service(clock, environment)
        service(LinkChanged("d", connected=False, detail="x"))
        await service.around(work())
        return clock.now_ns()

    assert run_virtual(main) >= 100 * 10**9


def test_a_watchdog_for_another_process_is_not_fed(systemd: tuple[Systemd, str]) -> None:
    other, name = systemd

    async def main(clock: VirtualClock) -> None:
        environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}
        await Service(clock, environment).around(clock.sleep(10))

    run_virtual(main)
    assert other.heard() == ["READY=1", "STOPPING=1"]

"""`edge-sdk label` as a person uses it: on a terminal, beside a device that takes the labels."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_sdk.codecs import wire
from edge_sdk.core.clock import WallClock
from edge_sdk.core.compute import InlineCompute
from edge_sdk.core.interfaces import Connected, Transport
from edge_sdk.core.messages import SpecMessage
from edge_sdk.runtime.device import Device
from edge_sdk.runtime.state import DeviceState
from edge_sdk.transport.topics import Topics
from tests.helpers.brokers import TestBroker, make_broker, mqtt
from tests.helpers.devices import device_config
from tests.helpers.office import small_spec

PATIENCE_S = 60.0
SPEC = small_spec()


class Terminal:
    """A program on a pseudo-terminal, and what it has shown so far."""

    def __init__(self, clock: WallClock, leader: int) -> None:
        self.shown = ""
        self._clock = clock
        self._leader = leader
        asyncio.get_running_loop().add_reader(leader, self._read)

    def _read(self) -> None:
        try:
            self.shown += os.read(self._leader, 4096).decode()
        except OSError:  # the other end is closed
            asyncio.get_running_loop().remove_reader(self._leader)

    def type(self, keys: str) -> None:
        os.write(self._leader, keys.encode())

    async def until(self, pattern: str) -> None:
        async with self._clock.deadline(PATIENCE_S):
            while not re.search(pattern, self.shown):
                await self._clock.sleep(0.02)


@contextmanager
def pseudo_terminal() -> Iterator[tuple[int, int]]:
    leader, follower = pty.openpty()
    try:
        yield leader, follower
    finally:
        os.close(leader)
        os.close(follower)


async def publish_spec(transport: Transport) -> None:
    await transport.start()
    async for event in transport.events():
        if isinstance(event, Connected):
            message = SpecMessage(SPEC.canonical(), SPEC.digest, "c")
            await transport.publish(Topics("home").spec, wire.encode(message), retain=True)
            return


def worn_device(broker: TestBroker, clock: WallClock) -> Device:
    sensors = {m: {"driver": "synthetic", "options": {"rate_hz": 16.0, "channels": 3}} for m in SPEC.modality_names}
    config = device_config(
        sensors=sensors, labels={"worn": {"source": "mqtt"}}, training={"enabled": False},
        inference={"enabled": False}, reservoir={"persist": False},
    )  # fmt: skip
    return Device(
        config, transport=mqtt(broker, "d1"), clock=clock, compute=InlineCompute(), state=DeviceState.in_memory("d1")
    )


def labelled(device: Device) -> int:
    session = device.session
    return 0 if session is None or session.sensing is None else session.sensing.reservoir.labelled


@pytest.mark.parametrize("ending", ["q", "SIGINT"])
def test_a_person_labels_and_the_device_takes_it(tmp_path: Path, ending: str) -> None:
    broker = make_broker("mosquitto", tmp_path / "broker")
    broker.start()
    c = broker.config("d1")
    file = tmp_path / "device.toml"
    file.write_text(
        '[device]\nid = "d1"\nfederation = "home"\n'
        f'[broker]\nport = {c.port}\nusername = "d1"\npassword = "{c.password}"\n'
    )

    async def main() -> None:
        clock, coordinator = WallClock(), mqtt(broker, "coordinator")
        device = worn_device(broker, clock)
        with pseudo_terminal() as (leader, follower):
            before = termios.tcgetattr(follower)
            async with clock.group() as group:
                await publish_spec(coordinator)
                group.start(device.run(), name="device")
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "edge_sdk.cli", "label", str(file),
                    stdin=follower, stdout=follower, stderr=follower,
                )  # fmt: skip
                terminal = Terminal(clock, leader)
                await terminal.until(r"1  sit\r\n  2  walk\r\n  0  none of these\r\n  q  end")
                terminal.type("21")  # at once: the second key counts, and none is lost
                await terminal.until(r"sit  0:02  ")
                assert termios.tcgetattr(follower)[3] & termios.ECHO == 0
                terminal.type("2")
                await terminal.until(r"walk  0:02  ")
                assert labelled(device) > 0
                if ending == "q":
                    terminal.type("q")
                else:
                    process.send_signal(signal.SIGINT)
                await terminal.until(r"[3-9] labels sent\r\n")
                assert await process.wait() == 0
                assert termios.tcgetattr(follower) == before
                async with clock.deadline(PATIENCE_S):
                    while labelled(device) < 3:
                        await clock.sleep(0.02)
                group.cancel()
        await coordinator.aclose()
        assert "Traceback" not in terminal.shown

    try:
        asyncio.run(main())
    finally:
        broker.stop()


def test_a_wrong_password_is_what_the_person_is_told(tmp_path: Path) -> None:
    broker = make_broker("mosquitto", tmp_path / "broker")
    broker.start()
    file = tmp_path / "device.toml"
    file.write_text(
        '[device]\nid = "d1"\nfederation = "home"\n'
        f'[broker]\nport = {broker.port}\nusername = "d1"\npassword = "wrong"\n'
    )

    async def main() -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edge_sdk.cli", "label", str(file),
            stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, error = await process.communicate()
        return process.returncode or 0, error.decode()

    try:
        code, error = asyncio.run(main())
    finally:
        broker.stop()
    assert code == 2
    assert len(error.splitlines()) == 1
    assert "refused user 'd1'" in error

"""The serial driver against a sensor on a pseudo-terminal that lives in its own process."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.core.clock import NS, WallClock
from edge_sdk.core.config import SensorConfig
from edge_sdk.core.errors import ConfigError, PluginError, SensorTimeout, SensorUnavailable
from edge_sdk.core.records import Chunk
from edge_sdk.streams.pump import Backoff, Pump, State
from sensors import imu_serial, serial_port
from sensors.frames import DEG, G
from sensors.imu_serial import SerialImuDriver
from sensors.protocols import PROTOCOLS
from tests.helpers.detection import pasted
from tests.helpers.virtual_imu import Emulator

pytest.importorskip("serial", reason="pyserial is not installed: pip install 'edge-sdk[serial]'")
COUNT = 16 / 32768 * G  # the emulator counts samples in the raw acceleration x


def driver(imu: Emulator, protocol: str = "witmotion", **options: Any) -> SerialImuDriver:
    return SerialImuDriver("imu", {"port": imu.port, "protocol": protocol, "rate_hz": 200.0, **options})


def read_for(source: SerialImuDriver, seconds: float) -> list[Chunk]:
    end, chunks = time.monotonic() + seconds, []
    while time.monotonic() < end:
        got = source.read(0.1)
        if got is not None:
            chunks.append(got)
    return chunks


def read_to_the_end(source: SerialImuDriver) -> Iterator[Chunk]:
    while True:
        try:
            got = source.read(0.2)
        except SensorUnavailable:
            return
        if got is not None:
            yield got


def numbers(chunks: list[Chunk]) -> list[int]:
    return [round(float(v) / COUNT) for chunk in chunks for v in chunk.data[:, 0]]


@pytest.mark.slow
def test_twenty_seconds_with_flipped_bits_lose_only_damaged_groups() -> None:
    with Emulator(rate=200.0, seconds=20.0, corrupt=0.01) as imu:
        source = driver(imu)
        source.open()
        chunks = list(read_to_the_end(source))
        sent = imu.wait()
    got = numbers(chunks)
    missing = set(range(got[0], got[-1] + 1)) - set(got)
    damaged = {n for n in sent["damaged"] if got[0] <= n <= got[-1]}
    assert sent["dropped"] == 0
    assert got == sorted(set(got))
    assert len(got) > 3500
    assert damaged
    assert missing <= damaged
    # What was damaged while the port was opened, or behind the last sample, is counted too.
    assert len(damaged) <= source.damage.regions <= len(damaged) + 3
    assert len(missing) <= source.damage.incomplete <= len(missing) + 3
    assert abs(sum(c.flags for c in chunks) - len(damaged)) <= 1
    assert not any(c.gap_before for c in chunks)
    times = np.concatenate([c.times_ns for c in chunks if c.times_ns is not None])
    assert np.median(np.diff(times)) == pytest.approx(5e6, rel=0.02)
    steps = np.diff(times)[np.diff(got) == 2]  # where one group is missing, its place is left empty
    assert np.median(steps) == pytest.approx(10e6, rel=0.2)


def test_witmotion_is_told_rate_and_content_and_read_in_si_units() -> None:
    with Emulator(rate=10.0, baud=115200) as imu:
        source = driver(imu, channels=["acc", "gyro", "angle"], save=True)
        source.open()
        before = time.monotonic_ns()
        chunks = read_for(source, 1.0)
        source.close()
        commands = imu.unplug()["commands"]
    assert commands == [[0x69, 0xB588], [0x02, 0b1110], [0x03, 0x0B], [0x00, 0]]
    data = np.concatenate([c.data for c in chunks])
    assert 120 <= len(data) <= 260  # 200 and what a busy machine makes of it
    assert data.dtype == np.float32
    assert data[-1, 2:] == pytest.approx([G, 1000 * DEG, -1000 * DEG, 0, 45 * DEG, 0, -45 * DEG])
    assert chunks[0].t_ns >= before - 30_000_000
    assert 0 < chunks[-1].t_err_ns < 50_000_000


@pytest.mark.parametrize(("protocol", "rate"), [("xsens", 100.0), ("csv", 100.0), ("bno055", 50.0)])
def test_other_protocols(protocol: str, rate: float) -> None:
    extra = {"channels": ["t_ms", "ax", "ay", "az", "-"]} if protocol == "csv" else {}
    if protocol == "csv":
        extra |= {"channels": ["t_ms", "ax", "ay", "az", "-", "-", "-"], "scale": {"ay": 2.0}}
    with Emulator(protocol, rate=rate) as imu:
        source = driver(imu, protocol, rate_hz=rate, **extra)
        source.open()
        chunks = read_for(source, 1.0)
        source.close()
    data = np.concatenate([c.data for c in chunks])
    times = np.concatenate([c.times_ns for c in chunks if c.times_ns is not None])
    assert 0.5 * rate <= len(data) <= 1.3 * rate
    assert np.median(np.diff(times)) == pytest.approx(1e9 / rate, rel=0.1)
    last = {"xsens": [0, 9.81, 0.1, -0.1, 0], "csv": [1.0, -0.25], "bno055": [0, 9.81, 10 * DEG, -10 * DEG, 0]}
    assert data[-1, 1:] == pytest.approx(last[protocol], rel=1e-5)


def test_all_bauds_of_a_protocol_are_tried_within_ten_seconds() -> None:
    most = max(len(protocol.bauds) for protocol in PROTOCOLS.values())
    assert imu_serial.LISTEN_S + most * (imu_serial.PROBE_S + imu_serial.SETTLE_S) < 10


def test_a_wrong_baud_is_answered_with_the_right_one() -> None:
    with Emulator(rate=10.0, baud=9600) as imu:
        source = driver(imu, rate_hz=10.0, baud=115200)
        with pytest.raises(SensorUnavailable, match=r"at 9600 baud, not 115200: set baud = 9600"):
            source.open()
        source.close()


def test_the_baud_is_found_where_none_is_given() -> None:
    with Emulator(rate=10.0, baud=9600) as imu:
        source = driver(imu, rate_hz=10.0)
        source.open()
        assert source.baud == 9600
        assert read_for(source, 0.5)
        source.close()


def test_a_sensor_that_speaks_too_slowly_is_said_and_tried_again() -> None:
    with Emulator(rate=10.0, baud=9600) as imu:
        source = driver(imu, rate_hz=200.0)
        with pytest.raises(SensorUnavailable, match=r"at 9600 baud, but .*rate_hz = 200 needs 44000 baud"):
            source.open()
        source.close()


def test_more_samples_than_the_line_can_carry() -> None:
    with pytest.raises(ConfigError, match=r"needs 44000 baud for 22 bytes .* has 9600: at most 43 Hz"):
        SerialImuDriver("imu", {"port": "/dev/x", "rate_hz": 200.0, "baud": 9600})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rate_hz": 90.0}, r"the sensor knows 0\.1, .*200; with configure = false"),
        ({"channels": ["acc", "gyroscope"]}, r"\['gyroscope'\]; this protocol has acc, gyro"),
        ({"protocol": "bno055", "rate_hz": 200.0}, "at most 100 Hz"),
        ({"protocol": "csv", "channels": ["t_ms"]}, "at least one column"),
        ({"protocol": "csv", "channels": ["ax"], "scale": {"ay": 1.0}}, "scale: {'ay'}"),
        ({"protocol": "modbus"}, "witmotion"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)sensors\.imu\.options.*{complaint}"):
        SerialImuDriver("imu", {"port": "/dev/x", **options})


def test_a_port_that_is_not_there() -> None:
    with pytest.raises(SensorUnavailable, match=r"/dev/ttyNONE: no such port; .* Ports here: "):
        SerialImuDriver("imu", {"port": "/dev/ttyNONE"}).open()


def test_a_busy_port_says_who_has_it() -> None:
    with Emulator() as imu:
        first, second = driver(imu), driver(imu)
        first.open()
        with pytest.raises(SensorUnavailable, match=rf"busy, held by .*process {os.getpid()}"):
            second.open()
        first.close()


def test_permission_denied_names_the_group(tmp_path: Path) -> None:
    path = tmp_path / "ttyUSB0"
    path.touch()
    group = serial_port.group_of(str(path))
    told = serial_port.explain(str(path), PermissionError(errno.EACCES, "Permission denied"))
    assert f"belongs to group {group}: sudo usermod -aG {group} $USER" in told


def test_a_silent_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imu_serial, "LISTEN_S", 0.1)
    monkeypatch.setattr(imu_serial, "PROBE_S", 0.02)
    with Emulator("bno055") as imu, pytest.raises(SensorUnavailable, match="nothing comes; is the sensor powered"):
        driver(imu, "witmotion").open()


def test_unplugged_in_the_middle_of_a_frame_and_plugged_in_again() -> None:
    with Emulator(seconds=0.8, cut=1) as imu:
        source = driver(imu)
        source.open()
        assert numbers(list(read_to_the_end(source)))
        imu.wait()
        with pytest.raises(SensorUnavailable):
            source.open()
        imu.plug(seconds=5.0)
        source.open()
        assert source.read(0.5) is not None
        source.close()


async def pumped(imu: Emulator, seconds: float) -> tuple[Pump, list[Chunk], list[State]]:
    clock, chunks, states = WallClock(), [], []
    pump = Pump(
        driver(imu), SensorConfig(driver="imu_serial"), clock, chunks.append, backoff=Backoff(0.05, 0.1),
        changed=lambda: states.append(pump.state),
    )  # fmt: skip
    await pump.start()
    end_ns = clock.now_ns() + round(seconds * NS)
    while clock.now_ns() < end_ns:
        await clock.sleep(0.02)
    await pump.aclose()
    return pump, chunks, states


def test_garbage_is_one_message_and_a_counted_state(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, seconds in (("GARBAGE_S", 0.3), ("LISTEN_S", 0.2), ("PROBE_S", 0.02)):
        monkeypatch.setattr(imu_serial, name, seconds)
    caplog.set_level(logging.WARNING)
    with Emulator(garbage_from=1.0, garbage_to=3.0) as imu:
        pump, chunks, states = asyncio.run(pumped(imu, 4.5))
    assert State.FAILED in states
    assert pump.counters.reconnects >= 2
    assert [r.message for r in caplog.records if "imu" in r.message and r.levelno >= logging.WARNING] == [
        m for m in caplog.messages if "bytes but no sample" in m
    ]
    assert len([m for m in caplog.messages if "bytes but no sample" in m]) == 1
    assert sum(c.gap_before for c in chunks) >= 1
    got = numbers(chunks)
    assert got[0] < 200
    assert got[-1] > 650  # it delivers again


def test_silence_after_samples_opens_the_port_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imu_serial, "GARBAGE_S", 0.2)
    with Emulator(garbage_from=0.6) as imu:
        source = driver(imu)
        source.open()
        with pytest.raises(SensorTimeout, match=r"\d+ bytes but no sample in 0\.\d s; opening it again"):
            read_for(source, 3.0)
        source.close()


def test_without_the_library_the_line_to_install_it() -> None:
    code = (
        "import sys; sys.modules['serial'] = None\n"
        "from edge_sdk.core import registry\n"
        "kind = registry.load('sensors', 'imu_serial'); kind.detect()\n"
        "try: kind('imu', {'port': '/dev/x'})\n"
        f"except Exception as error: assert type(error).__name__ == {PluginError.__name__!r}; print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'edge-sdk[serial]' (or apt install python3-serial)" in done.stdout


def test_detection_lists_stable_names(tmp_path: Path) -> None:
    by_id = tmp_path / "dev/serial/by-id"
    by_id.mkdir(parents=True)
    (by_id / "usb-1a86_USB_Serial-if00-port0").touch()
    (tmp_path / "dev/ttyTHS1").touch()
    (tmp_path / "dev/ttyUSB0").touch()
    found = imu_serial.devices(tmp_path)
    assert [Path(f.id).name for f in found] == ["usb-1a86_USB_Serial-if00-port0", "ttyTHS1"]
    assert pasted(found[0]) == {"acc": ("", ("acc",)), "gyro": ("acc", ("gyro",))}

"""The I2C driver with the real smbus2 on a bus of register files; each test is a Python of its own, preloaded."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edge_sdk.core.errors import ConfigError
from sensors.imu_i2c import I2cImuDriver
from tests.helpers import i2c_bus

pytest.importorskip("smbus2", reason="smbus2 is not installed: pip install 'edge-sdk[i2c]'")
bus = pytest.mark.skipif(bool(i2c_bus.missing()), reason=i2c_bus.missing())

READ = """
import sys, numpy as np
from sensors.imu_i2c import I2cImuDriver
driver = I2cImuDriver("imu", eval(sys.argv[1]))
try:
    driver.open()
except Exception as error:
    print(type(error).__name__, error); sys.exit()
chunks = []
while len(chunks) < 8:
    chunk = driver.read(0.2)
    if chunk is not None: chunks.append(chunk)
driver.close()
times = np.concatenate([c.times_ns for c in chunks])
data = np.concatenate([c.data for c in chunks])
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return i2c_bus.build(tmp_path_factory.mktemp("shim"))


def read(folder: Path, library: Path, options: str, then: str = "") -> str:
    done = i2c_bus.run(folder, library, "-c", READ + then, options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@bus
def test_mpu6050_is_woken_and_read_in_si_units(tmp_path: Path, library: Path) -> None:
    chip = i2c_bus.mpu6050(tmp_path)
    told = read(
        tmp_path, library, "{'rate_hz': 200.0}", "print(*data[-1], np.median(np.diff(times)), chunks[-1].t_err_ns)"
    )
    *sample, step, error = map(float, told.split())
    assert sample == pytest.approx([0, -9.80665, 9.80665, 0.02663, -0.02663, 0.03489], rel=1e-3)
    assert 4e6 < step < 9e6  # 200 Hz, neither 400 nor 100: a busy machine makes steps longer
    assert 0.4e6 < error < 50e6
    registers = chip.read_bytes()
    assert registers[0x6B] == 0x01  # awake
    assert registers[0x1A] == 2  # 98 Hz: the widest filter below half of 200 Hz
    assert (registers[0x1B], registers[0x1C]) == (0x08, 0x08)  # 500 deg/s, 4 g


@bus
def test_icm20948_with_its_magnetometer(tmp_path: Path, library: Path) -> None:
    _, magnetometer = i2c_bus.icm20948(tmp_path)
    options = "{'chip': 'icm20948', 'bus': 1, 'address': 0x69, 'channels': ('acc', 'gyro', 'mag')}"
    sample = [float(v) for v in read(tmp_path, library, options, "print(*data[-1])").split()]
    assert sample[:3] == pytest.approx([0, 0, 9.80665])
    assert sample[3:6] == pytest.approx([0.03489, 0, -0.03489], rel=1e-3)
    assert sample[6:] == pytest.approx([15, -30, 45])
    assert magnetometer.read_bytes()[0x31] == 0x08


@bus
def test_a_burst_is_of_one_instant(tmp_path: Path, library: Path) -> None:
    """A writer moves two axes together all the time: no sample may have one old and one new."""
    chip = i2c_bus.mpu6050(tmp_path)
    stop = threading.Event()

    def move() -> None:
        with chip.open("r+b", buffering=0) as file:
            number = 0
            while not stop.is_set():
                number = (number + 1) % 1000
                file.seek(0x3B)
                file.write(struct.pack(">7h", number, -number, 8192, 0, 0, 0, 0))
                time.sleep(0.0005)

    writer = threading.Thread(target=move)
    writer.start()
    told = read(
        tmp_path, library, "{'rate_hz': 500.0}", "print(np.abs(data[:, 0] + data[:, 1]).max(), np.ptp(data[:, 0]))"
    )
    stop.set()
    writer.join()
    torn, moved = map(float, told.split())
    assert torn == 0
    assert moved > 0


@bus
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("{'address': 0x69}", "SensorUnavailable i2c-7, address 0x69: no answer; is the sensor wired"),
        ("{'chip': 'icm20948'}", "register 0x00 says 0x00, a icm20948 says 0xea; set chip to what is there"),
    ],
)
def test_what_is_not_there(tmp_path: Path, library: Path, options: str, complaint: str) -> None:
    i2c_bus.mpu6050(tmp_path)
    assert complaint in read(tmp_path, library, options)


@bus
def test_a_sensor_that_comes_loose(tmp_path: Path, library: Path) -> None:
    i2c_bus.mpu6050(tmp_path)
    then = """
import os, pathlib
driver.open()
(pathlib.Path(os.environ["I2C_SHIM_DIR"]) / "7-68.bin").unlink()
try:
    for _ in range(20): driver.read(0.1)
except Exception as error: print(type(error).__name__, error)
"""
    assert "SensorUnavailable i2c-7, address 0x68: no answer" in read(tmp_path, library, "{}", then)


@bus
def test_the_contract_of_drivers_holds_on_the_bus(tmp_path: Path, library: Path) -> None:
    i2c_bus.mpu6050(tmp_path)
    suite = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract/test_drivers.py", "-k", "imu_i2c")
    done = i2c_bus.run(tmp_path, library, *suite)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    assert " passed" in done.stdout


@bus
def test_the_chip_that_answers_is_listed_with_a_modality_per_quantity(tmp_path: Path, library: Path) -> None:
    i2c_bus.mpu6050(tmp_path)
    code = (
        "from sensors import imu_i2c\nfrom tests.helpers.detection import pasted\n"
        "for found in imu_i2c.scan(7): print(found.id, pasted(found))"
    )
    done = i2c_bus.run(tmp_path, library, "-c", code)
    assert done.stdout.splitlines() == ["i2c-7-68 {'acc': ('', ('acc',)), 'gyro': ('acc', ('gyro',))}"], done.stderr


def test_no_bus_and_no_permission(tmp_path: Path) -> None:
    driver = I2cImuDriver("imu", {"bus": 99})
    told = driver._explain(OSError(errno.ENOENT, "No such file"))
    assert told.startswith("/dev/i2c-99: no such bus; here: ")
    assert "a kernel driver has it; use imu_iio" in driver._explain(OSError(errno.EBUSY, "busy"))


def test_channels_that_the_chip_lacks() -> None:
    with pytest.raises(ConfigError, match=r"sensors\.imu\.options\.channels: acc, mag; a mpu6050 has acc, gyro"):
        I2cImuDriver("imu", {"channels": ["acc", "mag"]})


def test_without_the_library_the_line_to_install_it() -> None:
    code = (
        "import sys; sys.modules['smbus2'] = None\n"
        "from edge_sdk.core import registry\n"
        "kind = registry.load('sensors', 'imu_i2c')\n"
        "try: kind('imu', {})\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "PluginError" in done.stdout
    assert "pip install 'edge-sdk[i2c]'" in done.stdout

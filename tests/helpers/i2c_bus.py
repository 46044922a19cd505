"""An I2C bus without hardware: a preloaded C library under the real smbus2, registers in files."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "i2c_shim.c"
ROOT = Path(__file__).parents[2]


def missing() -> str:
    """Returns why there can be no virtual bus here; "": there can."""
    if sys.platform != "linux":
        return "preloading a library needs Linux"
    return "" if shutil.which("gcc") else "gcc is not installed: apt install gcc"


def build(folder: Path) -> Path:
    """Compiles the library into a folder."""
    library = folder / "i2c_shim.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def mpu6050(folder: Path, *, bus: int = 7, address: int = 0x68) -> Path:
    """Puts an MPU-6050 on the bus: asleep, 1 g on z, 131 counts on the z gyroscope."""
    registers = bytearray(256)
    registers[0x75], registers[0x6B] = 0x68, 0x40
    registers[0x3B : 0x3B + 14] = struct.pack(">7h", 0, -8192, 8192, 0, 100, -100, 131)
    return _write(folder, bus, address, registers)


def icm20948(folder: Path, *, bus: int = 1, address: int = 0x69) -> tuple[Path, Path]:
    """Puts an ICM-20948 and its magnetometer on the bus. Banks are not modelled: settings land over one another."""
    registers, magnetometer = bytearray(256), bytearray(256)
    registers[0x00], registers[0x06] = 0xEA, 0x41
    registers[0x2D : 0x2D + 14] = struct.pack(">7h", 0, 0, 8192, 131, 0, -131, 0)
    magnetometer[0x00:0x02] = b"\x48\x09"
    magnetometer[0x10:0x19] = bytes((1,)) + struct.pack("<3h", 100, 200, -300) + bytes(2)
    return _write(folder, bus, address, registers), _write(folder, bus, 0x0C, magnetometer)


def _write(folder: Path, bus: int, address: int, registers: bytearray) -> Path:
    path = folder / f"{bus}-{address:02x}.bin"
    path.write_bytes(registers)
    return path


def run(folder: Path, library: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python on the bus of a folder."""
    environment = {**os.environ, "I2C_SHIM_DIR": str(folder), "LD_PRELOAD": str(library)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, cwd=ROOT, timeout=90
    )

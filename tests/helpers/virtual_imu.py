"""An inertial sensor on a pseudo-terminal, in its own process: what stands between a driver and a real cable.

    with Emulator("witmotion", rate=200.0) as imu:
        driver = SerialImuDriver("imu", {"port": imu.port, ...})

The process imports nothing but the standard library. It hears commands, sends garbage while the driver's baud is not
its own (a pseudo-terminal has no baud, but it knows what was asked of it), and leaves when its parent does. SIGUSR1
knocks on a WitMotion: one sample of its acceleration is 4 g.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPEEDS = {getattr(termios, f"B{b}"): b for b in (4800, 9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600)}
WIT_RATES = {6: 10.0, 7: 20.0, 8: 50.0, 9: 100.0, 0xB: 200.0}


def wit_frame(kind: int, payload: bytes) -> bytes:
    body = bytes((0x55, kind)) + payload
    return body + bytes((sum(body) & 0xFF,))


def wit_sample(number: int) -> bytes:
    """One group: time, acc, gyro, angle. Acceleration x counts the samples (raw, 15 bits), z is 1 g."""
    clock = struct.pack("<6BH", 26, 1, 1, 0, 0, 0, number % 1000)
    acc = struct.pack("<4h", number & 0x7FFF, -(number & 0x7FFF), 2048, 2534)
    gyro = struct.pack("<4h", 16384, -16384, 0, 0)  # 1000 deg/s
    angle = struct.pack("<4h", 8192, 0, -8192, 0)  # 45°
    return b"".join(wit_frame(0x50 + i, p) for i, p in enumerate((clock, acc, gyro, angle)))


def bno_reply(number: int) -> bytes:
    """What a BNO055 answers when it is asked for accelerometer, magnetometer and gyroscope at once."""
    return b"\xbb\x12" + bytes((number + i) & 0xFF for i in range(18))


def xsens_sample(number: int) -> bytes:
    """MTData2 with counter, time, acc and gyro; acceleration x counts the samples."""
    parts = (
        struct.pack(">HBH", 0x1020, 2, number & 0xFFFF),
        struct.pack(">HBI", 0x1060, 4, (number * 100) & 0xFFFFFFFF),  # 100 Hz in ticks of 100 µs
        struct.pack(">HB3f", 0x4020, 12, number, 0.0, 9.81),
        struct.pack(">HB3f", 0x8020, 12, 0.1, -0.1, 0.0),
    )
    body = b"".join(parts)
    head = bytes((0xFF, 0x36, len(body))) + body
    return b"\xfa" + head + bytes((-sum(head) & 0xFF,))


def csv_sample(number: int) -> bytes:
    return f"{number * 10},{number},0.5,-0.25,{math.sin(number):.4f},0,0\r\n".encode()


SAMPLES: dict[str, Callable[[int], bytes]] = {"witmotion": wit_sample, "xsens": xsens_sample, "csv": csv_sample}


class Device:
    """The sensor's side of the terminal.

    Args:
        args: the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rate: float = args.rate
        self.rng = random.Random(args.seed)
        self.master, slave = os.openpty()
        tty.setraw(self.master)
        tty.setraw(slave)
        self.name = os.ttyname(slave)
        self.slave = slave if args.hold else -1  # held open: no hang-up while nobody reads
        os.set_blocking(self.master, False)
        self.heard = bytearray()
        self.registers = {0x00: b"\xa0", 0x3D: b"\x00"}
        self.knocked = False
        self.counts: dict[str, Any] = {"sent": 0, "dropped": 0, "damaged": [], "commands": []}

    def run(self) -> None:
        begin = due = time.monotonic()
        number = 0
        while self.args.seconds is None or time.monotonic() - begin < self.args.seconds:
            self._listen(max(0.0, due - time.monotonic()))
            if os.getppid() == 1:
                return
            if time.monotonic() < due or self.args.protocol == "bno055":
                due = max(due, time.monotonic() + 0.01) if self.args.protocol == "bno055" else due
                continue
            since = time.monotonic() - begin
            self._send(self._piece(number, garbage=self.args.garbage_from <= since < self.args.garbage_to))
            number += 1
            due += 1 / self.rate
            self.counts["sent"] = number
        if self.args.cut:
            os.write(self.master, wit_sample(number)[:17])  # and in the middle of a frame the cable goes

    def _piece(self, number: int, *, garbage: bool) -> bytes:
        piece = bytearray(SAMPLES[self.args.protocol](number))
        if self.knocked and self.args.protocol == "witmotion":
            self.knocked = False
            piece[11:22] = wit_frame(0x51, struct.pack("<4h", number & 0x7FFF, -(number & 0x7FFF), 8192, 2534))
        if garbage or not self._right_baud():
            return self.rng.randbytes(len(piece))
        if self.args.corrupt and self.rng.random() < self.args.corrupt:
            piece[self.rng.randrange(len(piece))] ^= 1 << self.rng.randrange(8)
            self.counts["damaged"].append(number)
        return bytes(piece)

    def _right_baud(self) -> bool:
        return not self.args.baud or SPEEDS.get(termios.tcgetattr(self.master)[5]) == self.args.baud

    def _send(self, piece: bytes) -> None:
        try:
            os.write(self.master, piece)
        except BlockingIOError:  # nobody reads: the terminal is full
            self.counts["dropped"] += 1

    def _listen(self, seconds: float) -> None:
        ready, _, _ = select.select([self.master], [], [], seconds)
        if not ready:
            return
        try:
            self.heard += os.read(self.master, 4096)
        except OSError:  # nobody has the terminal open
            time.sleep(0.005)
            return
        if self.args.protocol == "bno055":
            self._answer()
        else:
            self._obey()

    def _obey(self) -> None:
        while (at := self.heard.find(b"\xff\xaa")) >= 0 and len(self.heard) >= at + 5:
            register, value = struct.unpack_from("<BH", self.heard, at + 2)
            self.counts["commands"].append([register, value])
            if register == 0x03:
                self.rate = WIT_RATES.get(value, self.rate)
            del self.heard[: at + 5]

    def _answer(self) -> None:
        """BNO055: every fifth answer is an overrun, as on the real one under load."""
        while (at := self.heard.find(b"\xaa")) >= 0 and len(self.heard) >= at + 4:
            write, register, size = self.heard[at + 1 : at + 4]
            if write == 0:
                self.counts["commands"].append([register, self.heard[at + 4]])
                del self.heard[: at + 5]
                self._send(b"\xee\x01")
                continue
            del self.heard[: at + 4]
            self.counts["sent"] += 1
            if register == 0x00:
                self._send(b"\xbb\x01\xa0")
            elif self.counts["sent"] % 5 == 0:
                self._send(b"\xee\x07")
            else:
                words = [self.counts["sent"], 0, 981, *([0] * 3), 160, -160, 0, *([0] * 20)]
                self._send(bytes((0xBB, size)) + struct.pack(f"<{len(words)}h", *words)[:size])


class Emulator:
    """Starts and ends the process; `port` is a link that survives a replug.

    Args:
        protocol: "witmotion", "xsens", "csv" or "bno055".
        options: flags of the process, e.g. rate=200.0, corrupt=0.01, baud=9600, seconds=5.0.
    """

    def __init__(self, protocol: str = "witmotion", **options: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="imu")
        self.port = str(Path(self._folder.name) / "ttyIMU")
        self._command = [sys.executable, "-I", __file__, protocol]
        self._command += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Emulator:
        self.plug()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.unplug()
        finally:
            self._folder.cleanup()

    def plug(self, **options: Any) -> None:
        """Starts the sensor (again)."""
        extra = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        self._process = subprocess.Popen(
            self._command + extra, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        name = self._process.stdout.readline().strip()
        link = Path(self.port)
        link.unlink(missing_ok=True)
        link.symlink_to(name)

    def knock(self) -> None:
        """Knocks on the sensor once."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)

    def unplug(self) -> dict[str, Any]:
        """Pulls the cable, or waits for the end of `seconds`; returns what was sent."""
        if self._process is None:
            return {}
        self._process.terminate()
        return self.wait()

    def wait(self) -> dict[str, Any]:
        """Waits until the sensor's time is over; returns what was sent."""
        assert self._process is not None
        told, _ = self._process.communicate(timeout=100)
        self._process = None
        Path(self.port).unlink(missing_ok=True)
        counts: dict[str, Any] = json.loads(told)
        return counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("protocol", choices=[*SAMPLES, "bno055"])
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--corrupt", type=float, default=0.0)
    parser.add_argument("--baud", type=int, default=0)
    parser.add_argument("--garbage-from", type=float, default=math.inf)
    parser.add_argument("--garbage-to", type=float, default=math.inf)
    parser.add_argument("--cut", type=int, default=0)
    parser.add_argument("--hold", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    device = Device(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGUSR1, lambda *_: setattr(device, "knocked", True))
    try:
        print(device.name, flush=True)
        device.run()
        time.sleep(0.3)  # what is in the terminal can still be read
    finally:
        print(json.dumps(device.counts), flush=True)


if __name__ == "__main__":
    main()

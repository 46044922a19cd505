"""Sensors: how fast the parsers are, what a 200 Hz serial sensor with damaged bytes costs and loses, how old a frame is
that a slow consumer gets, and what a device costs that reads three sensors, makes windows and predicts.

python -m tests.bench.bench_sensors 60      the stream alone, for so many seconds
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.codecs import wire
from edge_sdk.core import registry
from edge_sdk.core.config import parse
from edge_sdk.core.errors import SensorUnavailable
from edge_sdk.core.events import JsonLinesReader
from edge_sdk.core.records import Chunk, ModelVersion, VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.methods.base import find
from edge_sdk.models import build
from edge_sdk.runtime.state import MODEL, DeviceState
from sensors.frames import G
from sensors.imu_serial import SerialImuDriver
from sensors.protocols import PROTOCOLS, Plan, WitMotion
from tests.helpers import virtual_v4l2
from tests.helpers.benches import ROOT
from tests.helpers.camera_frames import watch, watch_windows
from tests.helpers.virtual_bench import FPS as BENCH_FPS
from tests.helpers.virtual_bench import VirtualBench
from tests.helpers.virtual_imu import Emulator, bno_reply, csv_sample, wit_sample, xsens_sample

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SECONDS = 60.0
RATE_HZ = 200.0
CORRUPT = 0.01  # share of groups with one flipped bit
PARSE_LIMIT = 20.0  # MB/s
CORE_LIMIT = 0.1  # share of one core
MEGABYTE = 1_000_000
BAUD_LIMIT_S = 10.0  # until a wrong baud is answered with the right one
FPS, SLOW = 30.0, 3  # of the camera; a consumer this many times too slow
DEADLINE_S = 0.25  # of the windows, the default
LOAD_S, WARM_UP = 20.0, 4  # a device's load is measured so long, after so many predictions
PATIENCE_S = 90.0
LOAD_LIMIT = 0.35  # share of one core
SENSORS = ("camera", "audio", "imu")
PIECE = 4096  # bytes per read, about what a port holds after a pause


IMU = ("acc", "gyro")
CSV = ("t_ms", "ax", "ay", "az", "gx", "gy", "gz")
PARSED: dict[str, tuple[tuple[str, ...], Callable[[int], bytes]]] = {
    "witmotion": (IMU, wit_sample), "xsens": (IMU, xsens_sample), "bno055": (IMU, bno_reply), "csv": (CSV, csv_sample),
}  # fmt: skip


def parsers() -> dict[str, float]:
    """Returns MB/s of every serial protocol, and of those with checksums on damaged bytes."""
    speeds = {}
    for name, (channels, sample) in PARSED.items():
        data, plan = b"".join(map(sample, range(40_000))), Plan(channels, 100.0)
        speeds[name] = speed(PROTOCOLS[name](plan).feed, data)
        if name in ("witmotion", "xsens"):
            speeds[f"{name}_damaged"] = speed(PROTOCOLS[name](plan).feed, damage(data))
    return speeds


def speed(feed: Callable[[bytes], object], data: bytes) -> float:
    """Returns MB per second of processor time, the median of five runs: a parser waits for nothing but its turn."""
    pieces = [data[i : i + PIECE] for i in range(0, len(data), PIECE)]
    runs = []
    for _ in range(5):
        begin = time.process_time()
        for piece in pieces:
            feed(piece)
        runs.append(len(data) / MEGABYTE / (time.process_time() - begin))
    return float(np.median(runs))


def damage(data: bytes) -> bytes:
    """Returns the bytes with one flipped bit in 4400 of them: about one in a hundred groups."""
    rng = np.random.default_rng(1)
    array = np.frombuffer(data, np.uint8).copy()
    where = rng.choice(len(array), len(array) // 4400, replace=False)
    array[where] ^= 1 << rng.integers(0, 8, len(where), dtype=np.uint8)
    return array.tobytes()


def soak(seconds: float) -> dict[str, float]:
    """Streams from a virtual WitMotion; returns what was lost and what it cost."""
    with Emulator("witmotion", rate=RATE_HZ, seconds=seconds, corrupt=CORRUPT) as imu:
        driver = SerialImuDriver("imu", {"port": imu.port, "rate_hz": RATE_HZ})
        driver.open()
        cpu, wall, chunks = time.process_time(), time.monotonic(), list[Chunk]()
        try:
            while True:
                chunk = driver.read(0.2)
                if chunk is not None:
                    chunks.append(chunk)
        except SensorUnavailable:  # the sensor's time is over
            cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        sent = imu.wait()
    got = [round(float(v) / (16 / 32768 * G)) for c in chunks for v in c.data[:, 0]]
    missing = set(range(got[0], got[-1] + 1)) - set(got)
    damaged = {n for n in sent["damaged"] if got[0] < n < got[-1]}
    times = np.concatenate([c.times_ns for c in chunks if c.times_ns is not None])
    return {
        "received": len(got),
        "undamaged_lost": len(missing - damaged),
        "damaged": len(damaged),
        "uncounted": abs(sum(c.flags for c in chunks) - len(damaged)),
        "core": cpu / wall,
        "jitter_ms": float(np.diff(times)[np.diff(got) == 1].std()) / 1e6,
    }


def wrong_baud(baud: int) -> float:
    """Returns how long a start with another baud than the sensor's takes to say the right one, s."""
    with Emulator("witmotion", rate=10.0, baud=baud) as imu:
        driver = SerialImuDriver("imu", {"port": imu.port, "rate_hz": 10.0, "baud": 115200})
        begin = time.monotonic()
        try:
            driver.open()
        except SensorUnavailable as error:
            if f"set baud = {baud}" not in str(error):
                raise
            return time.monotonic() - begin
        finally:
            driver.close()
    raise AssertionError("the wrong baud was not noticed")


def slow_consumer() -> tuple[float, float] | None:
    """Returns the age that 95 % of the frames of a slow consumer keep, ms: from the driver, and in its windows.

    None: this machine has no gcc.
    """
    if virtual_v4l2.missing():
        return None
    with tempfile.TemporaryDirectory() as folder:
        env = virtual_v4l2.environment(Path(folder))
        got = watch(env, 200, pause_s=SLOW / FPS, source=virtual_v4l2.DEVICE, fps=FPS)
        cut = watch_windows(env, 200, pause_s=SLOW / FPS, deadline_s=DEADLINE_S, source=virtual_v4l2.DEVICE, fps=FPS)
    driver_ms, window_ms = (float(np.quantile(said["ages"], 0.95)) / 1e6 for said in (got, cut))
    return driver_ms, window_ms


def scenes() -> FederationSpec:
    """Returns the federation of examples/federation_scenes.toml without its text."""
    plain = tomllib.loads((ROOT / "examples" / "federation_scenes.toml").read_text(encoding="utf-8"))
    plain["modalities"] = [m for m in plain["modalities"] if m["name"] in SENSORS]
    plain["window"]["deadline_s"] = 1.0  # PulseAudio's blocks are longer than a sound card's
    return parse(plain, FederationSpec, "scenes")


def agent(folder: Path, bench: VirtualBench) -> subprocess.Popen[bytes]:
    """Starts `edge-sdk run` with three sensors and a model that it was given; it trains nothing and has no broker."""
    spec = scenes()
    needs = find(spec.method.name).needs
    registry.load("exporters", "onnx")(spec, needs, folder / "graph.onnx")
    tensors = build.initial_tensors(spec, needs, 1)
    state = DeviceState.open(folder / "state", spec.name, "d1")
    state.keep_spec(spec)
    version = VersionId("ab" * 16, 3, wire.tensors_digest(tensors))
    state.keep_model(MODEL, ModelVersion(version, tensors), spec.shape_digest)
    state.close()
    sections = bench.sections().replace("[sensors.usb]", "[sensors.camera]")
    sections = sections.replace(f"fps = {BENCH_FPS}, size = 0", f"fps = {FPS}, size = 224")
    (folder / "device.toml").write_text(
        f'[device]\nid = "d1"\nfederation = "{spec.name}"\nstate_dir = "{folder / "state"}"\n[broker]\nport = 1\n'
        f'[training]\nenabled = false\n[inference]\ngraph = "{folder / "graph.onnx"}"\n[reservoir]\npersist = false\n'
        + sections,
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "edge_sdk.cli", "run", str(folder / "device.toml"), "--log-level", "error"]
    return subprocess.Popen([*command, "--events", str(folder / "events")], env={**bench.env, "OMP_NUM_THREADS": "1"})


def three_sensors() -> tuple[float, int] | None:
    """Returns the share of a core that sensing, windows and predictions take, and how many windows were predicted.

    None: this machine cannot have the virtual devices.
    """
    import psutil

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = VirtualBench(folder, only=("imu", "usb", "audio"))
        if bench.absent:
            bench.close()
            return None
        process = agent(folder, bench)
        try:
            events = JsonLinesReader(folder / "events")
            whole, end = 0, time.monotonic() + PATIENCE_S
            while whole < WARM_UP:
                time.sleep(0.2)
                whole += len(complete(events.new()))
                if time.monotonic() > end:
                    raise AssertionError(f"no window with {', '.join(SENSORS)} within {PATIENCE_S:g} s")
            measured, begin = psutil.Process(process.pid), time.monotonic()
            before = sum(measured.cpu_times()[:2])
            time.sleep(LOAD_S)
            share = (sum(measured.cpu_times()[:2]) - before) / (time.monotonic() - begin)
            return share, len(complete(events.new()))
        finally:
            process.terminate()
            process.wait(20)
            bench.close()


def complete(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the predictions of windows with all three modalities."""
    return [e for e in events if e["event"] == "PredictionMade" and len(e["modalities"]) == len(SENSORS)]


def row(name: str, value: float, unit: str, reference: str, ratio: float) -> dict[str, Any]:
    """Returns one line of the report; a ratio of at most 1 keeps the limit."""
    return {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio}


def run() -> list[dict[str, Any]]:
    """Returns rows {name, value, unit, reference, ratio}."""
    limit = f"limit {PARSE_LIMIT:g} MB/s, to SI numbers in pieces of {PIECE} bytes; limit / measured"
    rows = [row(f"sensors.parse.{n}", round(v, 1), "MB/s", limit, PARSE_LIMIT / v) for n, v in parsers().items()]
    slowest = WitMotion.bauds[-1]
    found_s = wrong_baud(slowest)
    got = soak(SECONDS)
    what = f"{SECONDS:g} s at {RATE_HZ:g} Hz over a pseudo-terminal, one flipped bit in {CORRUPT:.0%} of the groups"
    none = "limit 0; the ratio is the number itself"
    for name, age_ms in zip(("age", "age_at_window"), slow_consumer() or (), strict=False):
        limit = f"limit two periods of {FPS:g} fps; 95 % of frames, V4L2, consumer {SLOW} times too slow"
        rows.append(row(f"sensors.camera.{name}", round(age_ms, 1), "ms", limit, age_ms / (2e3 / FPS)))
    if (device := three_sensors()) is not None:
        limit = (
            f"limit {LOAD_LIMIT} of one core; IMU 100 Hz, camera {FPS:g} fps to 3x224x224, sound 16 kHz; {device[1]} "
            f"windows of 3 s predicted in {LOAD_S:g} s by two ResNet-18 of width 16 and a CNN"
        )
        rows.append(row("sensors.device.core", round(device[0], 3), "cores", limit, device[0] / LOAD_LIMIT))
    return [
        *rows,
        row(
            "sensors.serial.lost",
            got["undamaged_lost"],
            "samples",
            f"{what}; undamaged ones lost; {none}",
            got["undamaged_lost"],
        ),
        row(
            "sensors.serial.uncounted",
            got["uncounted"],
            "samples",
            f"{got['damaged']:g} damaged, uncounted; limit 1",
            got["uncounted"],
        ),
        row(
            "sensors.serial.core",
            round(got["core"], 4),
            "cores",
            f"limit {CORE_LIMIT} of one core",
            got["core"] / CORE_LIMIT,
        ),
        row(
            "sensors.serial.wrong_baud",
            round(found_s, 2),
            "s",
            f"limit {BAUD_LIMIT_S:g} s; configured 115200, the sensor at {slowest}, the last one tried",
            found_s / BAUD_LIMIT_S,
        ),
        row("sensors.serial.jitter", round(got["jitter_ms"], 3), "ms", "limit 1 ms, of sample times", got["jitter_ms"]),
    ]


if __name__ == "__main__":
    print(soak(float(sys.argv[1])))

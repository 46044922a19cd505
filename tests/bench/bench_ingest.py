"""Ingest: a 1 kHz 6-axis stream, 16 kHz audio and 30 fps frames of 224×224×3 through pump → window, in one process."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from edge_sdk.core.clock import NS, WallClock
from edge_sdk.core.config import SensorConfig
from edge_sdk.core.records import Window
from edge_sdk.core.spec import FederationSpec, ModalitySpec, WindowSpec
from edge_sdk.streams.pipeline import Streams

SECONDS = 12.0
CORE_LIMIT = 0.25  # share of one core

SPEC = FederationSpec(
    name="bench",
    modalities=(
        ModalitySpec(name="imu", shape=(6, 1000), rate_hz=1000.0),
        ModalitySpec(name="audio", shape=(1, 16000), rate_hz=16000.0),
        ModalitySpec(name="camera", shape=(3, 224, 224)),
    ),
    classes=("a", "b"),
    window=WindowSpec(length_s=1.0, hop_s=0.5),
)
SENSORS = {
    "imu": {"rate_hz": 1000.0, "channels": 6, "chunk": 10},  # 100 chunks per second
    "audio": {"rate_hz": 16000.0, "channels": 1, "chunk": 320},  # 20 ms blocks
    "camera": {"kind": "image", "rate_hz": 30.0, "channels": 3, "height": 224, "width": 224, "chunk": 1},
}


async def ingest() -> dict[str, Any]:
    """Runs the pipeline for SECONDS and returns what it took."""
    sensors = {m: SensorConfig(driver="synthetic", options=o) for m, o in SENSORS.items()}
    clock, hop_ns = WallClock(), round(SPEC.window.hop_s * NS)
    # The sensors begin with a window, so that no sample lies before the first whole one.
    epoch_ns = ((clock.now_ns() + NS // 4) // hop_ns + 1) * hop_ns
    streams = Streams(SPEC, sensors, clock, epoch_ns=epoch_ns)
    complete = 0
    await streams.start()
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    async for item in streams.items():
        complete += isinstance(item, Window) and len(item.data) == len(SENSORS)
        if time.perf_counter() - start_s > SECONDS:
            break
    took_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    await streams.aclose()
    lost = sum(pump.counters.lost for pump in streams.pumps.values())
    lost += sum(counters.lost for counters in streams.windower.counters.values())
    return {
        "core": cpu_s / took_s,
        "lost": lost,
        "complete": complete,
        "expected": int((took_s - SPEC.window.length_s) / SPEC.window.hop_s) - 2,
        "status": streams.status(),
    }


def run() -> list[dict[str, Any]]:
    """Returns rows {name, value, unit, reference, ratio}; a ratio of at most 1 keeps the limit."""
    got = asyncio.run(ingest())
    return [
        {
            "name": "ingest.core",
            "value": round(got["core"], 4),
            "unit": "cores",
            "reference": f"limit {CORE_LIMIT} of one core, process CPU time over {SECONDS:g} s",
            "ratio": got["core"] / CORE_LIMIT,
        },
        {
            "name": "ingest.lost",
            "value": got["lost"],
            "unit": "samples",
            "reference": "limit 0 samples; the ratio is the number itself",
            "ratio": float(got["lost"]),
        },
        {
            "name": "ingest.windows",
            "value": got["complete"],
            "unit": "windows",
            "reference": f"expected at least {got['expected']} windows with all three modalities; expected / measured",
            "ratio": got["expected"] / max(1, got["complete"]),
        },
    ]

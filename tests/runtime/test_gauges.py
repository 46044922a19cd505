"""What `edge-sdk monitor` knows of its sensors, and the block characters that it draws them with."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.commands import panel
from edge_sdk.core.clock import NS, WallClock
from edge_sdk.core.config import DeviceConfig
from edge_sdk.core.records import Chunk
from edge_sdk.recording import Writer
from edge_sdk.runtime.gauges import COLUMNS, SPAN_S, Gauges, Reading, Trace, lost
from tests.helpers.virtual_imu import Emulator

SPEED = 100.0


def seen(sensors: dict[str, Any]) -> dict[str, Reading]:
    """What finite sensors look like when they have ended."""
    config = DeviceConfig.model_validate({"device": {"id": "d", "federation": "f"}, "sensors": sensors})

    async def main() -> dict[str, Reading]:
        clock = WallClock(SPEED)
        async with Gauges(config, clock) as gauges:
            async with clock.deadline(SPEED * 30):
                while not gauges.ended:
                    await clock.sleep(1.0)
            return {reading.modality: reading for reading in gauges.readings()}

    return asyncio.run(main())


def recorded(folder: Path, stream: str, *chunks: Chunk) -> dict[str, Any]:
    with Writer(folder / stream, start_ns=0) as writer:
        for one in chunks:
            writer.append(one)
    return {"driver": "replay", "options": {"path": str(folder / stream)}}


def test_a_slow_sensor_is_drawn_value_by_value_and_a_fast_one_by_how_far_it_reaches(tmp_path: Path) -> None:
    ramp = np.arange(100, dtype=np.float32)[:, None]
    tone = np.zeros((64_000, 1), np.float32)
    tone[32_000:48_000:2], tone[32_001:48_000:2] = 0.5, -0.25
    got = seen({
        "slow": recorded(tmp_path, "slow", Chunk("slow", 0, 0, ramp, period_ns=NS // 10)),
        "fast": recorded(tmp_path, "fast", Chunk("fast", 0, 0, tone, period_ns=NS // 16_000)),
    })  # fmt: skip
    (slow,), (fast,) = got["slow"].traces, got["fast"].traces
    assert (slow.envelope, fast.envelope) == (False, True)
    assert len(slow.points) == COLUMNS
    assert slow.points[-1] == 99
    assert slow.points[0] == pytest.approx(99 - 10 * SPAN_S, abs=2)  # older ones have left the picture
    known = [p for p in fast.points if not math.isnan(p)]
    assert sorted(set(known)) == [0.0, 0.5]
    assert np.mean(np.array(known) == 0.5) == pytest.approx(0.25, abs=0.06)


def test_modalities_of_one_device_show_their_own_columns() -> None:
    pytest.importorskip("serial", reason="pyserial is not installed (extra `serial`)")

    async def main(port: str) -> dict[str, Reading]:
        options = {"port": port, "rate_hz": 100.0, "baud": 115200}
        sensors = {
            "acc": {"driver": "imu_serial", "columns": ["acc"], "options": options},
            "turn": {"from": "acc", "columns": ["gyro"]},
        }
        config = DeviceConfig.model_validate({"device": {"id": "d", "federation": "f"}, "sensors": sensors})
        clock = WallClock()
        async with Gauges(config, clock) as gauges, clock.deadline(30):
            while not all(reading.delivers for reading in gauges.readings()):
                await clock.sleep(0.05)
            return {reading.modality: reading for reading in gauges.readings()}

    with Emulator("witmotion", rate=100.0) as imu:
        got = asyncio.run(main(imu.port))
    assert [trace.name for trace in got["acc"].traces] == ["acc.0", "acc.1", "acc.2"]
    assert [trace.name for trace in got["turn"].traces] == ["gyro.0", "gyro.1", "gyro.2"]
    assert got["acc"].traces[2].points[-1] == pytest.approx(9.81, abs=0.01)
    assert got["turn"].traces[0].points[-1] == pytest.approx(17.45, abs=0.01)  # 1000 deg/s


def test_text_is_shown_as_it_was_said(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("hello\nGrüße aus Köln\n", encoding="utf-8")
    path = str(tmp_path / "lines.txt")
    got = seen({"notes": {"driver": "text", "options": {"path": path, "follow": False, "length": 0}}})
    assert got["notes"].text == "Grüße aus Köln"
    assert "notes: Grüße aus Köln" in panel.plain(list(got.values()))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_keeps_its_colours_and_its_proportions(tmp_path: Path, channels: int) -> None:
    image = np.zeros((1, channels, 48, 96), np.uint8)
    image[:, 0, :, 48:] = 200
    got = seen({"video": recorded(tmp_path, "video", Chunk("video", 0, 0, image, period_ns=NS // 10))})
    picture = got["video"].picture
    assert picture is not None
    small = panel.thumbnail(picture)
    assert small.shape == (20, 40, 3)
    assert small[0, 0].tolist() == [0, 0, 0]
    assert small[-1, -1].tolist() == ([200, 200, 200] if channels == 1 else [200, 0, 0])
    pytest.importorskip("rich", reason="drawing needs rich (extra `view`)")
    lines = panel.blocks(small, "video").plain.splitlines()
    assert lines == ["video", *["▀" * 40] * 10]


def test_frames_that_a_newer_one_replaced_are_not_lost() -> None:
    reading = Reading(
        "video", "camera", "streaming", "", 30.0, 0.01, 100, 0, {"superseded": 40, "overrun": 2}, 0, (3, 4, 4)
    )
    assert lost(reading) == 2
    assert panel.row(reading)[6] == "2"


@pytest.mark.parametrize(
    ("points", "line"),
    [
        ((0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0), "▁▂▃▄▅▆▇█"),
        ((math.nan, 5.0, 5.0), " ▁▁"),
        ((math.nan, math.nan), "  "),
        ((-1.0, 1.0, math.nan), "▁█ "),
    ],
)
def test_a_line_of_blocks(points: tuple[float, ...], line: str) -> None:
    assert panel.spark(points) == line


def test_the_range_of_a_wave() -> None:
    assert panel.caption(Trace("x", (math.nan, -9.81, 2.0), envelope=False)) == "-9.81 … 2"
    assert panel.caption(Trace("x", (0.1, 0.4), envelope=True)) == "0 … 0.4"
    assert panel.caption(Trace("x", (math.nan,), envelope=False)) == ""

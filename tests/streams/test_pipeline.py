"""From drivers to windows on a sped-up wall clock: replayed segments, late streams, failing sensors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core.clock import WallClock
from edge_sdk.core.config import SensorConfig
from edge_sdk.core.errors import ConfigError, PluginError
from edge_sdk.core.records import Chunk, LatePart, Window
from edge_sdk.core.spec import FederationSpec
from edge_sdk.recording import Reader, Writer
from edge_sdk.streams.pipeline import Streams
from tests.helpers.streams import chunk, inertial_spec

SPEED = 20.0
DATA = np.load(Path(__file__).parents[1] / "data" / "utd_mhad_small.npz")
SEGMENTS = 6


def segments(folder: Path) -> Path:
    """A recording of 2.56 s segments whose values name them."""
    with Writer(folder, start_ns=0) as writer:
        for i in range(SEGMENTS):
            for name in ("acc", "gyro"):
                c = chunk(name, i * 128, 128, seq=i)
                data = np.full((128, 3), i + 1, np.float32)
                writer.append(Chunk(name, i, c.t_ns, data, period_ns=c.period_ns, gap_before=True))
    return folder


def replay(folder: Path, **options: object) -> SensorConfig:
    return SensorConfig(driver="replay", options={"path": str(folder), "align_s": 2.56, **options})


async def collect(streams: Streams, enough: Callable[[list[Window | LatePart]], bool]) -> list[Window | LatePart]:
    items: list[Window | LatePart] = []
    await streams.start()
    async for item in streams.items():
        items.append(item)
        if enough(items):
            break
    await streams.aclose()
    return items


def never(items: list[Window | LatePart]) -> bool:
    return False


@pytest.mark.parametrize("hop_s", [2.56, 1.28])
def test_windows_out_are_the_segments_in(tmp_path: Path, hop_s: float) -> None:
    async def main() -> None:
        folder = segments(tmp_path / "r")
        spec = inertial_spec(hop_s=hop_s)
        streams = Streams(spec, {m: replay(folder) for m in spec.modality_names}, WallClock(SPEED))
        items = await collect(streams, never)  # a finite source: the items end
        got = {i: {m: np.unique(a).tolist() for m, a in parts.items()} for i, parts in merged(items).items()}
        step = round(2.56 / hop_s)
        first = min(got)
        assert got == {first + i * step: {"acc": [i + 1.0], "gyro": [i + 1.0]} for i in range(SEGMENTS)}
        status = streams.status()["sensors"]["acc"]
        assert streams.finished
        assert (status["samples"], status["in_windows"], status["pending"]) == (768, 768, 0)
        assert status["dropped"] == {}
        assert status["measured_hz"] == pytest.approx(50.0)

    asyncio.run(main())


def merged(items: list[Window | LatePart]) -> dict[int, dict[str, np.ndarray]]:
    parts: dict[int, dict[str, np.ndarray]] = {}
    for item in items:
        new = item.data if isinstance(item, Window) else {item.modality: item.data}
        assert not set(new) & set(parts.setdefault(item.index, {}))
        parts[item.index].update(new)
    return parts


def test_late_stream_comes_in_parts_and_all_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        folder = segments(tmp_path / "r")
        sensors = {"acc": replay(folder), "gyro": replay(folder, delay_s=10.0)}
        items = await collect(Streams(inertial_spec(hop_s=2.56), sensors, WallClock(SPEED)), never)
        got = merged(items)
        assert len(got) == SEGMENTS
        assert all(np.array_equal(parts["acc"], parts["gyro"]) for parts in got.values())
        assert "gyro" in {i.modality for i in items if isinstance(i, LatePart)}

    asyncio.run(main())


def test_recording_what_is_replayed_gives_the_same_samples(tmp_path: Path) -> None:
    """A whole recording of a person, through pump and tap into a second recording: bit-identical."""

    async def main() -> None:
        data = DATA["acc_a23_s5_t2"]
        with Writer(tmp_path / "one", start_ns=0) as writer:
            for at in range(0, len(data), 16):
                piece = data[at : at + 16]
                writer.append(Chunk("acc", at // 16, at * 20_000_000, piece, period_ns=20_000_000))
        spec = inertial_spec("acc", length_s=1.28, hop_s=0.64)
        clock = WallClock(SPEED)
        with Writer(tmp_path / "two", start_ns=clock.now_ns()) as second:
            streams = Streams(spec, {"acc": replay(tmp_path / "one")}, clock, tap=second.append)
            items = await collect(streams, never)
        copied = np.concatenate([c.data for c in Reader(tmp_path / "two").chunks("acc")])
        assert np.array_equal(copied, data)
        got = merged(items)
        assert len(got) == (len(data) - 64) // 32 + 1
        for place, index in enumerate(sorted(got)):
            assert np.array_equal(got[index]["acc"], data[place * 32 : place * 32 + 64].T)

    asyncio.run(main())


def test_a_dead_sensor_does_not_stop_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        options = {"rate_hz": 50.0, "chunk": 8}
        sensors = {
            "acc": SensorConfig(driver="synthetic", options=options),
            "gyro": SensorConfig(driver="synthetic", options={**options, "fail_opens": 1_000_000}),
        }
        streams = Streams(inertial_spec(length_s=0.64, hop_s=0.64), sensors, WallClock(SPEED))
        items = await collect(streams, lambda items: len(items) == 5)
        assert all(list(parts) == ["acc"] for parts in merged(items).values())
        status = streams.status()["sensors"]
        assert "as asked" in status["gyro"]["error"]
        assert status["gyro"]["last_age_s"] is None
        assert status["acc"]["dropped"].get("overrun", 0) == 0

    asyncio.run(main())


def test_aclose_ends_the_items() -> None:
    async def main() -> None:
        sensors = {"acc": SensorConfig(driver="synthetic")}
        streams = Streams(inertial_spec("acc"), sensors, WallClock())
        await streams.start()
        consumer = asyncio.ensure_future(collect_all(streams))
        await asyncio.sleep(0)
        await streams.aclose()
        assert await consumer == []

    asyncio.run(main())


async def collect_all(streams: Streams) -> list[Window | LatePart]:
    return [item async for item in streams.items()]


def federation() -> FederationSpec:
    return inertial_spec("acc")


def test_bad_configuration_is_named() -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="mag"):
            Streams(federation(), {"mag": SensorConfig(driver="synthetic")}, WallClock())
        with pytest.raises(PluginError, match="no_such_driver"):
            Streams(federation(), {"acc": SensorConfig(driver="no_such_driver")}, WallClock())
        with pytest.raises(ConfigError, match=r"sensors\.acc\.options:rate"):
            Streams(federation(), {"acc": SensorConfig(driver="synthetic", options={"rate": 1})}, WallClock())

    asyncio.run(main())

"""One device that feeds two modalities: opened once, read by one thread, divided by columns."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.core.clock import WallClock
from edge_sdk.core.compute import FieldCompute
from edge_sdk.core.config import DeviceConfig, SensorConfig, parse
from edge_sdk.core.errors import ConfigError, SensorUnavailable
from edge_sdk.core.interfaces import Driver, spans
from edge_sdk.core.records import Chunk, Window
from edge_sdk.recording import Reader
from edge_sdk.runtime import probing, recorder
from edge_sdk.streams import sources as sources_module
from edge_sdk.streams.pipeline import Streams
from edge_sdk.streams.sources import sources
from tests.helpers.streams import ScriptedDriver, inertial_spec
from tests.helpers.virtual_imu import Emulator


class SixAxes(ScriptedDriver):
    """Delivers samples whose columns are 0 … 5; remembers who was made."""

    made: list[SixAxes] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, stream: str, options: Mapping[str, Any]) -> None:
        super().__init__(stream, options)
        self.made.append(self)

    @property
    def columns(self) -> Mapping[str, slice]:
        return spans([("acc", 3), ("gyro", 3)])


@pytest.fixture(autouse=True)
def _nobody_was_made() -> None:
    SixAxes.made = []


def six(seq: int, t_ns: int, n: int = 8) -> Chunk:
    return Chunk("acc", seq, t_ns, np.tile(np.arange(6, dtype=np.float32), (n, 1)), period_ns=20_000_000)


def sensors(more: dict[str, Any] | None = None, **options: Any) -> dict[str, SensorConfig]:
    sections = {
        "acc": {"driver": "six", "columns": ["acc"], "options": options},
        "gyro": {"from": "acc", "columns": ["gyro"]},
        **(more or {}),
    }
    plain = {"device": {"id": "d", "federation": "f"}, "sensors": sections}
    return parse(plain, DeviceConfig, "device.toml").sensors


def load(name: str) -> type[Driver]:
    return SixAxes if name == "six" else sources_module.registered_driver(name)


def test_one_driver_is_made_and_its_columns_are_dealt_out() -> None:
    found = sources(sensors(), load)
    assert [(s.driver.stream, s.modalities) for s in found] == [("acc", ("acc", "gyro"))]
    got: list[Chunk] = []
    found[0].sink(got.append)(six(3, 7))
    assert [(c.stream, c.seq, c.t_ns, c.data[0].tolist()) for c in got] == [
        ("acc", 3, 7, [0, 1, 2]),
        ("gyro", 3, 7, [3, 4, 5]),
    ]


def test_a_federation_without_the_first_modality_still_gets_the_second() -> None:
    only = {"gyro": sensors()["gyro"]}
    (source,) = sources(only, load)
    assert source.modalities == ("gyro",)
    assert source.shares[0].of(six(0, 0)).data[0].tolist() == [3, 4, 5]


def test_columns_come_in_the_order_in_which_they_are_named() -> None:
    swapped = {"acc": SensorConfig(driver="six", columns=("gyro", "acc"))}
    (source,) = sources(swapped, load)
    assert source.shares[0].of(six(0, 0)).data[0].tolist() == [3, 4, 5, 0, 1, 2]


def test_columns_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match=r"sensors\.acc\.columns: no mag; this sensor delivers acc, gyro"):
        sources({"acc": SensorConfig(driver="six", columns=("acc", "mag"))}, load)
    with pytest.raises(ConfigError, match=r"sensors\.acc\.columns: no x; .* columns without names"):
        sources({"acc": SensorConfig(driver="synthetic", columns=("x",))})


@pytest.mark.parametrize(
    ("gyro", "said"),
    [
        ({"from": "ac", "columns": ["gyro"]}, r"sensors\.gyro\.from: no section \[sensors\.ac\] .*; there are acc"),
        ({"from": "gyro", "columns": ["gyro"]}, r"sensors\.gyro\.from: no section \[sensors\.gyro\] with a driver"),
        ({"from": "acc"}, r"sensors\.gyro\.columns: required beside `from`"),
        ({"from": "acc", "columns": ["gyro"], "drop": "latest"}, r"sensors\.gyro\.drop: unknown beside `from`"),
        ({"from": "acc", "columns": 3}, r"sensors\.gyro\.columns: .*found 3"),
        ({"from": 3, "columns": ["gyro"]}, r"sensors\.gyro\.from: no section \[sensors\.3\]"),
    ],
)
def test_what_is_wrong_in_a_shared_section_is_named(gyro: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^device\.toml:{said}"):
        sensors({"gyro": gyro})


def test_both_modalities_reach_the_windows_and_fail_together_while_others_go_on() -> None:
    async def main() -> None:
        clock, spec = WallClock(20.0), inertial_spec("acc", "gyro", "other", length_s=0.64, hop_s=0.64)
        more = {"other": {"driver": "synthetic", "options": {"rate_hz": 50.0, "chunk": 8}}}
        streams = Streams(spec, sensors(more), clock, load)
        (imu,), gone = SixAxes.made, SensorUnavailable("unplugged")
        start = clock.now_ns()
        for seq in range(24):
            imu.script.put(six(seq, start + seq * 160_000_000))
        imu.script.put(lambda: imu.fail_opens.extend([gone] * 1000) or gone)
        parts: dict[int, dict[str, Any]] = {}
        alone = 0  # windows of the other sensor only, after the shared one had delivered
        await streams.start()
        async for item in streams.items():
            new = item.data if isinstance(item, Window) else {item.modality: item.data}
            parts.setdefault(item.index, {}).update(new)
            alone += isinstance(item, Window) and list(new) == ["other"] and any("acc" in p for p in parts.values())
            if alone == 3:
                break
        status = streams.status()["sensors"]
        await streams.aclose()
        shared = [p for p in parts.values() if "acc" in p]
        assert shared
        assert all(np.unique(p["acc"]).tolist() == [0, 1, 2] for p in shared)
        assert all(np.unique(p["gyro"]).tolist() == [3, 4, 5] for p in shared)
        assert status["acc"]["error"] == status["gyro"]["error"] == "SensorUnavailable: unplugged"
        assert status["acc"]["samples"] == status["gyro"]["samples"] == 24 * 8
        assert status["other"]["state"] == "streaming"

    asyncio.run(main())


async def probed(config: DeviceConfig) -> list[probing.Tried]:
    clock, compute = WallClock(), FieldCompute()
    try:
        return [await probing.sensor(m, config, clock=clock, compute=compute) for m in config.sensors]
    finally:
        await compute.aclose()


def test_a_serial_sensor_is_recorded_as_two_streams_from_one_port(tmp_path: Path) -> None:
    pytest.importorskip("serial", reason="pyserial is not installed: pip install 'edge-sdk[serial]'")
    with Emulator("witmotion", rate=200.0) as imu:
        options = {"port": imu.port, "rate_hz": 200.0}
        plain = {
            "device": {"id": "d", "federation": "f"},
            "sensors": {
                "acc": {"driver": "imu_serial", "columns": ["acc"], "options": options},
                "gyro": {"from": "acc", "columns": ["gyro"]},
            },
        }
        config = parse(plain, DeviceConfig, "device.toml")
        tried = asyncio.run(probed(config))
        written = asyncio.run(recorder.record(config, tmp_path / "r", clock=WallClock(), seconds=1.0))
    assert [t.detail.partition(" samples of ")[2] for t in tried] == ["3 float32", "3 float32"], tried
    assert written["acc"] == written["gyro"] > 50
    reader = Reader(tmp_path / "r")
    acc, gyro = (list(reader.chunks(m)) for m in ("acc", "gyro"))
    assert [c.t_ns for c in acc] == [c.t_ns for c in gyro]
    assert acc[-1].data[-1, 2] == pytest.approx(9.80665)
    assert np.abs(gyro[-1].data[-1, :2]) == pytest.approx(np.deg2rad(1000), rel=1e-4)

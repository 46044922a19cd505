"""A sensor that breaks is told: the device's status by MQTT, `edge-sdk status`, and the rows that it trains on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk import cli
from edge_sdk.codecs import wire
from edge_sdk.core.clock import NS, WallClock
from edge_sdk.core.compute import InlineCompute
from edge_sdk.core.config import DeviceConfig
from edge_sdk.core.interfaces import Message
from edge_sdk.core.messages import SpecMessage, Status
from edge_sdk.core.records import Chunk
from edge_sdk.core.spec import FederationSpec, ModalitySpec, WindowSpec
from edge_sdk.recording import Writer
from edge_sdk.runtime.device import Device
from edge_sdk.runtime.state import DeviceState
from edge_sdk.transport.memory import MemoryBroker, MemoryTransport
from edge_sdk.transport.topics import Topics

SPEED = 100.0
SPEC = FederationSpec(
    name="home", modalities=(ModalitySpec(name="acc", shape=(3, 16), rate_hz=16.0),), classes=("sit", "walk"),
    window=WindowSpec(length_s=1.0, hop_s=1.0),
)  # fmt: skip
SENTENCE = "modality acc: stuck: channel 2 does not move"


def recording(folder: Path) -> Path:
    """Forty seconds of a worn accelerometer whose third axis breaks after thirty."""
    rng = np.random.default_rng(0)
    with Writer(folder, start_ns=0) as writer:
        for k in range(40):
            data = rng.normal(size=(16, 3)).astype(np.float32)
            if k >= 30:
                data[:, 2] = 0.25
            writer.append(Chunk("acc", k, k * NS, data, period_ns=NS // 16))
    return folder


def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "device": {"id": "d1", "federation": "home", "state_dir": str(tmp_path / "state"), "stream_speed": SPEED},
        "sensors": {
            "acc": {"driver": "replay", "options": {"path": str(recording(tmp_path / "r")), "align_s": 1.0}}
        },
        "inference": {"enabled": False},
        "training": {"enabled": False},
        "health": {"learn_windows": 16, "persist_windows": 2},
    }  # fmt: skip


def toml(sections: dict[str, Any]) -> str:
    def value(v: Any) -> str:
        if isinstance(v, dict):
            return "{" + ", ".join(f"{k} = {value(w)}" for k, w in v.items()) + "}"
        return json.dumps(v)

    return "".join(f"[{name}]\n" + "".join(f"{k} = {value(v)}\n" for k, v in s.items()) for name, s in sections.items())


def test_a_broken_axis_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections = settings(tmp_path)
    clock, stream_clock = WallClock(), WallClock(SPEED)
    broker = MemoryBroker(clock)
    topics = Topics("home")
    broker.retained[topics.spec] = wire.encode(SpecMessage(SPEC.canonical(), SPEC.digest, "c"))
    state = DeviceState.open(tmp_path / "state", "home", "d1")
    device = Device(
        DeviceConfig.model_validate(sections), transport=MemoryTransport(broker, "d1"), clock=clock,
        compute=InlineCompute(), stream_clock=stream_clock, state=state,
    )  # fmt: skip
    statuses: list[Status] = []
    seen: dict[str, Any] = {}

    async def main() -> None:
        listener = MemoryTransport(broker, "listener")
        await listener.start()
        await listener.subscribe(topics.status("d1"))
        async with clock.deadline(30.0), clock.group() as group:
            group.start(device.run(), name="device")
            async for event in listener.events():
                if isinstance(event, Message):
                    statuses.append(wire.decode(Status, event.payload))
                if statuses and statuses[-1].notes:
                    break
            assert device.session is not None
            assert device.session.sensing is not None
            while len(device.session.sensing.reservoir) < 39:
                await clock.sleep(0.01)
            seen["status"] = device.session.sensing.streams.status()["sensors"]["acc"]["faults"]
            seen["data"] = device.session.sensing.reservoir.recent(100)
            group.cancel()
        state.close()

    asyncio.run(main())
    assert statuses[0].notes == ()
    assert statuses[-1].notes == (SENTENCE,)
    assert seen["status"] == {"stuck": [2]}
    quality = seen["data"].quality["acc"]
    assert len(quality) >= 39
    assert (quality[:30] == 1.0).all()
    assert quality[32:] == pytest.approx(2 / 3)

    (tmp_path / "d.toml").write_text(toml(sections))
    assert cli.main(["status", str(tmp_path / "d.toml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["faults"] == [SENTENCE]

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sdk import cli
from edge_sdk.codecs import wire
from edge_sdk.core.clock import WallClock
from edge_sdk.core.messages import LabelMessage, SpecMessage
from edge_sdk.recording import Writer
from edge_sdk.runtime import keyboard
from edge_sdk.runtime.state import DeviceState
from edge_sdk.transport.memory import MemoryBroker, MemoryTransport
from edge_sdk.transport.topics import Topics
from tests.helpers.brokers import make_broker, mqtt
from tests.helpers.office import small_spec

GOOD = """
[device]
id = "d1"
federation = "home"
state_dir = "{state}"
stream_speed = 50.0
[sensors.acc]
driver = "synthetic"
options = {{ rate_hz = 50.0, channels = 3, duration_s = 20.0 }}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "device.toml"
    path.write_text(GOOD.format(state=tmp_path / "state"))
    return path


def test_check_opens_nothing(file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["check", str(file)]) == 0
    assert "good" in capsys.readouterr().out
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[sensors.acc]", "[sensors.acc]\ncolour = 1"), "sensors.acc.colour: unknown key"),
        (('id = "d1"', 'id = "d 1"'), "device.id"),
        (('driver = "synthetic"', 'driver = "nothing"'), "sensors.acc.driver: no plug-in 'nothing'"),
        (("[device]", "[device"), "not valid TOML"),
        (("[device]", "[training]\nenabled = false\n[device]"), "inference.graph"),
        (("[device]", "[inference]\nengine = 'abacus'\n[device]"), "inference.engine"),
        (("[device]", "[labels.x]\nsource = 'abacus'\n[device]"), "labels.x.source"),
    ],
)
def test_wrong_files_are_named(
    file: Path, change: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text().replace(*change))
    assert cli.main(["check", str(file)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_no_such_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "/nowhere/device.toml"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_usage_errors_exit_with_2() -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fly"])


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            cli.main([name, "--help"])
    assert "--probe" in capsys.readouterr().out


def test_solo_needs_a_spec(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert cli.main(["run", str(file), "--solo"]) == 2
    assert "spec" in capsys.readouterr().err


def test_probe_tries_sensors_and_broker(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = make_broker("mosquitto", tmp_path / "mosquitto")
    broker.start()
    try:
        c = broker.config("d1")
        section = f'[broker]\nport = {c.port}\nusername = "d1"\npassword = "{c.password}"\n'
        file.write_text(file.read_text() + section)
        assert cli.main(["check", str(file), "--probe", "--json"]) == 0
        found = {t["name"]: t for t in json.loads(capsys.readouterr().out)}
        assert found["broker"]["ok"]
        assert "samples of 3" in found["sensors.acc"]["detail"]
        file.write_text(file.read_text().replace(c.password, "wrong"))
        assert cli.main(["check", str(file), "--probe"]) == 2
        assert "BAD broker" in capsys.readouterr().out
    finally:
        broker.stop()


def test_record_and_replay(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["record", str(file), "-o", str(tmp_path / "rec"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["streams"]["acc"]["samples"] == 1000
    assert cli.main(["replay", str(tmp_path / "rec")]) == 0
    assert 'driver = "replay"' in capsys.readouterr().out
    assert cli.main(["record", str(file), "-o", str(tmp_path / "rec")]) == 2
    assert "holds a recording already" in capsys.readouterr().err


def test_replay_names_what_is_no_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(tmp_path)]) == 2
    assert "no recording" in capsys.readouterr().err


def test_replay_counts_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Writer(tmp_path / "rec", start_ns=0) as writer:
        writer.label(0.0, 1.0, "walk")
    assert cli.main(["replay", str(tmp_path / "rec"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == 1


def test_detect_and_methods_answer_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["detect", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)
    pytest.importorskip("torch")
    assert cli.main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"mba", "fedasync"} <= {row["name"] for row in rows}
    assert all(row["source"] for row in rows)


def test_doctor_looks_at_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json", "--state-dir", str(tmp_path)]) == 0
    found = {f["name"] for f in json.loads(capsys.readouterr().out)}
    assert {"python", "venv", "packages", "onnxruntime", "torch", "clock", "disk"} <= found


def test_status_tells_what_is_stored(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(file)]) == 2
    assert "has not run yet" in capsys.readouterr().err
    state = DeviceState.open(tmp_path / "state", "home", "d1")
    state.keep_spec(small_spec())
    incarnation = state.outbox.incarnation
    state.close()
    assert cli.main(["status", str(file), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["incarnation"] == f"{incarnation:016x}"
    assert plain["spec"] == small_spec().digest
    assert plain["updates_waiting"] == 0


def test_keys_become_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[LabelMessage]:
        clock = WallClock(speed=50.0)
        broker = MemoryBroker(clock)
        sender, listener = MemoryTransport(broker, "keys"), MemoryTransport(broker, "d1")
        topics = Topics("home")
        await sender.start()
        await listener.start()
        await listener.subscribe(topics.label("d1"))
        spec = small_spec()
        broker.retained[topics.spec] = wire.encode(SpecMessage(spec.canonical(), spec.digest, "c"))
        names = await keyboard.classes(sender, "home", clock=clock, wait_s=1.0)
        assert names == ("sit", "walk")
        said: list[str] = []

        async def keys() -> object:
            for key in ("1", "2", "0", "1", "q"):
                yield key
                await clock.sleep(2.0)

        sent = await keyboard.label(
            keys(), names, transport=sender, topic=topics.label("d1"), clock=clock, say=said.append
        )  # fmt: skip
        assert said == ["label: sit", "label: walk", "label: none", "label: sit"]
        await listener.aclose()
        heard = [wire.decode(LabelMessage, m.payload) async for m in listener.events() if hasattr(m, "payload")]
        assert sent == len(heard)
        return heard

    heard = asyncio.run(main())
    assert [m.label for m in heard] == ["sit", "walk", "sit"]
    for m in heard:
        assert (m.end_utc_ns - m.start_utc_ns) / 1e9 == pytest.approx(2.0, rel=0.5)


def test_label_command_publishes_what_is_typed(file: Path, tmp_path: Path) -> None:
    broker = make_broker("mosquitto", tmp_path / "mosquitto")
    broker.start()

    async def main() -> LabelMessage:
        clock, topics, spec = WallClock(), Topics("home"), small_spec()
        listener = mqtt(broker, "coordinator")
        await listener.start()
        await listener.subscribe(topics.label("d1"))
        async for _ in listener.events():
            break
        await listener.publish(topics.spec, wire.encode(SpecMessage(spec.canonical(), spec.digest, "c")), retain=True)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edge_sdk.cli", "label", str(file), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdout.readline()  # the keys and their classes
        process.stdin.write(b"2")
        await process.stdin.drain()
        assert b"walk" in await process.stdout.readline()
        await clock.sleep(0.3)
        process.stdin.write(b"q")
        await process.stdin.drain()
        try:
            async with clock.deadline(20.0):
                async for event in listener.events():
                    return wire.decode(LabelMessage, event.payload)  # type: ignore[union-attr]
        finally:
            await process.wait()
            await listener.aclose()
        raise AssertionError("no label came")

    try:
        c = broker.config("d1")
        file.write_text(file.read_text() + f'[broker]\nport = {c.port}\nusername = "d1"\npassword = "{c.password}"\n')
        label = asyncio.run(main())
    finally:
        broker.stop()
    assert label.label == "walk"
    assert 0.2 < (label.end_utc_ns - label.start_utc_ns) / 1e9 < 5

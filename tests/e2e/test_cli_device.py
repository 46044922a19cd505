from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_sdk import cli
from edge_sdk.codecs import wire
from edge_sdk.core.clock import VirtualClock, WallClock, run_virtual
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
        (("[device]", "[labels.x]\nsource = 'file'\n[device]"), "device.toml:labels.x.options.path: required"),
        (("rate_hz = 50.0", 'rate_hz = "fast"'), "device.toml:sensors.acc.options.rate_hz"),
        (("rate_hz = 50.0", "rate = 50.0"), "device.toml:sensors.acc.options.rate: unknown key"),
        (("[sensors.acc]", "[sensors.acc]\ncolumns = ['x']"), "device.toml:sensors.acc.columns: no x; this sensor"),
        (
            ("[device]", "[sensors.gyro]\nfrom = 'imu'\ncolumns = ['gyro']\n[device]"),
            "device.toml:sensors.gyro.from: no section [sensors.imu] with a driver of its own; there are acc",
        ),
        (("[device]", "[broker]\nport = 'x'\n[device]"), "device.toml:broker.port"),
        (
            ("[device]", "[broker]\npassword_file = '/nowhere/pw'\n[device]"),
            "device.toml:broker.password_file: /nowhere",
        ),
    ],
)
def test_wrong_files_are_named(
    file: Path, change: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text().replace(*change))
    for command in ("check", "run"):
        assert cli.main([command, str(file)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.startswith(f"edge-sdk {command}: {file}:")
        assert "Traceback" not in error


def test_no_such_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "/nowhere/device.toml"]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "run", "status", "label"])
def test_files_that_are_no_configuration(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    binary = tmp_path / "binary.toml"
    binary.write_bytes(bytes(range(256)))
    for path, said in ((binary, "not valid TOML"), (tmp_path, "Is a directory"), (tmp_path / "x", "No such file")):
        assert cli.main([command, str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"edge-sdk {command}: {path}: ")
        assert said in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff\xfe", "not JSON"),
        (b"{", "not JSON"),
        (b'{"name": "home"}', "spec.json:modalities: required, but missing"),
        (b'{"name": "home", "modalities": [{"name": "a", "shape": [0]}], "classes": ["x", "y"]}', "modalities.0.shape"),
    ],
)
def test_wrong_specs_are_named(file: Path, text: bytes, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = file.with_name("spec.json")
    spec.write_bytes(text)
    assert cli.main(["run", str(file), "--solo", "--spec", str(spec)]) == 2
    error = capsys.readouterr().err
    assert str(spec) in error
    assert said in error
    assert "pydantic" not in error


def test_a_folder_that_cannot_be_made_is_one_sentence(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    under_a_file = file / "rec"
    assert cli.main(["record", str(file), "-o", str(under_a_file), "--seconds", "1"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"edge-sdk record: {under_a_file}: Not a directory"


def test_a_missing_recording_is_named_and_nothing_is_left_behind(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = file.read_text().replace('"synthetic"', '"replay"')
    file.write_text(text.partition("options")[0] + f'options = {{ path = "{tmp_path / "none"}" }}\n')
    assert cli.main(["record", str(file), "-o", str(tmp_path / "rec"), "--seconds", "1"]) == 2
    assert f"{tmp_path / 'none'}: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "rec" / "meta.json").exists()


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
    found = {f["name"] for f in json.loads(capsys.readouterr().out)["findings"]}
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


def test_keys_become_labels() -> None:
    async def main(clock: VirtualClock) -> list[LabelMessage]:
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
        out = io.StringIO()

        async def keys() -> AsyncIterator[str]:
            for key in ("1", "2", "x", "0", "1", "q"):
                yield key
                await clock.sleep(2.0)

        view = keyboard.View(out, live=False)
        labeller = keyboard.Labeller(names, transport=sender, topic=topics.label("d1"), clock=clock, view=view)
        sent = await labeller.run(keys())
        assert out.getvalue().splitlines() == ["label: sit", "label: walk", "label: none", "label: sit"]
        await listener.aclose()
        heard = [wire.decode(LabelMessage, m.payload) async for m in listener.events() if hasattr(m, "payload")]
        assert sent == len(heard)
        return heard

    heard = run_virtual(main)
    assert [m.label for m in heard] == ["sit", "walk", "sit"]
    assert [(m.end_utc_ns - m.start_utc_ns) / 1e9 for m in heard] == [2.0, 4.0, 2.0]  # x is no key: walk goes on


def test_label_command_publishes_what_is_typed(file: Path, tmp_path: Path) -> None:
    broker = make_broker("mosquitto", tmp_path / "mosquitto")
    broker.start()

    async def main() -> tuple[LabelMessage, float]:
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
        while b"q  end" not in await process.stdout.readline():  # the keys and their classes
            assert process.returncode is None
        began_ns = clock.now_ns()
        process.stdin.write(b"2")
        await process.stdin.drain()
        assert b"walk" in await process.stdout.readline()
        await clock.sleep(0.3)
        process.stdin.write(b"q")
        await process.stdin.drain()
        try:
            async with clock.deadline(60.0):
                async for event in listener.events():
                    label = wire.decode(LabelMessage, event.payload)  # type: ignore[union-attr]
                    return label, (clock.now_ns() - began_ns) / 1e9
        finally:
            await process.wait()
            await listener.aclose()
        raise AssertionError("no label came")

    try:
        c = broker.config("d1")
        file.write_text(file.read_text() + f'[broker]\nport = {c.port}\nusername = "d1"\npassword = "{c.password}"\n')
        label, took_s = asyncio.run(main())
    finally:
        broker.stop()
    assert label.label == "walk"
    assert 0.2 < (label.end_utc_ns - label.start_utc_ns) / 1e9 <= took_s

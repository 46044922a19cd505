"""`edge-coordinator`: every command in process, bad input with one sentence, and serve as a process of its own."""

import json
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from coordinator import cli
from coordinator.config import read_config
from coordinator.store import SqliteStore
from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.errors import ConfigError
from tests.helpers.brokers import free_port
from tests.helpers.field import dataset, federation, spec_of

SPEC = spec_of()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "federation.json").write_text(json.dumps(SPEC.model_dump(mode="json")), encoding="utf-8")
    path = tmp_path / "coordinator.toml"
    path.write_text('[federation]\npath = "federation.json"\n[store]\ndir = "store"\n', encoding="utf-8")
    return path


@pytest.fixture
def filled(config: Path) -> Path:
    """A store with versions 0 to 3."""

    async def main(clock: VirtualClock) -> None:
        async with federation(clock, store=SqliteStore(config.parent / "store"), test=dataset()) as world:
            device = await world.peer()
            for number in range(1, 4):
                await device.contribute()
                await world.published(number)

    run_virtual(main)
    return config


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_status_and_versions_of_a_store(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = answer(capsys, "status", filled)
    assert (facts["federation"], facts["version"], facts["updates"], facts["running"]) == ("test", 3, 3, False)
    listing = answer(capsys, "versions", filled)
    assert [v["number"] for v in listing] == [0, 1, 2, 3]
    assert all(0 <= v["acc"] <= 1 for v in listing)
    assert call(capsys, "status", filled)[1].startswith("federation     test")


def test_rollback_makes_the_old_tensors_the_next_version(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "rollback", 1, filled) == {"made": 4, "target": 1}
    assert answer(capsys, "status", filled)["version"] == 4
    assert [v["undone"] for v in answer(capsys, "versions", filled)] == [False, False, True, True]
    code, _, err = call(capsys, "rollback", 99, filled)
    assert (code, "held are 0, 1, 2, 3" in err) == (2, True)


def test_backup_and_restore(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = answer(capsys, "status", filled)
    assert call(capsys, "backup", filled.parent / "backup", filled)[0] == 0
    code, _, err = call(capsys, "restore", filled.parent / "backup", filled)
    assert (code, "holds a store already" in err) == (2, True)
    (filled.parent / "store").rename(filled.parent / "lost")
    assert call(capsys, "restore", filled.parent / "backup", filled)[0] == 0
    after = answer(capsys, "status", filled)
    assert (after["version"], after["lineage"] != before["lineage"]) == (3, True)


def test_an_exported_version_starts_another_store(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = filled.parent / "model.safetensors"
    assert call(capsys, "export", filled, "-o", path, "--version", "2")[0] == 0
    from coordinator.commands.serve import first_version
    from edge_sdk.codecs.wire import tensors_digest

    digest = {v["number"]: v["digest"] for v in answer(capsys, "versions", filled)}[2]
    assert tensors_digest(first_version(path)) == digest
    code, _, err = call(capsys, "export", filled, "-o", filled.parent / "model.txt")
    assert (code, ".onnx or .safetensors" in err) == (2, True)
    code, _, err = call(capsys, "export", filled, "-o", path, "--version", "77")
    assert (code, "not held" in err) == (2, True)


def test_enroll_prints_a_device_configuration_that_can_be_read(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge_sdk.core.config import DeviceConfig, load_toml

    code, out, _ = call(capsys, "enroll", "arm-left", config, "--host", "10.0.0.5")
    path = config.parent / "device.toml"
    path.write_text(out, encoding="utf-8")
    device = load_toml(path, DeviceConfig)
    assert code == 0
    assert (device.device.id, device.broker.host, sorted(device.sensors)) == ("arm-left", "10.0.0.5", ["acc", "gyro"])
    assert SqliteStore(config.parent / "store").enrolled() == {"arm-left"}
    assert call(capsys, "enroll", "not an id", config)[0] == 2


def test_init_writes_what_serve_can_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    flags = [
        "--modality",
        "acc=3x128@50",
        "--modality",
        "mood=7",
        "--class",
        "sit",
        "--class",
        "walk",
        "--name",
        "home",
    ]
    assert call(capsys, "init", path, *flags)[0] == 0
    spec = read_config(path).federation
    assert spec is not None
    assert (spec.name, spec.modality_names, spec.modality("acc").shape) == ("home", ("acc", "mood"), (3, 128))
    assert call(capsys, "init", path, *flags)[0] == 2  # nothing is overwritten
    assert call(capsys, "init", tmp_path / "d.toml", "--name", "two")[0] == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[store]\nkeep = 'some'\n", "store.keep"),
        ("[stroe]\n", "stroe: unknown key"),
        ("[publish]\nversions = 'many'\n", "publish.versions"),
        ("[federation]\npath = 'nowhere.json'\n", "nowhere.json: cannot be read"),
        ("[federation]\npath = 'x.json'\nname = 'y'\n", "not both"),
        ("no toml", "not valid TOML"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint):
        read_config(path)


def test_wrong_usage_is_one_sentence_and_code_2(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["status", config], ["versions", config], ["fly"], ["status", "nowhere.toml"]):
        code, out, err = call(capsys, *arguments)
        assert (code, out, err.count("\n"), "Traceback" in err) == (2, "", 1, False), err
    assert call(capsys)[0] == 2
    assert "rollback" in call(capsys, "--help")[1]


def test_every_command_of_the_table_can_be_asked_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            cli.main([name, "--help"])
        assert ended.value.code == 0
        assert f"edge-coordinator {name}" in capsys.readouterr().out


def test_a_busy_port_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("amqtt", reason="amqtt is not installed: pip install 'edge-sdk[broker]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config.write_text(config.read_text() + f"[broker]\nembedded = true\nport = {port}\n", encoding="utf-8")
        code, _, err = call(capsys, "serve", config)
    assert (code, f"127.0.0.1:{port}" in err) == (2, True)


def test_the_first_version_and_the_port_may_be_given_as_flags(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coordinator.commands import serve

    elsewhere = config.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    flags = cli.parser("serve", serve).parse_args([str(config), "--init", "first.safetensors", "--port", "1999"])
    found = serve.configuration(flags)
    assert found.init == elsewhere / "first.safetensors"
    assert found.broker.port == 1999
    assert serve.configuration(cli.parser("serve", serve).parse_args([str(config)])).init is None


def test_serve_runs_until_sigterm_and_leaves_a_store_that_can_be_served_again(config: Path) -> None:
    pytest.importorskip("amqtt", reason="amqtt is not installed: pip install 'edge-sdk[broker]'")
    config.write_text(config.read_text() + f"[broker]\nembedded = true\nport = {free_port()}\n", encoding="utf-8")
    events = config.parent / "events.jsonl"
    for expected in ("Published", "Recovered"):
        events.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "coordinator.cli", "serve", str(config), "--events", str(events)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        for _ in range(1200):
            if events.exists() and expected in events.read_text():
                break
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in rest) == (0, False), rest
        assert expected in {json.loads(line)["event"] for line in events.read_text().splitlines()}, rest

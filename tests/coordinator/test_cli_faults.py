"""What a new user does wrong with `edge-coordinator`: one sentence that says what to do, exit code 2, no traceback."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from coordinator import cli
from coordinator.store import SqliteStore
from coordinator.store.lock import Holder, StoreLock, holder
from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.config import DeviceConfig, load_toml
from edge_sdk.core.errors import StoreError
from tests.helpers.brokers import free_port
from tests.helpers.field import federation, spec_of

MODALITY = ("--modality", "acc=3x128@50")
CLASSES = ("--class", "sit", "--class", "walk")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which `init` was run."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "--name", "home", *MODALITY, *CLASSES]) == 0
    return tmp_path


@pytest.fixture
def filled(folder: Path) -> Path:
    """The same, with a store that holds two versions."""

    async def main(clock: VirtualClock) -> None:
        async with federation(clock, store=SqliteStore(folder / "store")) as world:
            await (await world.peer()).contribute()
            await world.published(1)

    run_virtual(main)
    (folder / "home.json").write_text(json.dumps(spec_of().model_dump(mode="json")))
    return folder


def wrong(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Returns the one sentence."""
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), "Traceback" in err) == ("", 1, False), err
    return err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("init", *MODALITY, *CLASSES), "coordinator.toml: exists already"),
        (("init", "b.toml", "--name", "x.y", *MODALITY, *CLASSES), "--name must be"),
        (("init", "b.toml", "--name", "x", "--method", "magic", *MODALITY, *CLASSES), "no method 'magic'; there are"),
        (("init", "b.toml", "--name", "x", "--modality", "acc", *CLASSES), "expected NAME=SHAPE"),
        (("init", "b.toml", "--name", "x", "--modality", "acc=3@1.2.3", *CLASSES), "expected NAME=SHAPE"),
        (("init", "b.toml", "--name", "x", *MODALITY, *MODALITY, *CLASSES), "modalities must have different names"),
        (("init", "b.toml", "--name", "x", *MODALITY), "two --class NAME"),
        (("init", "b.toml", "--name", "x", "--dataset", "nothing"), "no plug-in 'nothing'"),
        (("init", "b.toml", "--name", "x", "--dataset", "no.npz"), "no.npz: no such file"),
        (("init", "coordinator.toml/b.toml", "--name", "x", *MODALITY, *CLASSES), "coordinator.toml"),
        (("enroll", "not an id"), "a device id must be"),
        (("status",), "`edge-coordinator serve` makes it"),
        (("versions",), "`edge-coordinator serve` makes it"),
        (("rollback", "3"), "`edge-coordinator serve` makes it"),
        (("backup", "b"), "`edge-coordinator serve` makes it"),
        (("export", "-o", "m.onnx"), "`edge-coordinator serve` makes it"),
        (("export", "-o", "m.pt"), "must end in .onnx or .safetensors"),
        (("restore", "nowhere"), "nowhere: holds no store"),
        (("pause",), "no coordinator is running on this store"),
        (("resume",), "no coordinator is running on this store"),
        (("serve", "nowhere.toml"), "nowhere.toml: cannot be read"),
        (("serve", "--port", "99999"), "broker.port"),
    ],
)
def test_wrong_usage(folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    assert said in wrong(capsys, *arguments)
    assert sorted(p.name for p in folder.iterdir()) == ["coordinator.toml", "home.json"]


def test_a_store_in_use_is_left_alone(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(SqliteStore(filled / "store")) as store:
        store.open()
        assert f"in use by another process (pid {os.getpid()})" in wrong(capsys, "serve")
        assert "in use by another process" in wrong(capsys, "rollback", 0)
        assert "is not serving" in wrong(capsys, "pause")  # a signal would have ended this very process
        assert cli.main(["backup", "copy"]) == 0
    assert not (filled / "store-broker").exists()
    assert cli.main(["rollback", "0"]) == 0


def test_a_broken_checkpoint_is_named(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    for path in (filled / "store" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    said = wrong(capsys, "serve", "--port", port, "--log-level", "error")
    assert "not a whole safetensors file" in said
    assert "restore it from a backup" in said


def test_a_store_of_another_federation_is_named(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = json.loads((filled / "home.json").read_text())
    plain["classes"][0] = "something else"
    (filled / "home.json").write_text(json.dumps(plain))
    said = wrong(capsys, "serve", "--port", free_port(), "--log-level", "error")
    assert "this store holds federation 'test' with other shapes, classes or name" in said


def test_a_backup_never_overwrites_and_names_what_cannot_be_made(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["backup", "copy"]) == 0
    assert "copy: exists already" in wrong(capsys, "backup", "copy")
    assert "cannot be written" in wrong(capsys, "backup", "coordinator.toml/copy")
    assert "holds a store already" in wrong(capsys, "restore", "copy")


def test_a_second_start_does_not_change_the_password_of_the_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("amqtt", reason="amqtt is not installed: pip install 'edge-sdk[broker]'")
    keys = folder / "store-broker" / "coordinator.password"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = wrong(capsys, "serve", "--port", taken.getsockname()[1])
        first = (keys.read_text(), (folder / "store-broker" / "broker.passwd").read_text())
        wrong(capsys, "serve", "--port", taken.getsockname()[1])
    assert "choose another one" in said
    assert (keys.read_text(), (folder / "store-broker" / "broker.passwd").read_text()) == first
    assert keys.stat().st_mode & 0o077 == 0


def test_an_enrolled_device_needs_no_edit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import edge_sdk.cli

    capsys.readouterr()
    assert cli.main(["enroll", "wrist-1"]) == 0
    path = folder / "wrist-1.toml"
    path.write_text(capsys.readouterr().out)
    device = load_toml(path, DeviceConfig)
    assert device.sensors["acc"].options == {"kind": "sine", "channels": 3, "rate_hz": 50}
    assert device.labels["keys"].source == "mqtt"
    assert edge_sdk.cli.main(["check", str(path)]) == 0


def test_asking_never_makes_a_coordinator_believe_that_the_store_is_taken(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    StoreLock(tmp_path).release()
    probe = (tmp_path / "presence").open("rb")
    fcntl.flock(probe, fcntl.LOCK_SH)  # somebody who asks, stopped in the middle of it
    threading.Timer(0.2, probe.close).start()
    lock = StoreLock(tmp_path)
    lock.note("running")
    assert holder(tmp_path) == Holder(os.getpid(), "running")
    lock.note("paused")
    assert holder(tmp_path) == Holder(os.getpid(), "paused")
    with pytest.raises(StoreError, match=rf"in use by another process \(pid {os.getpid()}\)"):
        StoreLock(tmp_path)
    lock.release()
    assert holder(tmp_path) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_soon(folder: Path, number: signal.Signals) -> None:
    pytest.importorskip("amqtt", reason="amqtt is not installed: pip install 'edge-sdk[broker]'")
    process = subprocess.Popen(
        [sys.executable, "-m", "coordinator.cli", "serve", "--port", str(free_port())],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert process.stderr is not None
    said = ""
    while "connected" not in said:
        said += process.stderr.readline()
    assert [(found.pid, found.state) for found in [holder(folder / "store")] if found] == [(process.pid, "running")]
    process.send_signal(number)
    _, rest = process.communicate(timeout=20)
    assert (process.returncode, "Traceback" in rest) == (0, False), rest
    assert holder(folder / "store") is None

"""Faults that only real processes, real brokers and a real disk can show."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator import cli
from coordinator.store import maintenance, rows
from coordinator.store.base import Entry
from edge_sdk.core.config import BrokerConfig
from edge_sdk.core.records import Chunk
from edge_sdk.core.spec import FederationSpec, MethodSpec, ModalitySpec, ModelSpec, TrainingSpec, WindowSpec
from edge_sdk.recording import Writer
from tests.helpers.brokers import Embedded, Mosquitto, broker, mosquitto  # noqa: F401  fixtures
from tests.helpers.coordinators import Program, serve, served, write_config
from tests.helpers.foreign_client import ForeignClient, decode_model
from tests.helpers.slow_link import SlowLink

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

LENGTH = 16  # samples of a window, one second


def spec_of(*, hidden: int, up: str = "delta|int8|zstd", down: str = "fp32|zstd") -> FederationSpec:
    return FederationSpec(
        name="home",
        modalities=tuple(ModalitySpec(name=m, shape=(3, LENGTH), rate_hz=LENGTH) for m in ("acc", "gyr")),
        classes=("sit", "walk"),
        window=WindowSpec(length_s=1.0, hop_s=1.0),
        model=ModelSpec(fusion="mlp", hidden=hidden),
        method=MethodSpec(name="fedasync"),
        training=TrainingSpec(epochs=1),
        codec={"up": up, "down": down},
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a minute of two classes."""
    folder, rng = tmp_path_factory.mktemp("recording") / "r", np.random.default_rng(1)
    with Writer(folder, start_ns=0) as writer:
        for second in range(30):
            for m in ("acc", "gyr"):
                data = rng.normal(second % 2, 1.0, (LENGTH, 3)).astype(np.float32)
                writer.append(Chunk(m, second, second * 10**9, data, period_ns=10**9 // LENGTH))
            writer.label(float(second), second + 1.0, ("sit", "walk")[second % 2])
    return folder


def device(folder: Path, name: str, keys: BrokerConfig, recording: Path, *, port: int = 0) -> Program:
    """Starts a device that replays the recording 20 times as fast."""
    folder.mkdir(parents=True, exist_ok=True)
    replay = f'{{ path = "{recording}", loop = true }}'
    path = folder / f"{name}.toml"
    path.write_text(
        f'[device]\nid = "{name}"\nfederation = "home"\nstate_dir = "{folder / name}"\nstream_speed = 20.0\n'
        f'[broker]\nport = {port or keys.port}\nusername = "{name}"\npassword = "{keys.password}"\n'
        f'[sensors.acc]\ndriver = "replay"\noptions = {replay}\n[sensors.gyr]\ndriver = "replay"\noptions = {replay}\n'
        f'[labels.truth]\nsource = "file"\noptions = {replay}\n'
        "[inference]\nenabled = false\n[reservoir]\npersist = false\nround_windows = 32\n"
    )
    return Program(folder, name, "edge_sdk.cli", "run", path)


def until(condition: Callable[[], bool], *programs: Program, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "\n".join(p.words() for p in programs)
        time.sleep(0.02)


def journal(store: Path) -> list[Entry]:
    with maintenance.reading(store) as db:
        return list(rows.read_entries(db, 0))


def test_a_broker_that_restarts_in_the_middle_of_a_fetch_and_of_an_upload_delays_both(
    broker: Mosquitto | Embedded,  # noqa: F811  the fixture
    recording: Path,
    tmp_path: Path,
) -> None:
    spec = spec_of(hidden=1500, up="delta|fp32", down="fp32")  # 0.9 MB each way, ten chunks
    config = write_config(tmp_path / "center", spec, broker.config("coordinator"), "[stop]\nupdates = 1\n")
    with served(config) as center, SlowLink(broker.port, 400e3) as link:
        one = device(tmp_path / "devices", "d1", broker.config("d1"), recording, port=link.port)
        try:
            until(lambda: link.down > 300e3, one)
            assert not one.events("ModelFetched")
            broker.restart()
            one.wait_for("ModelFetched")
            one.wait_for("UpdateQueued")
            before = link.up
            until(lambda: link.up > before + 300e3, one)
            assert not center.events("UpdateApplied")
            broker.restart()
            (accepted,) = one.wait_for("UpdateAccepted")
        finally:
            one.stop()
        until(lambda: center.process.poll() is not None, center)  # its one update made it stop
    (entry,) = journal(tmp_path / "center" / "store")
    assert entry.key.sequence == accepted["key"]["sequence"]
    assert len(one.events("ModelFetched")) == 1


def test_after_a_restore_devices_in_the_middle_of_their_tasks_spoil_nothing(
    mosquitto: Mosquitto,  # noqa: F811  the fixture
    recording: Path,
    tmp_path: Path,
) -> None:
    center = tmp_path / "center"
    config = write_config(center, spec_of(hidden=64), mosquitto.config("coordinator"))
    # A device may wait half a minute for the second modality of its first round, while the other trains alone and its
    # changes shrink: the norm of what comes then is not what this is about.
    text = config.read_text().replace('dir = "store"', 'dir = "store"\nkeep = "all"')
    config.write_text(text.replace("[admission]", "[admission]\nnorm_factor = 0"))
    first = serve(config)
    devices = []
    try:
        first.wait_for("Published")
        devices = [device(tmp_path / "d", name, mosquitto.config(name), recording) for name in ("d1", "d2")]
        first.wait_for("UpdateApplied", 3)
        assert cli.main(["backup", str(center / "backup"), str(config)]) == 0
        first.wait_for("UpdateApplied", len(first.events("UpdateApplied")) + 4)
        first.stop(signal.SIGKILL)
        (center / "store").rename(center / "lost")
        assert cli.main(["restore", str(center / "backup"), str(config)]) == 0
        with maintenance.reading(center / "store") as db:
            restored, lineage = rows.progress(db)[0], rows.read_meta(db, "lineage")
        second = serve(config, "again")
        try:
            second.wait_for("UpdateApplied", 4)
            until(lambda: {e["device"] for e in second.events("UpdateApplied")} == {"d1", "d2"}, second, *devices)
            refused = second.events("UpdateRejected")
        finally:
            assert second.stop() == 0
    finally:
        for program in (first, *devices):
            program.stop()
    made = [entry for entry in journal(center / "store") if entry.version > restored]
    assert len(made) >= 4
    assert all(entry.base.lineage == lineage for entry in made)
    assert [entry.version for entry in made] == list(range(restored + 1, restored + 1 + len(made)))
    assert {e["reason"] for e in refused} <= {"unknown_base"}
    lost = {e.key for e in journal(center / "lost")} - {e.key for e in journal(center / "backup")}
    assert lost
    assert not lost & {entry.key for entry in made}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB, in memory."""
    folder = tmp_path / "center" / "store"
    folder.mkdir(parents=True)
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    command = [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let a small disk be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Fills a disk to the last byte and returns the file that does it."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return path


def test_a_full_disk_refuses_updates_and_nothing_else_until_there_is_room(
    mosquitto: Mosquitto,  # noqa: F811  the fixture
    small_disk: Path,
    tmp_path: Path,
) -> None:
    spec = spec_of(hidden=64)
    config = write_config(tmp_path / "center", spec, mosquitto.config("coordinator"))
    keys = mosquitto.config("d1")
    sent = {}
    with served(config) as center:
        client = ForeignClient(keys.host, keys.port, user="d1", password=keys.password, federation="home")
        client.join()
        for number in range(3):
            update = client.update(client.task(), seed=number)
            sent[update.header["key"]["sequence"]] = client.deliver(update)
        task = client.task()
        filler = fill(small_disk)
        refused = client.update(task, seed=9)
        for _ in range(3):
            reply = client.deliver(refused)
            assert (reply["kind"], reply["reason"]) == ("rejected", "store")
        head = client.head()
        decode_model(client.fetch_by_question(head["newest"]), head["newest"])  # the service goes on
        assert len(center.events("StoreFailed")) == 1
        filler.unlink()
        sent[refused.header["key"]["sequence"]] = client.deliver(refused)
        for number in (10, 11):
            update = client.update(client.task(), seed=number)
            sent[update.header["key"]["sequence"]] = client.deliver(update)
        client.head(least=6)
        fill(small_disk)
        client.close()
        center.stop(signal.SIGKILL)
    assert {reply["kind"] for reply in sent.values()} == {"accepted"}
    assert [reply["version"]["number"] for reply in sent.values()] == [1, 2, 3, 4, 5, 6]
    still_full = serve(config, "still-full")
    until(lambda: still_full.process.poll() is not None or bool(still_full.events("Recovered")), still_full)
    assert still_full.stop() in (0, 2)
    assert "Traceback" not in still_full.words()
    (small_disk / "filler").unlink()
    with served(config, "again") as again:
        (recovered,) = again.wait_for("Recovered")
        assert (recovered["version"], recovered["replayed"], recovered["same_bits"]) == (6, 6, True)
        assert [entry.key.sequence for entry in journal(small_disk)] == list(sent)


def test_a_coordinator_that_starts_on_a_full_disk_says_so_in_one_sentence(
    mosquitto: Mosquitto,  # noqa: F811  the fixture
    small_disk: Path,
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path / "center", spec_of(hidden=64), mosquitto.config("coordinator"))
    fill(small_disk)
    program = serve(config)
    until(lambda: program.process.poll() is not None, program)
    assert program.process.returncode == 2, program.words()
    assert "Traceback" not in program.words()
    assert str(small_disk) in program.words().splitlines()[-1]


def test_a_second_coordinator_on_one_federation_goes_and_its_devices_hear_nothing_of_it(
    mosquitto: Mosquitto,  # noqa: F811  the fixture
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path / "center", spec_of(hidden=64), mosquitto.config("coordinator"))
    other = write_config(tmp_path / "other", spec_of(hidden=64), mosquitto.config("coordinator"))
    keys = mosquitto.config("d1")
    with served(config) as center:
        client = ForeignClient(keys.host, keys.port, user="d1", password=keys.password, federation="home")
        client.join()
        task = client.task()
        second = serve(other, "second")
        until(lambda: second.process.poll() is not None, second)
        assert (second.process.returncode, "Traceback" in second.words()) == (2, False), second.words()
        assert "federation 'home' has a coordinator already" in second.words().splitlines()[-1]
        assert center.wait_for("Conflict")
        assert client.deliver(client.update(task, seed=1))["kind"] == "accepted"
        assert client.head(least=1)["newest"]["id"]["lineage"] == task["base"]["lineage"]
        client.close()
    assert not [message for message in client.inbox.messages if message[0].endswith("/task")]

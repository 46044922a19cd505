"""`edge-sdk run` as a process: without a broker, with a wrong password, alone, twice, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.codecs import wire
from edge_sdk.core import parity, registry
from edge_sdk.core.clock import monotonic_ns
from edge_sdk.core.records import Chunk, ModelTensors, ModelVersion, VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn.seeds import derive
from edge_sdk.methods.base import find
from edge_sdk.models import build
from edge_sdk.recording import Reader, Writer
from edge_sdk.runtime import jobs
from edge_sdk.runtime.reference import TorchReference
from edge_sdk.runtime.state import MODEL, SOLO, DeviceState
from tests.helpers.brokers import dead_port, make_broker
from tests.helpers.office import small_spec

psutil = pytest.importorskip("psutil", reason="looking for processes left behind needs psutil")

SPEC = small_spec()
DISTANCE = 0.5  # between the means of two activities in noise of deviation 1, halved
PATIENCE_S = 60.0  # a busy machine imports torch in ten seconds
ENDS_S = 15.0  # half a second on an idle machine


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "graph.onnx"
    registry.load("exporters", "onnx")(SPEC, find(SPEC.method.name).needs, path)
    return path


class Agent:
    """A running `edge-sdk run` and what it tells."""

    def __init__(self, file: Path, *options: str) -> None:
        self.events_file = file.with_suffix(".events")
        self.log_file = file.with_suffix(".log")
        command = [
            sys.executable, "-m", "edge_sdk.cli", "run", str(file), "--events", str(self.events_file),
            "--log-format", "json", *options,
        ]  # fmt: skip
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log)

    def events(self, kind: str) -> list[dict[str, Any]]:
        if not self.events_file.exists():
            return []
        lines = self.events_file.read_text().splitlines()
        return [e for e in map(json.loads, lines[:-1] if lines and not lines[-1].endswith("}") else lines)
                if e["event"] == kind]  # fmt: skip

    def log(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]

    def until(self, ready: Callable[[], bool]) -> None:
        end_ns = monotonic_ns() + round(PATIENCE_S * 1e9)
        while not ready():
            assert self.process.poll() is None, self.log_file.read_text()
            assert monotonic_ns() < end_ns, self.log_file.read_text()
            signal.sigtimedwait([], 0.05)

    def children(self) -> list[Any]:
        found: list[Any] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def end(self, number: int) -> int:
        """Sends a signal and returns the exit code; nothing of the process is left after it."""
        children = self.children()
        self.process.send_signal(number)
        code = self.process.wait(ENDS_S)
        gone, alive = psutil.wait_procs(children, timeout=ENDS_S)
        assert not alive
        assert len(gone) == len(children)
        return code


@contextmanager
def running(file: Path, *options: str) -> Iterator[Agent]:
    agent = Agent(file, *options)
    try:
        yield agent
    finally:
        agent.process.kill()
        agent.process.wait()


def configuration(folder: Path, graph: Path, *, broker: str, training: bool = False, sensors: str = "") -> Path:
    """A device that has learnt its spec and a model before."""
    tensors = build.initial_tensors(SPEC, find(SPEC.method.name).needs, 1)
    state = DeviceState.open(folder / "state", "home", "d1")
    state.keep_spec(SPEC)
    version = VersionId("ab" * 16, 3, wire.tensors_digest(tensors))
    state.keep_model(MODEL, ModelVersion(version, tensors), SPEC.shape_digest)
    state.close()
    own = "".join(
        f'[sensors.{m}]\ndriver = "synthetic"\noptions = {{ rate_hz = 16.0, channels = 3, chunk = 4 }}\n'
        for m in SPEC.modality_names
    )
    file = folder / "device.toml"
    file.write_text(
        f'[device]\nid = "d1"\nfederation = "home"\nstate_dir = "{folder / "state"}"\nstream_speed = 20.0\n'
        f'[broker]\n{broker}\n[training]\nenabled = {str(training).lower()}\n[inference]\ngraph = "{graph}"\n'
        f"{sensors or own}"
    )
    return file


@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
def test_a_wrong_password_is_said_once_with_what_to_do_and_predicting_goes_on(
    tmp_path: Path, graph: Path, kind: str
) -> None:
    broker = make_broker(kind, tmp_path / "broker")
    broker.start()
    try:
        port = broker.config("d1").port
        file = configuration(tmp_path, graph, broker=f'port = {port}\nusername = "d1"\npassword = "wrong"')
        with running(file) as agent:
            agent.until(lambda: len(agent.events("PredictionMade")) >= 20 and bool(agent.events("LinkChanged")))
            signal.sigtimedwait([], 3.0)  # several attempts later
            assert agent.end(signal.SIGTERM) == 0
            said = [line["message"] for line in agent.log() if "refused" in line["message"]]
            assert len(said) == 1
            for part in ("'d1'", f"127.0.0.1:{port}", "enrol", "password_file"):
                assert part in said[0]
            assert [e["connected"] for e in agent.events("LinkChanged")] == [False]
    finally:
        broker.stop()


def test_without_a_broker_it_senses_and_predicts_and_says_so_once(tmp_path: Path, graph: Path) -> None:
    with dead_port() as port, running(configuration(tmp_path, graph, broker=f"port = {port}")) as agent:
        agent.until(lambda: len(agent.events("PredictionMade")) >= 40)
        assert agent.end(signal.SIGINT) == 0
        warnings = [line for line in agent.log() if line["level"] in ("warning", "error")]
        assert ["cannot connect" in line["message"] for line in warnings] == [True]


def test_systemd_hears_that_it_is_ready_alive_and_stopping(
    tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, dead_port() as port:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "500000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        with running(configuration(tmp_path, graph, broker=f"port = {port}")) as agent:
            heard = [systemd.recv(4096).decode() for _ in range(4)]
            assert heard.count("READY=1") == 1
            assert heard.count("WATCHDOG=1") >= 2
            assert agent.end(signal.SIGTERM) == 0
        systemd.settimeout(0.0)
        with suppress(BlockingIOError):
            while True:
                heard.append(systemd.recv(4096).decode())
        assert heard[-1] == "STOPPING=1"


def test_a_second_start_on_one_state_directory_is_refused_by_name(tmp_path: Path, graph: Path) -> None:
    with dead_port() as port, running(file := configuration(tmp_path, graph, broker=f"port = {port}")) as agent:
        agent.until(lambda: bool(agent.events("PredictionMade")))
        second = subprocess.run(
            [sys.executable, "-m", "edge_sdk.cli", "run", str(file)],
            capture_output=True,
            check=False,
            text=True,
            timeout=PATIENCE_S,
        )
        assert second.returncode == 2
        assert f"device d1 (process {agent.process.pid})" in second.stderr
        assert str(tmp_path / "state") in second.stderr
        assert "Traceback" not in second.stderr
        looked = subprocess.run(
            [sys.executable, "-m", "edge_sdk.cli", "status", str(file)],
            capture_output=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert looked.returncode == 0
        agent.process.kill()  # the kernel lets go of the lock
        agent.process.wait()
    DeviceState.open(tmp_path / "state", "home", "d1").close()


def recording(folder: Path, spec: FederationSpec, minutes: float = 4.0) -> Path:
    """Two activities in turn, ten seconds each, that anyone can tell apart; with labels."""
    rng, rate = np.random.default_rng(3), 16
    with Writer(folder, start_ns=0) as writer:
        for k in range(round(minutes * 6)):
            name = spec.classes[k % 2]
            for m in spec.modality_names:
                data = rng.normal(0.0, 1.0, (10 * rate, 3)) + (DISTANCE if k % 2 else -DISTANCE)
                writer.append(Chunk(m, k, k * 10 * 10**9, data.astype(np.float32), period_ns=10**9 // rate))
            writer.label(k * 10.0, k * 10.0 + 10.0, name)
    return folder


def test_alone_it_learns_from_its_own_labels_and_predicts_better_and_better(tmp_path: Path, graph: Path) -> None:
    data = recording(tmp_path / "rec", SPEC)
    options = f'options = {{ path = "{data}", loop = true, align_s = 20.0 }}'
    sensors = "".join(f'[sensors.{m}]\ndriver = "replay"\n{options}\n' for m in SPEC.modality_names)
    sensors += f'[labels.rec]\nsource = "file"\n{options}\n[reservoir]\nmin_windows = 16\nround_windows = 64\n'
    file = configuration(tmp_path, graph, broker="port = 1", training=True, sensors=sensors)
    file.write_text(
        file.read_text()
        .replace("[inference]", '[inference]\nfollow = "local"')
        .replace("stream_speed = 20.0", "stream_speed = 40.0")
    )
    spec = tmp_path / "spec.json"
    slow = SPEC.model_copy(update={"training": SPEC.training.model_copy(update={"lr": 0.05})})
    spec.write_text(slow.canonical())
    with running(file, "--solo", "--spec", str(spec)) as agent:
        agent.until(lambda: len(agent.events("EngineSwapped")) >= 7 and predicted_since_last_swap(agent) >= 40)
        assert agent.children()  # the one that trains
        assert agent.end(signal.SIGINT) == 0
        made = agent.events("PredictionMade")
        assert all(e["version"] is None for e in made)
        assert all(np.isfinite(e["parity_error"]) for e in agent.events("EngineSwapped"))
        assert len(agent.events("PhaseFinished")) >= 6
        newest = agent.events("EngineSwapped")[-3]["utc_ns"]
        assert right([e for e in made if e["utc_ns"] > newest]) >= 0.8
        losses = [e["loss"] for e in agent.events("PhaseFinished")]
        assert losses[-1] < 0.8 * losses[0], losses
        assert "Traceback" not in agent.log_file.read_text()
    state = DeviceState.open(tmp_path / "state", "home", "d1")
    learnt = state.model(SOLO, SPEC.shape_digest)
    state.close()
    assert learnt is not None
    assert learnt.id.number >= 6
    untrained = jobs.initial(SPEC, derive(0, "d1", "initial model"))
    assert accuracy(learnt.tensors, data) >= accuracy(untrained, data) + 0.2


def accuracy(tensors: ModelTensors, folder: Path) -> float:
    """Accuracy on the recording's windows of one second, by torch."""
    reader = Reader(folder)
    x = {m: np.concatenate([c.data.reshape(10, 16, 3) for c in reader.chunks(m)]) for m in SPEC.modality_names}
    windows = {m: np.ascontiguousarray(a.transpose(0, 2, 1)) for m, a in x.items()}  # (n, T, C) -> (n, C, T)
    logits = TorchReference(SPEC)(tensors, windows, parity.masks(SPEC))["all"]
    y = np.arange(len(logits)) // 10 % 2
    return float((logits.argmax(1) == y).mean())


def predicted_since_last_swap(agent: Agent) -> int:
    swapped = agent.events("EngineSwapped")[-1]["utc_ns"]
    return sum(e["utc_ns"] > swapped for e in agent.events("PredictionMade"))


def right(made: list[dict[str, Any]]) -> float:
    """Share of predictions of windows within one activity that are right; laps begin at whole 20 s."""
    pure = [e for e in made if e["index"] % 20 < 19]  # hop 0.5 s, length 1 s: the last one of 20 is mixed
    return float(np.mean([e["label"] == SPEC.classes[e["index"] // 20 % 2] for e in pure]))


def test_ends_while_it_is_still_dialling(tmp_path: Path, graph: Path) -> None:
    """A broker that does not answer at all, as behind a firewall; connecting to it blocks a worker thread."""
    with silent_port() as port, running(configuration(tmp_path, graph, broker=f"port = {port}")) as agent:
        agent.until(lambda: bool(agent.events("PredictionMade")))
        assert agent.end(signal.SIGTERM) == 0
        assert not [line for line in agent.log() if line["level"] in ("warning", "error")]


@contextmanager
def silent_port() -> Iterator[int]:
    """A port that neither accepts nor refuses: its queue is full."""
    with ExitStack() as stack:
        holder = stack.enter_context(socket.socket())
        holder.bind(("127.0.0.1", 0))
        holder.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(holder.getsockname())
        yield holder.getsockname()[1]


def test_ends_before_it_knows_its_federation(tmp_path: Path) -> None:
    file = tmp_path / "device.toml"
    file.write_text(f'[device]\nid = "d1"\nfederation = "home"\nstate_dir = "{tmp_path}"\n[broker]\nport = 1\n')
    with running(file) as agent:
        agent.until(lambda: any("waits for the spec" in line["message"] for line in agent.log()))
        assert agent.end(signal.SIGINT) == 0


def test_sensors_of_another_federation_end_it_with_one_sentence(tmp_path: Path, graph: Path) -> None:
    sensors = '[sensors.camera]\ndriver = "synthetic"\n'
    file = configuration(tmp_path, graph, broker="port = 1", sensors=sensors)
    done = subprocess.run(
        [sys.executable, "-m", "edge_sdk.cli", "run", str(file), "--log-level", "error"],
        capture_output=True, check=False,
        text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "acc, gyr" in done.stderr
    assert "camera" in done.stderr

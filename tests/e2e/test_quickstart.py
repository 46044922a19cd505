"""The quick start is true: its blocks run as they stand, but for a free port and fewer windows to wait for."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.brokers import free_port

pytest.importorskip("amqtt", reason="amqtt is not installed: pip install 'edge-sdk[broker]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
# The programs of this checkout, under their own names, whatever is on PATH.
PROGRAMS = (
    f'edge-coordinator() {{ "{sys.executable}" -m coordinator.cli "$@"; }}\n'
    f'edge-sdk() {{ "{sys.executable}" -m edge_sdk.cli "$@"; }}\nset -e\n'
)


class Terminal:
    """A shell that runs a block in the scratch folder."""

    def __init__(self, folder: Path, name: str, lines: str) -> None:
        self.log = folder / f"{name}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", PROGRAMS + lines], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def type(self, keys: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(keys.encode())
        self.process.stdin.flush()

    def wait(self, seconds: float = 60.0) -> str:
        """Returns what the block said; it has to end well."""
        assert self.process.wait(seconds) == 0, self.text()
        return self.text()

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def interrupt(self) -> int:
        """Ctrl-C: the whole foreground group hears it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        code = int(self.process.wait(30))
        if self.process.stdin is not None:
            self.process.stdin.close()
        return code


class Desk:
    """The terminals of one session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: list[Terminal] = []

    def run(self, lines: str) -> Terminal:
        self.open.append(Terminal(self.folder, f"terminal-{len(self.open)}", lines))
        return self.open[-1]

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("edge-coordinator status --json").wait())
        return found

    def until(self, condition: Callable[[], bool], terminal: Terminal, seconds: float = 60.0) -> None:
        for _ in range(round(seconds / 0.25)):
            if condition():
                return
            try:
                terminal.process.wait(0.25)
            except subprocess.TimeoutExpired:
                continue
            break
        assert condition(), "\n\n".join(t.text() for t in self.open)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    for terminal in made.open:
        terminal.interrupt()


def test_the_session_works_as_it_is_written(desk: Desk) -> None:
    coordinator, device, label, asking, pausing, afterwards, elsewhere = BLOCKS
    init, enroll, serve = coordinator.splitlines()
    desk.run(init).wait()
    config = desk.folder / "coordinator.toml"
    config.write_text(config.read_text().replace("port = 1883", f"port = {free_port()}"))
    desk.run(enroll).wait()
    served = desk.run(serve)
    desk.until(lambda: "connected" in served.text(), served)

    check, run = device.splitlines()
    assert "BAD" not in desk.run(check).wait()
    with (desk.folder / "wrist-1.toml").open("a") as file:
        file.write("[reservoir]\nmin_windows = 3\n")
    running = desk.run(run)
    desk.until(lambda: "wrist-1: online" in served.text(), running)

    pressing = desk.run(label)
    desk.until(lambda: "walk" in pressing.text(), pressing)  # it knows the classes, so it listens
    pressing.type("1")
    _pass(pressing, 6.0)
    pressing.type("2")
    desk.until(lambda: "made version 1" in served.text(), pressing)
    pressing.type("q")
    assert "labels sent" in pressing.wait()

    assert desk.status()["updates"] > 0
    desk.run(asking).wait()
    assert (desk.folder / "model.onnx").stat().st_size > 10_000
    pause, resume = pausing.splitlines()
    assert "paused" in desk.run(pause).wait()
    assert desk.status()["state"] == "paused"
    assert "running" in desk.run(resume).wait()
    assert desk.status()["state"] == "running"
    desk.run(elsewhere).wait()
    assert "192.0.2.10" in (desk.folder / "arm-2.toml").read_text()

    running.interrupt()
    served.interrupt()
    assert "Traceback" not in served.text() + running.text()
    held = json.loads(desk.run("edge-coordinator versions --json").wait())
    desk.run(afterwards.replace("NUMBER", str(held[0]["number"]))).wait()
    assert not desk.status()["running"]


def _pass(terminal: Terminal, seconds: float) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        terminal.process.wait(seconds)

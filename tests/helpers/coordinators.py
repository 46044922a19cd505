"""A coordinator as a process of its own, with a scratch folder and whatever broker a test has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_sdk.core.config import BrokerConfig
from edge_sdk.core.events import JsonLinesReader
from edge_sdk.core.spec import FederationSpec

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
STEP_S = 0.05


def write_config(folder: Path, spec: FederationSpec, broker: BrokerConfig, sections: str = "") -> Path:
    """Writes `coordinator.toml` and the federation; open to everybody, quick to publish."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "federation.json").write_text(json.dumps(spec.model_dump(mode="json")), encoding="utf-8")
    path = folder / "coordinator.toml"
    path.write_text(
        '[federation]\npath = "federation.json"\n'
        f'[broker]\nhost = "{broker.host}"\nport = {broker.port}\nusername = "{broker.username}"\n'
        f'password = "{broker.password}"\n'
        '[store]\ndir = "store"\n'
        "[publish]\nmin_interval_s = 0.05\nmin_hold_s = 0.2\n"
        '[admission]\nenrolment = "open"\nchunk_wait_s = 0.5\n' + sections,
        encoding="utf-8",
    )
    return path


class Program:
    """One of our programs as a process, with its events."""

    def __init__(
        self, folder: Path, name: str, module: str, *arguments: object, env: Mapping[str, str] = ENVIRONMENT
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.events_file = folder / f"{name}.jsonl"
        self.log = folder / f"{name}.log"
        self._reader = JsonLinesReader(self.events_file)
        self._events: list[dict[str, Any]] = []
        command = [sys.executable, "-m", module, *map(str, arguments), "--events", str(self.events_file)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
            )

    def events(self, kind: str) -> list[dict[str, Any]]:
        self._events += self._reader.new()
        return [event for event in self._events if event["event"] == kind]

    def wait_for(self, kind: str, count: int = 1, seconds: float = 60.0) -> list[dict[str, Any]]:
        """Waits until so many events of a kind were told."""
        for _ in range(round(seconds / STEP_S)):
            if len(self.events(kind)) >= count:
                return self.events(kind)
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.words()}"
            self.pause()
        raise AssertionError(f"{seconds:g} s without {count} × {kind}: {self.words()}")

    def pause(self, seconds: float = STEP_S) -> None:
        """Waits a moment, or until the process ends."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def words(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-4000:]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return int(self.process.returncode)


def serve(config: Path, name: str = "coordinator") -> Program:
    return Program(config.parent, name, "coordinator.cli", "serve", config)


@contextmanager
def served(config: Path, name: str = "coordinator") -> Iterator[Program]:
    """Runs a coordinator for as long as the block lasts; gives it once it is there."""
    program = serve(config, name)
    try:
        program.wait_for("Published" if name == "coordinator" else "Recovered")
        yield program
    finally:
        program.stop()


__all__ = ["ENVIRONMENT", "STEP_S", "Program", "serve", "served", "write_config"]

"""Benches: what the tests of tests/hardware run on. A board with its devices, or the same drivers on virtual ones.

A bench is a device's TOML whose section `[hardware]` says what its sensors have to keep; docs/hardware.md shows one.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import Field

from edge_sdk.core.config import DeviceConfig, SensorConfig, load_toml, parse
from edge_sdk.core.spec import Model
from tests.helpers.bench_measures import Heard

ROOT = Path(__file__).parents[2]
KINDS = {
    "camera": "camera", "imu_i2c": "imu", "imu_iio": "imu", "imu_serial": "imu", "microphone": "microphone",
}  # fmt: skip
ANSWER_S = 30.0  # how long the listener may take to answer


class Limits(Model):
    """What one sensor has to keep."""

    rate_hz: float = Field(default=0.0, ge=0)  # expected; 0: what its options ask for
    rate_share: float = Field(default=0.05, gt=0)  # of the expected rate, either way
    jitter_share: float = Field(default=0.5, gt=0)  # of a period, 95 % of the intervals
    loss: float = Field(default=0.01, ge=0)  # share of the samples
    offset_ms: float = Field(default=50.0, gt=0)  # against the bench's first sensor
    notices_s: float = Field(default=15.0, gt=0)  # until an unplugged sensor is told
    returns_s: float = Field(default=30.0, gt=0)  # until it delivers again
    unplug: str = ""  # command that takes its power or cable; "": asked for on the terminal (pytest -s)
    plug: str = ""


class HardwareSection(Model):
    """`[hardware]`."""

    seconds: float = Field(default=20.0, gt=0)
    starts_s: float = Field(default=30.0, gt=0)  # until every sensor has delivered
    settle_s: float = Field(default=2.0, ge=0)  # after the first samples, before anything counts
    soak_s: float = Field(default=600.0, gt=0)
    soak_pieces: int = Field(default=20, ge=3)
    growth_mb: float = Field(default=30.0, gt=0)  # memory, from the soak's first third to its last
    knocks: int = Field(default=3, ge=2)
    knock: str = ""
    report: Path = Path("runs/hardware.html")
    sensors: dict[str, Limits] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sensor:
    """One device of a bench."""

    name: str
    kind: str  # "imu" | "camera" | "microphone" | the driver's name
    config: SensorConfig
    limits: Limits

    @property
    def rate_hz(self) -> float:
        """What it should do; 0: nobody says."""
        options = self.config.options
        return (
            self.limits.rate_hz
            or float(options.get("rate_hz", options.get("fps", 0.0)))
            or _DEFAULT_HZ.get(self.kind, 0.0)
        )


_DEFAULT_HZ = {"camera": 30.0, "imu": 100.0, "microphone": 16_000.0}


class CannotDo(Exception):
    """Nobody is there who could unplug, plug or knock; says what would help."""


@dataclass
class Bench(ABC):
    """Sensors that one process listens to.

    Args:
        title: in the report.
        file: the device's configuration.
        absent: sensor or kind → why it is not there.
    """

    title: str
    file: Path
    env: Mapping[str, str] | None = None
    absent: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = load_toml(self.file, DeviceConfig)
        self.hardware = parse(config.hardware, HardwareSection, f"{self.file}:hardware")
        self.sensors = {
            name: Sensor(name, KINDS.get(section.driver, section.driver), section, self._limits(name))
            for name, section in config.sensors.items()
            if not section.shares
        }
        for name in [name for name, sensor in self.sensors.items() if not sensor.rate_hz]:
            del self.sensors[name]
            self.absent[name] = f"nobody says its rate; where it has one, set hardware.sensors.{name}.rate_hz"
        self.silent: dict[str, str] = {}  # sensor → why nothing came of it when the bench was started
        self.listener = ListenerProcess(self.file, self.env)

    def _limits(self, name: str) -> Limits:
        return self.hardware.sensors.get(name, Limits())

    def __enter__(self) -> Bench:
        self.listener.__enter__()
        try:
            self.silent = self.listener.silent(set(self.sensors), self.hardware.starts_s)
            self.listener.rest(self.hardware.settle_s)
        except BaseException:
            self.listener.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.listener.__exit__(kind, error, trace)

    @abstractmethod
    def unplug(self, name: str) -> None:
        """Takes a sensor away; CannotDo where nobody can."""

    @abstractmethod
    def plug(self, name: str) -> None:
        """Brings it back."""

    @abstractmethod
    def knock(self) -> None:
        """Does something that the sensors of `notices` notice at the same moment; CannotDo where nobody can."""

    @property
    def notices(self) -> list[str]:
        """Sensors that notice a knock."""
        return list(self.sensors)


class Board(Bench):
    """A user's bench: people or relays unplug and knock.

    Args:
        file: the device's configuration.
        ask: says a sentence on the terminal and waits for the Enter key; None: nobody is there.
    """

    def __init__(self, file: Path, ask: Callable[[str], object] | None) -> None:
        super().__init__(file.stem, file)
        self._ask = ask

    def unplug(self, name: str) -> None:
        self._do(f"sensors.{name}.unplug", self.sensors[name].limits.unplug, f"Unplug {name}, then press Enter.")

    def plug(self, name: str) -> None:
        self._do(f"sensors.{name}.plug", self.sensors[name].limits.plug, f"Plug {name} in again, then press Enter.")

    def knock(self) -> None:
        what = "Knock once on the table, near the microphone and in view of the camera, and then press Enter."
        self._do("knock", self.hardware.knock, what)

    def _do(self, key: str, command: str, sentence: str) -> None:
        if command:
            subprocess.run(command, shell=True, check=True)
        elif self._ask is not None:
            self._ask(sentence)
        else:
            raise CannotDo(f"nobody is there to do it: run pytest with -s, or set hardware.{key} in {self.file}")


class ListenerProcess:
    """`bench_listener` as a process.

    Args:
        file: the device's configuration.
        env: its environment.
    """

    def __init__(self, file: Path, env: Mapping[str, str] | None) -> None:
        self._file, self._env = file, env
        self.states: list[dict[str, Any]] = []  # every change so far
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._changed = threading.Condition()

    def __enter__(self) -> ListenerProcess:
        command = [sys.executable, "-m", "tests.helpers.bench_listener", str(self._file)]
        self._process = subprocess.Popen(
            command, env=self._env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def silent(self, names: set[str], limit_s: float) -> dict[str, str]:
        """Waits until each of the sensors has delivered since the mark; returns those that did not, and why."""
        end = time.monotonic() + limit_s
        while silent := {name for name, n in self.ask("count")["count"].items() if n == 0 and name in names}:
            if time.monotonic() > end:
                said = {s["sensor"]: s["error"] for s in self.states if s["error"]}
                return {name: said.get(name, f"opened, but nothing came in {limit_s:g} s") for name in sorted(silent)}
            self.rest(0.1)
        return {}

    def becomes(self, name: str, state: str, since: int, limit_s: float) -> dict[str, Any]:
        """Waits for a change of a sensor's state after the first `since` changes; TimeoutError."""

        def found() -> dict[str, Any] | None:
            return next((s for s in self.states[since:] if s["sensor"] == name and s["state"] == state), None)

        with self._changed:
            if not self._changed.wait_for(lambda: found() is not None, limit_s):
                raise TimeoutError(f"{name} did not become {state} within {limit_s:g} s")
            change = found()
        assert change is not None
        return change

    def capture(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Heard]:
        """Returns what comes within a time; `meanwhile` is done in its middle."""
        self.ask("mark")
        self.rest(seconds / 2)
        meanwhile()
        self.rest(seconds / 2)
        return self.saved()[0]

    def saved(self) -> tuple[dict[str, Heard], dict[str, Any]]:
        """Returns what came since the last mark, and the listener's memory and processor time."""
        with tempfile.TemporaryDirectory() as folder:
            told = self.ask("save", folder=folder)
            return {path.stem: Heard.load(path) for path in sorted(Path(folder).glob("*.npz"))}, told

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a command and returns its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answers.get(timeout=ANSWER_S)

    @staticmethod
    def rest(seconds: float) -> None:
        """Lets real time pass, which is what real sensors need."""
        threading.Event().wait(seconds)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "sensor" not in told:
                self._answers.put(told)
                continue
            with self._changed:
                self.states.append(told)
                self._changed.notify_all()


__all__ = ["KINDS", "Bench", "Board", "CannotDo", "HardwareSection", "Limits", "ListenerProcess", "Sensor"]

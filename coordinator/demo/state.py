"""What the demo knows so far: events of the coordinator and the devices, folded into numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

RECENT = 2000  # predictions a device's percentiles look at


@dataclass(slots=True)
class DeviceState:
    """One device as the demo sees it."""

    state: str = "starting"
    late: str = ""  # the modality that arrives late here
    applied: int = 0
    rejected: int = 0
    staleness: int = 0
    predictions: int = 0
    version: int = -1  # that its engine runs
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    swap_ms: list[float] = field(default_factory=list)
    queued: int = 0  # bytes of encoded updates
    raw_up: int = 0  # the same updates as float32
    bytes_down: int = 0
    fetched: int = 0

    def busy(self, what: str) -> None:
        """Says what the device is doing."""
        self.state = what

    def fetch(self, size: int) -> None:
        """Counts a model version that was fetched."""
        self.fetched += 1
        self.bytes_down += size


@dataclass(frozen=True, slots=True)
class Scored:
    """One evaluated version."""

    seconds: float  # since the first update
    version: int
    acc: float
    acc_by_modality: Mapping[str, float]


@dataclass(slots=True)
class DemoState:
    """Everything the live view, the table and the report show."""

    devices: dict[str, DeviceState]
    version: int = 0
    applied: int = 0
    staleness_sum: int = 0
    bytes_up: int = 0
    rho: dict[str, float] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    curve: list[Scored] = field(default_factory=list)
    rho_curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    start_ns: int = 0
    wall_seconds: float = 0.0

    def seconds(self, utc_ns: int) -> float:
        """Seconds since the first event of the coordinator."""
        self.start_ns = self.start_ns or utc_ns
        return (utc_ns - self.start_ns) / 1e9

    def fold_coordinator(self, event: Mapping[str, Any]) -> None:
        """Takes one event of the coordinator's log."""
        seconds = self.seconds(event["utc_ns"])
        handler = _COORDINATOR.get(event["event"])
        if handler is not None:
            handler(self, event, seconds)

    def fold_device(self, name: str, event: Mapping[str, Any]) -> None:
        """Takes one event of a device's log."""
        handler = _DEVICE.get(event["event"])
        if handler is not None:
            handler(self.devices[name], event)


def _applied(demo: DemoState, event: Mapping[str, Any], seconds: float) -> None:
    demo.version = event["version"]
    demo.applied += 1
    demo.staleness_sum += event["staleness"]
    demo.bytes_up += event["bytes_up"]
    demo.rates = dict(event["rates"])
    prefix = "imbalance."
    demo.rho = {k.removeprefix(prefix): v for k, v in event["figures"].items() if k.startswith(prefix)}
    demo.rho_curve.append((demo.version, demo.rho))
    device = demo.devices.get(event["device"])
    if device is not None:
        device.staleness = event["staleness"]


def _evaluated(demo: DemoState, event: Mapping[str, Any], seconds: float) -> None:
    demo.curve.append(Scored(seconds, event["version"], event["acc"], dict(event["acc_by_modality"])))


_COORDINATOR = {"UpdateApplied": _applied, "Evaluated": _evaluated}


def _predicted(device: DeviceState, event: Mapping[str, Any]) -> None:
    device.predictions += 1
    device.latency_ms.append(event["latency_ms"])


def _swapped(device: DeviceState, event: Mapping[str, Any]) -> None:
    device.swap_ms.append(event["swap_ms"])
    device.version = event["version"]["number"] if event["version"] else -1


def _accepted(device: DeviceState, event: Mapping[str, Any]) -> None:
    device.applied += 1
    device.busy("asks for work")


def _refused(device: DeviceState, event: Mapping[str, Any]) -> None:
    device.rejected += 1
    device.busy(f"refused: {event['reason']}")


def _phase(device: DeviceState, event: Mapping[str, Any]) -> None:
    device.busy("sends its update" if event["final"] else f"{event['phase']} trained, waits for {device.late}")


def _queued(device: DeviceState, event: Mapping[str, Any]) -> None:
    device.raw_up += event["raw_bytes"]
    device.queued += event["bytes"]


_DEVICE: dict[str, Callable[[DeviceState, Mapping[str, Any]], None]] = {
    "LinkChanged": lambda d, e: d.busy("connected" if e["connected"] else "off line"),
    "TaskStarted": lambda d, e: d.busy(f"task {e['number']} from version {e['base']['number']}"),
    "ModalityArrived": lambda d, e: d.busy(f"trains, {e['modality']} is here"),
    "PhaseFinished": _phase,
    "UpdateQueued": _queued,
    "UpdateAccepted": _accepted,
    "UpdateRefused": _refused,
    "PredictionMade": _predicted,
    "EngineSwapped": _swapped,
    "ModelFetched": lambda d, e: d.fetch(e["bytes"]),
}

__all__ = ["DemoState", "DeviceState", "Scored"]

"""What a device has stored that can be exported or measured: its spec, its newest model, its windows, its graph.

Only read, so a device may be running. A graph that was exported with its sidecar stands in for a device where there is
none: its model is then drawn at random and its windows are noise, which is all that speed depends on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_sdk.core import parity
from edge_sdk.core.clock import WallClock
from edge_sdk.core.config import DeviceConfig, load_toml
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.records import ModelTensors, RoundData
from edge_sdk.core.spec import FederationSpec
from edge_sdk.runtime import graphs
from edge_sdk.runtime.state import MODEL, SOLO, DeviceState
from edge_sdk.streams.journal import Journal
from edge_sdk.streams.rounds import gather

_NOISE = 64  # windows of noise where there are none


@dataclass(frozen=True, slots=True)
class Stock:
    """What there is to work with."""

    spec: FederationSpec
    tensors: ModelTensors
    version: str  # "17", "own", "random"
    windows: RoundData  # no rows: the device has kept none
    graph: Path | None  # exported already; None: not yet

    @property
    def sample(self) -> RoundData:
        """The windows, noise where there are none."""
        return self.windows if len(self.windows.y) else noise(self.spec, _NOISE)


def read(path: Path) -> Stock:
    """Returns what a device's configuration (.toml) or an exported graph (.onnx) leads to.

    Raises:
        ConfigError: it is neither, or the device has no model yet.
        EngineError: the graph has no sidecar, or a damaged one.
    """
    if path.suffix == ".onnx":
        spec = graphs.spec_of(path)
        return Stock(spec, parity.random_tensors(graphs.layout_of(path), 0), "random", noise(spec, 0), path)
    if path.suffix != ".toml":
        raise ConfigError(f"{path}: expected a device's configuration (.toml) or an exported graph (.onnx)")
    return _of_device(load_toml(path, DeviceConfig))


def _of_device(config: DeviceConfig) -> Stock:
    folder = config.device.state_dir / config.device.federation
    state = DeviceState.look(config.device)
    try:
        spec = state.spec()
        if spec is None:
            raise ConfigError(f"{folder}: the device has not heard of its federation's spec yet; let it run once")
        model, own = state.model(MODEL, spec.shape_digest), state.model(SOLO, spec.shape_digest)
    finally:
        state.close()
    version = model or own
    if version is None:
        raise ConfigError(f"{folder}: the device has no model yet; let it run until it predicts")
    graph = config.inference.graph or folder / graphs.name_of(spec)
    name = str(version.id.number) if model else "own"
    return Stock(spec, version.tensors, name, _windows(config, spec, folder), graph if graph.exists() else None)


def _windows(config: DeviceConfig, spec: FederationSpec, folder: Path) -> RoundData:
    """Returns what the reservoir has written down."""
    path = folder / "reservoir"
    if not path.is_dir():
        return noise(spec, 0)
    clock = WallClock(config.device.stream_speed)
    journal = Journal(path, spec, clock, disk_bytes=int(config.reservoir.disk_mb * 1e6))
    rows = journal.load(limit_bytes=int(config.reservoir.memory_mb * 1e6))
    return gather(list(rows.values()), spec, spec.modality_names)


def noise(spec: FederationSpec, n: int) -> RoundData:
    """Returns n windows of seeded noise without labels."""
    x = parity.noise(spec, n, 0)
    return RoundData(np.arange(n), np.full(n, -1), x, {m: np.ones(n, bool) for m in x})


__all__ = ["Stock", "noise", "read"]

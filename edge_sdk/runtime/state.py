"""What a device keeps between two starts: its outbox, private memories of methods, the last spec and the last model.

<state_dir>/<federation>/outbox.sqlite   updates that wait for a reply, residual, incarnation
                         memory/<method>.npz
                         spec.json       so that a device without a broker can sense and predict
                         model.npz       newest version that it predicted with
                         solo.npz        its own model, where it trains without a coordinator
                         lock            held by the process that runs on it
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from edge_sdk.core.config import DeviceSection
from edge_sdk.core.errors import ConfigError, StoreError
from edge_sdk.core.records import Array, ModelTensors, ModelVersion, Segments, VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.runtime import arrays
from edge_sdk.runtime.lock import Lock
from edge_sdk.runtime.outbox import MemoryOutbox, Outbox
from edge_sdk.runtime.outbox_file import FileOutbox

MODEL = "model.npz"
SOLO = "solo.npz"
_SPEC = "spec.json"
STATE = "state"  # the ordered lane of Compute for all that is written to the device's disk

log = logging.getLogger(__name__)


class DeviceState:
    """The state of one device. Blocking: in the field it is called through an ordered lane of Compute.

    Args:
        outbox: its outbox.
        folder: where everything else is; None keeps it in memory.
        lock: given back when the state is closed.
    """

    def __init__(self, outbox: Outbox, folder: Path | None, lock: Lock | None = None) -> None:
        self.outbox = outbox
        self.folder = folder
        self._lock = lock
        self._files: dict[str, bytes] = {}

    @classmethod
    def open(cls, state_dir: Path, federation: str, device: str, *, alone: bool = True) -> DeviceState:
        """Returns the state in a directory, made if need be.

        Args:
            state_dir: of the configuration.
            federation: its name.
            device: its id.
            alone: nobody else may run on this directory; False: only to look.

        Raises:
            StoreError: it cannot be used, or another process runs on it.
        """
        folder = state_dir / federation
        lock = Lock(folder / "lock", device) if alone else None
        try:
            return cls(FileOutbox(folder / "outbox.sqlite", device), folder, lock)
        except StoreError:
            if lock is not None:
                lock.release()
            raise

    @classmethod
    def look(cls, section: DeviceSection) -> DeviceState:
        """Returns the state that a device has left, only to look; the device may be running.

        Raises:
            ConfigError: it has left none.
            StoreError: it cannot be used.
        """
        folder = section.state_dir / section.federation
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no state; the device has not run yet, or with another state_dir")
        return cls.open(section.state_dir, section.federation, section.id, alone=False)

    @classmethod
    def in_memory(cls, device: str, *, incarnation: int | None = None) -> DeviceState:
        """Returns a state that ends with the process."""
        return cls(MemoryOutbox(device, incarnation), None)

    def memory(self, method: str) -> dict[str, Array]:
        """Returns a method's private memory; {} if there is none or it is damaged."""
        data = self._read(f"memory/{method}.npz")
        try:
            return {} if data is None else arrays.unpack(data)
        except StoreError as error:
            log.warning("memory of method %s begins anew: %s", method, error)
            return {}

    def keep_memory(self, method: str, memory: Mapping[str, Array]) -> None:
        """Stores a method's private memory; nothing where it keeps none, as most do."""
        name = f"memory/{method}.npz"
        if memory:
            self._write(name, arrays.pack(memory))
        else:
            self._remove(name)

    def spec(self) -> FederationSpec | None:
        """Returns the spec that this device learnt last; None if there is none or it is damaged."""
        data = self._read(_SPEC)
        try:
            return None if data is None else FederationSpec.model_validate_json(data)
        except ValidationError as error:
            log.warning("the stored spec is of no use, waiting for the coordinator's: %s", error)
            return None

    def keep_spec(self, spec: FederationSpec) -> None:
        """Stores a spec."""
        self._write(_SPEC, spec.canonical().encode())

    def model(self, name: str, shape_digest: str) -> ModelVersion | None:
        """Returns a stored model; None if there is none, or it belongs to a spec of other shapes."""
        try:
            data = self._read(name)
            return None if data is None else _version(arrays.unpack(data), shape_digest)
        except (StoreError, KeyError, ValueError) as error:
            log.warning("%s is damaged and not used: %s", name, error)
            return None

    def keep_model(self, name: str, version: ModelVersion, shape_digest: str) -> None:
        """Stores a model."""
        named: dict[str, Array] = {
            "id": np.array([version.id.lineage, str(version.id.number), version.id.digest, shape_digest])
        }
        for module, s in version.tensors.items():
            named |= {f"{module}/params": s.params, f"{module}/stats": s.stats, f"{module}/counters": s.counters}
        self._write(name, arrays.pack(named))

    def close(self) -> None:
        """Closes what is open."""
        self.outbox.close()
        if self._lock is not None:
            self._lock.release()

    def _read(self, name: str) -> bytes | None:
        return self._files.get(name) if self.folder is None else arrays.read(self.folder / name)

    def _write(self, name: str, data: bytes) -> None:
        if self.folder is None:
            self._files[name] = data
        else:
            arrays.write(self.folder / name, data)

    def _remove(self, name: str) -> None:
        if self.folder is None:
            self._files.pop(name, None)
        else:
            arrays.remove(self.folder / name)


def _version(named: Mapping[str, Array], shape_digest: str) -> ModelVersion | None:
    lineage, number, digest, shapes = (str(text) for text in named["id"])
    if shapes != shape_digest:
        return None
    modules = sorted({name.rpartition("/")[0] for name in named if "/" in name})
    tensors: ModelTensors = {
        m: Segments(named[f"{m}/params"], named[f"{m}/stats"], named[f"{m}/counters"]) for m in modules
    }
    return ModelVersion(VersionId(lineage, int(number), digest), tensors)


__all__ = ["MODEL", "SOLO", "STATE", "DeviceState"]

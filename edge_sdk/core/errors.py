"""The error tree of Edge SDK.

    EdgeError
    ├── ConfigError                     a file, flag or environment variable is wrong (also ValueError)
    ├── PluginError                     a driver, method, codec … cannot be found or loaded
    ├── DataError                       a data set or recording is incomplete or malformed (also ValueError)
    ├── SensorError
    │   ├── SensorUnavailable           cannot be opened (also ConnectionError)
    │   └── SensorTimeout               opened, but delivers nothing (also TimeoutError)
    ├── CodecError (also ValueError)
    │   ├── WireFormatError             bytes that break the wire format
    │   └── ShapeMismatch               tensors that do not fit the model
    ├── TransportError
    │   └── NotConnected                the broker is not connected now (also ConnectionError)
    ├── UpdateRejected                  an update the coordinator does not take; carries a Reason
    ├── TrainingError                   local training has nothing to train on, or has diverged
    ├── StoreError                      the coordinator's store or a device's outbox cannot be used
    ├── EngineError
    │   ├── GuardError                  a new model does worse on the device's own windows
    │   └── ParityError                 a new engine disagrees with the model it was made from
    ├── BoardError
    ├── ComputeError                    a worker died with its job
    └── Deadlock                        virtual time has nothing left to wait for

Messages say what was expected, what was found, and what to do.
"""

from __future__ import annotations

from enum import Enum


class EdgeError(Exception):
    """Base of every error that Edge SDK raises on purpose."""


class ConfigError(EdgeError, ValueError):
    """A configuration file, flag or environment variable is wrong."""


class PluginError(EdgeError):
    """A plug-in cannot be found or loaded."""


class DataError(EdgeError, ValueError):
    """A data set or recording is incomplete or malformed."""


class SensorError(EdgeError):
    """A sensor cannot be used."""


class SensorUnavailable(SensorError, ConnectionError):
    """A sensor cannot be opened, or went away."""


class SensorTimeout(SensorError, TimeoutError):
    """A sensor is open but delivers nothing."""


class CodecError(EdgeError, ValueError):
    """Bytes or tensors that a codec cannot take."""


class WireFormatError(CodecError):
    """Bytes that break the wire format."""


class NonFinite(WireFormatError):
    """Bytes that say NaN or infinite values where only finite ones have a meaning."""


class ShapeMismatch(CodecError):
    """Tensors that do not fit the model of the federation."""


class TransportError(EdgeError):
    """The transport failed."""


class NotConnected(TransportError, ConnectionError):
    """The broker is not connected at this moment."""


class Reason(str, Enum):
    """Why an update was not applied; travels in a reply and is counted by the coordinator."""

    UNKNOWN_DEVICE = "unknown_device"
    UNKNOWN_TASK = "unknown_task"
    UNKNOWN_BASE = "unknown_base"
    BASE_EXPIRED = "base_expired"
    ROLLED_BACK_BASE = "rolled_back_base"
    SPEC_CHANGED = "spec_changed"
    SHAPE = "shape"
    PAYLOAD = "payload"
    NON_FINITE = "non_finite"
    NORM = "norm"
    STALE = "stale"
    DUPLICATE = "duplicate"
    SEQUENCE_REUSED = "sequence_reused"
    RATE = "rate"
    MALFORMED = "malformed"
    STORE = "store"


class UpdateRejected(EdgeError):
    """An update the coordinator does not take.

    Args:
        reason: what the device is told.
        detail: one sentence for people.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class TrainingError(EdgeError):
    """Local training has nothing to train on, or has diverged."""


class StoreError(EdgeError):
    """The coordinator's store or a device's outbox cannot be used."""


class EngineError(EdgeError):
    """An inference engine cannot be built or run."""


class GuardError(EngineError):
    """A new model does worse than the old one on the device's own labelled windows."""


class ParityError(EngineError):
    """A new engine disagrees with the model it was made from."""


class BoardError(EdgeError):
    """A board fact cannot be read."""


class ComputeError(EdgeError):
    """A worker died with its job; the next job gets a new one."""


class Deadlock(EdgeError):
    """Virtual time stands still: nothing is ready and no timer is set."""


__all__ = [
    "BoardError",
    "CodecError",
    "ComputeError",
    "ConfigError",
    "DataError",
    "Deadlock",
    "EdgeError",
    "EngineError",
    "GuardError",
    "NonFinite",
    "NotConnected",
    "ParityError",
    "PluginError",
    "Reason",
    "SensorError",
    "SensorTimeout",
    "SensorUnavailable",
    "ShapeMismatch",
    "StoreError",
    "TrainingError",
    "TransportError",
    "UpdateRejected",
    "WireFormatError",
]

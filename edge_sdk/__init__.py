"""Asynchronous multi-modal federated learning for edge devices.

Names are loaded when they are first used (PEP 562): `import edge_sdk` itself imports no numpy, torch or driver library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_sdk.core.config import DeviceConfig
    from edge_sdk.core.errors import EdgeError
    from edge_sdk.core.interfaces import Driver
    from edge_sdk.core.records import Chunk, Dataset, Label, ModelVersion, Update, Window
    from edge_sdk.core.spec import FederationSpec
    from edge_sdk.runtime.device import Device

__version__ = "0.1.0"

_HOMES = {
    "Chunk": "edge_sdk.core.records",
    "Dataset": "edge_sdk.core.records",
    "Device": "edge_sdk.runtime.device",
    "DeviceConfig": "edge_sdk.core.config",
    "Driver": "edge_sdk.core.interfaces",
    "EdgeError": "edge_sdk.core.errors",
    "FederationSpec": "edge_sdk.core.spec",
    "Label": "edge_sdk.core.records",
    "ModelVersion": "edge_sdk.core.records",
    "Update": "edge_sdk.core.records",
    "Window": "edge_sdk.core.records",
}

__all__ = [
    "Chunk",
    "Dataset",
    "Device",
    "DeviceConfig",
    "Driver",
    "EdgeError",
    "FederationSpec",
    "Label",
    "ModelVersion",
    "Update",
    "Window",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'edge_sdk' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

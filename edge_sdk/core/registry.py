"""Plug-ins by name: entry points of the groups `edge_sdk.<kind>`, ours and everybody else's, loaded when asked for."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edge_sdk.core.errors import PluginError

GROUPS = (
    "sensors", "methods", "codecs", "engines", "exporters", "encoders", "datasets", "labels", "boards", "stores",
    "transports",
)  # fmt: skip


@cache
def _group(kind: str) -> dict[str, EntryPoint]:
    if kind not in GROUPS:
        raise PluginError(f"there is no kind of plug-in {kind!r}; known: {', '.join(GROUPS)}")
    return {point.name: point for point in entry_points(group=f"edge_sdk.{kind}")}


def names(kind: str) -> list[str]:
    """Returns the sorted names of all registered plug-ins of a kind, without loading any."""
    return sorted(_group(kind))


def load(kind: str, name: str) -> Any:
    """Returns the registered object.

    Raises:
        PluginError: no plug-in of that name, or a library that it needs is missing.
    """
    points = _group(kind)
    if name not in points:
        raise PluginError(f"no plug-in {name!r} among edge_sdk.{kind}; installed: {', '.join(names(kind)) or 'none'}")
    try:
        return points[name].load()
    except ImportError as error:
        raise PluginError(
            f"{kind[:-1]} {name!r} needs a library that is not installed: {error}; see the extras in the README"
        ) from error
    except AttributeError as error:
        raise PluginError(f"{kind[:-1]} {name!r} is registered as {points[name].value}: {error}") from error


__all__ = ["GROUPS", "load", "names"]

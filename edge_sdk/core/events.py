"""Events: what a device or a coordinator tells its observer, and the sink that writes them as JSON lines.

Events are frozen dataclasses beside the code that emits them; an observer is any callable that takes one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edge_sdk.core.clock import Clock

Observer = Callable[[Any], None]


def ignore(event: Any) -> None:
    """The observer of those who do not want to know."""


class JsonLines:
    """An observer that appends one JSON object per event: {"event": class name, "utc_ns": …, fields…}.

    Args:
        path: file to append to; its folder is made.
        clock: gives the time of each event.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._clock = clock

    def __call__(self, event: Any) -> None:
        line = {"event": type(event).__name__, "utc_ns": self._clock.utc_ns(), **asdict(event)}
        self._file.write(json.dumps(line, default=_plain) + "\n")

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


class JsonLinesReader:
    """Reads a growing file of JSON lines from where it stopped; a line still being written waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """Returns the events that were added since the last call; [] while there is no file."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


__all__ = ["JsonLines", "JsonLinesReader", "Observer", "ignore"]

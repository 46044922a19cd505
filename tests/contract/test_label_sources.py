"""What every registered source of labels has to do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.core import registry
from edge_sdk.core.clock import WallClock
from edge_sdk.core.errors import EdgeError, PluginError
from edge_sdk.core.interfaces import LabelSource
from edge_sdk.recording import Writer
from tests.helpers.streams import chunk

NAMES = registry.names("labels")


def _file(folder: Path) -> dict[str, Any]:
    with Writer(folder / "recording", start_ns=0) as writer:
        writer.append(chunk("acc", 0, 500))  # ten seconds
        writer.label(0.0, 10.0, "walk")
    return {"path": str(folder / "recording")}


# Options under which each source can be made here; a device that is not there is waited for.
OPTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "file": _file,
    "gpio": lambda folder: {"chip": str(folder / "gpiochip9"), "classes": {"1": "walk"}},
    "keys": lambda folder: {},
    "mqtt": lambda folder: {},
    "serial": lambda folder: {"port": str(folder / "ttyUSB9"), "classes": {"1": "walk"}},
}


def make(name: str, folder: Path, **more: Any) -> LabelSource:
    if name not in OPTIONS:
        pytest.skip(f"{name}: a source of another package")
    clock = WallClock()
    try:
        made: LabelSource = registry.load("labels", name)(
            {**OPTIONS[name](folder), **more}, clock, epoch_ns=clock.now_ns()
        )
    except PluginError as error:
        pytest.skip(str(error))
    return made


@pytest.mark.parametrize("name", NAMES)
def test_nobody_waits_for_a_label_in_vain_when_the_program_ends(name: str, tmp_path: Path) -> None:
    """Also while its device is not there: that is no error of the source, and ending it leaves nothing behind."""

    async def main() -> None:
        waiting = asyncio.ensure_future(_first(make(name, tmp_path)))
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


async def _first(source: LabelSource) -> object:
    async for label in source.labels():
        return label
    return None


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="no_such_option"):
        make(name, tmp_path, no_such_option=1)

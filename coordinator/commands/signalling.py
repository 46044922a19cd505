"""`edge-coordinator pause` and `resume`: what a running coordinator is told by a signal, and whether it has heard."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from coordinator.store.lock import Holder, holder
from edge_sdk.core.clock import Clock, WallClock
from edge_sdk.core.errors import ConfigError, StoreError

PAUSE, RESUME = signal.SIGUSR1, signal.SIGUSR2  # what `serve` listens to
_ANSWER_S = 10.0
_STEP_S = 0.02


def tell(folder: Path, number: signal.Signals, wanted: str) -> int:
    """Sends a running coordinator a signal and waits until it is in the wanted state; returns its pid.

    Args:
        folder: of its store.
        number: the signal.
        wanted: "paused" or "running".

    Raises:
        ConfigError: no coordinator serves this store, or not one that can be reached from here.
        StoreError: it does not answer.
    """
    return asyncio.run(_tell(folder, number, wanted, WallClock()))


async def _tell(folder: Path, number: signal.Signals, wanted: str, clock: Clock) -> int:
    found = _serving(folder)
    if found.state == wanted:
        return found.pid
    try:
        os.kill(found.pid, number)
    except OSError as error:
        raise ConfigError(f"the coordinator (pid {found.pid}) cannot be told: {error.strerror}") from error
    try:
        async with clock.deadline(_ANSWER_S):
            while _serving(folder).state != wanted:
                await clock.sleep(_STEP_S)
    except TimeoutError as error:
        raise StoreError(
            f"the coordinator (pid {found.pid}) was told, but did not answer in {_ANSWER_S:g} s"
        ) from error
    return found.pid


def _serving(folder: Path) -> Holder:
    """Returns the coordinator that serves a store; a signal to anything else would end it."""
    found = holder(folder)
    if found is None:
        raise ConfigError(f"{folder}: no coordinator is running on this store; start one with `edge-coordinator serve`")
    if found.state not in ("running", "paused"):
        raise ConfigError(f"{folder}: the process that has this store (pid {found.pid}) is not serving; try again")
    if not _has_open(found.pid, folder):
        raise ConfigError(
            f"{folder}: its coordinator (pid {found.pid}) runs in another container, under another user or on another "
            f"machine; send it SIGUSR1 (pause) or SIGUSR2 (resume) there"
        )
    return found


def _has_open(pid: int, folder: Path) -> bool:
    """Says whether a process has a file of the store open: across containers a pid names something else."""
    handles = Path(f"/proc/{pid}/fd")
    if not Path("/proc/self/fd").exists():
        return True  # this system cannot say
    store = folder.resolve()
    try:
        return any(_target(handle).parent == store for handle in handles.iterdir())
    except OSError:
        return False  # no such process here, or not ours


def _target(handle: Path) -> Path:
    try:
        return handle.readlink()
    except OSError:
        return handle  # closed meanwhile


__all__ = ["PAUSE", "RESUME", "tell"]

"""Carries runs out: a few processes at a time, each run once, what is done already left as it is."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coordinator.simulation.compare.study import Run
from edge_sdk.core.errors import ConfigError

Result = Mapping[str, Any]  # the JSON of `edge-coordinator simulate`
Told = Callable[[Run, str], None]  # run, "begun" | "done" | "kept"


def load(run: Run, folder: Path) -> Result | None:
    """Returns the result of a run that was carried out before; None if there is none.

    Raises:
        ConfigError: there is one, but it is damaged.
    """
    path = folder / f"{run.name}.json"
    if not path.exists():
        return None
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: no result of a run ({error}); delete it, and the run is done again") from error
    return result


async def carry_out(runs: Sequence[Run], folder: Path, *, jobs: int, told: Told) -> dict[str, Result]:
    """Returns run name → result; results appear in the folder as they come.

    Args:
        runs: what is to be done.
        folder: where results are kept.
        jobs: processes at a time.
        told: hears what happens.

    Raises:
        ConfigError: a run failed; says which, and what it said. The others that were under way are ended.
    """
    results: dict[str, Result] = {}
    waiting = []
    for run in runs:
        kept = load(run, folder)
        if kept is None:
            waiting.append(run)
        else:
            results[run.name] = kept
            told(run, "kept")
    turn = asyncio.Semaphore(jobs)
    tasks = [asyncio.ensure_future(_carry_out(run, folder, turn, told)) for run in waiting]
    try:
        for run, result in zip(waiting, await asyncio.gather(*tasks), strict=True):
            results[run.name] = result
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return results


async def _carry_out(run: Run, folder: Path, turn: asyncio.Semaphore, told: Told) -> Result:
    async with turn:
        told(run, "begun")
        path = folder / f"{run.name}.json"
        partial = path.with_suffix(".part")  # a run that is killed leaves no result behind
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "coordinator.cli", "simulate", *run.arguments, "--json", str(partial),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            _, said = await process.communicate()
        except asyncio.CancelledError:
            await _end(process)
            partial.unlink(missing_ok=True)
            raise
        if process.returncode != 0:
            words = said.decode(errors="replace").strip().splitlines()
            raise ConfigError(f"{run.label}, seed {run.seed}: {words[-1] if words else process.returncode}")
        partial.replace(path)
        told(run, "done")
        found = load(run, folder)
        assert found is not None
        return found


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        await process.wait()


__all__ = ["Result", "Told", "carry_out", "load"]

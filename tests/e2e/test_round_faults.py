"""A coordinator process that is killed in the middle of a synchronous round goes on with it, to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from coordinator.store import RoundEntry, maintenance, rows

ROUNDS = 4
ROOT = Path(__file__).parents[2]

Made = tuple[int, tuple[tuple[str, int], ...], Mapping[str, Mapping[str, float]]]  # version, its members, their weights


def launch(folder: Path, at: int, where: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.helpers.crashing_rounds", str(folder), str(ROUNDS), str(at), where]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)


def journal(folder: Path) -> list[Made]:
    with maintenance.reading(folder / "store") as db:
        entries = [entry for entry in rows.read_entries(db, 0) if isinstance(entry, RoundEntry)]
    return [(e.version, tuple((m.key.device, m.key.sequence) for m in e.members), e.weights) for e in entries]


def started(output: str) -> list[tuple[str, ...]]:
    """Returns round, stage and devices of every stage that began."""
    return [tuple(line.split()[1:]) for line in output.splitlines() if line.startswith("started")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Made], list[tuple[str, ...]], str]:
    """Returns the journal of an uninterrupted run, its stages, and the line that names model and state."""
    folder = tmp_path_factory.mktemp("whole")
    run = launch(folder, 0, "never")
    assert run.returncode == 0, run.stderr
    return journal(folder), started(run.stdout), run.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "where"),
    [
        (2, "after-query"), (2, "after-answer"), (3, "mid-selection"), (3, "after-selection"), (3, "mid-update"),
        (2, "after-update"), (3, "mid-commit"), (3, "after-commit"), (3, "before-publish"), (2, "mid-checkpoint"),
    ],
)  # fmt: skip
def test_a_kill_in_the_middle_of_a_round_changes_no_bit(
    tmp_path: Path, whole: tuple[list[Made], list[tuple[str, ...]], str], at: int, where: str
) -> None:
    """Invariant 14: the same devices are asked and train, the same updates are averaged, the model is the same."""
    first = launch(tmp_path, at, where)
    assert first.returncode == -signal.SIGKILL, first.stderr
    before = journal(tmp_path)
    committed = at if where in ("after-commit", "before-publish", "mid-checkpoint") else at - 1
    assert before == whole[0][:committed]
    second = launch(tmp_path, 0, "never")
    assert second.returncode == 0, second.stderr
    assert journal(tmp_path) == whole[0]
    assert second.stdout.splitlines()[-1] == whole[2]
    stages = started(first.stdout) + started(second.stdout)
    assert len(set(stages)) == len(stages)  # no stage that had begun begins again
    assert set(stages) <= set(whole[1])

"""A coordinator that is killed, restored or rolled back: no acknowledged update is lost, none is applied twice."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.config import PublishConfig, StoreConfig
from coordinator.service.ledger import Ledger
from coordinator.store import SqliteStore, maintenance, rows
from edge_sdk.codecs import wire
from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.messages import Fetch
from edge_sdk.learn import blending
from tests.helpers.field import config_of, federation, spec_of

UPDATES = 10
ROOT = Path(__file__).parents[2]


def launch(folder: Path, at: int, where: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.helpers.crashing", str(folder), str(UPDATES), str(at), where]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)


def accepted(output: str) -> list[tuple[int, int]]:
    """Returns (sequence, version) of every acknowledgement that the device saw."""
    lines = [line.split() for line in output.splitlines() if line.startswith("accepted")]
    return [(int(sequence), int(version)) for _, sequence, version in lines]


def journal(folder: Path) -> list[tuple[int, int]]:
    with maintenance.reading(folder / "store") as db:
        return [(entry.key.sequence, entry.version) for entry in rows.read_entries(db, 0)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Returns the folder of an uninterrupted run, and the line that names its model."""
    folder = tmp_path_factory.mktemp("whole")
    run = launch(folder, 0, "never")
    assert run.returncode == 0, run.stderr
    return folder, run.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("at", "where"),
    [(3, "mid-commit"), (8, "after-commit"), (6, "before-publish"), (4, "mid-checkpoint")],
)
def test_a_kill_at_any_instant_loses_nothing_repeats_nothing_and_changes_no_bit(
    tmp_path: Path, whole: tuple[Path, str], at: int, where: str
) -> None:
    first = launch(tmp_path, at, where)
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert set(accepted(first.stdout)) <= set(journal(tmp_path))
    second = launch(tmp_path, 0, "never")
    assert second.returncode == 0, second.stderr
    made = journal(tmp_path)
    assert set(accepted(first.stdout) + accepted(second.stdout)) == set(made)
    assert [version for _, version in made] == list(range(1, UPDATES + 1))
    assert len({sequence for sequence, _ in made}) == UPDATES
    assert second.stdout.splitlines()[-1] == whole[1]


def test_the_whole_journal_replays_to_the_same_bits(tmp_path: Path, whole: tuple[Path, str]) -> None:
    folder = tmp_path / "store"
    shutil.copytree(whole[0] / "store", folder)
    for path in (folder / "checkpoints").glob("*"):
        if not path.name.startswith("0000000000"):
            path.unlink()
    with closing(SqliteStore(folder, keep="all")) as store:
        ledger = Ledger(spec_of(), store)
        assert ledger.open(None, 0).replayed == UPDATES
        assert f"digest {wire.params_digest(ledger.tensors)}" == whole[1]


@pytest.mark.parametrize(("written", "recovered"), [("torch", "fused"), ("fused", "torch")])
def test_a_store_recovers_to_the_same_bits_whatever_the_kernels_on_either_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, recovered: str
) -> None:
    pytest.importorskip("numba", reason="one-pass mixing needs numba: install the extra `fused`")
    first_model_size = {"torch": sys.maxsize, "fused": 1}

    async def main(clock: VirtualClock) -> str:
        never = config_of(store=StoreConfig(checkpoint_every=100))
        async with federation(clock, config=never, store=SqliteStore(tmp_path / "store", keep="all")) as world:
            device = await world.peer()
            for _ in range(3):
                await device.contribute()
            return wire.params_digest(world.center.tensors)

    monkeypatch.setattr(blending, "FUSED_FROM", first_model_size[written])
    digest = run_virtual(main)
    for path in (tmp_path / "store" / "checkpoints").glob("*"):
        if not path.name.startswith("0000000000"):
            path.unlink()  # what the coordinator wrote when it ended: replay starts at the first version
    monkeypatch.setattr(blending, "FUSED_FROM", first_model_size[recovered])
    with closing(SqliteStore(tmp_path / "store", keep="all")) as store:
        ledger = Ledger(spec_of(), store)
        opened = ledger.open(None, 0)
        assert (opened.replayed, opened.same_bits) == (3, True)
        assert wire.params_digest(ledger.tensors) == digest


def test_after_a_restored_backup_nothing_of_the_lost_time_is_applied(tmp_path: Path) -> None:
    async def main(clock: VirtualClock) -> None:
        async with federation(clock, store=SqliteStore(tmp_path / "store")) as world:
            device = await world.peer()
            await device.contribute()
            await world.published(1)
            maintenance.backup(tmp_path / "store", tmp_path / "backup")
            await device.contribute()
            await world.published(2)
            late = device.update(await device.task())
        maintenance.restore(tmp_path / "backup", tmp_path / "restored")
        async with federation(clock, store=SqliteStore(tmp_path / "restored")) as world:
            device = await world.peer()
            before = wire.params_digest(world.center.tensors)
            reply = await device.deliver(late)
            assert (reply.reason, world.center.ledger.number) == ("unknown_base", 1)
            assert reply.version is not None
            assert reply.version == world.center.version()
            assert wire.params_digest(world.center.tensors) == before
            device.sequence = 7
            assert (await device.contribute()).kind == "accepted"

    run_virtual(main)


def test_after_a_rollback_updates_of_what_was_undone_are_refused_and_older_ones_taken(tmp_path: Path) -> None:
    async def main(clock: VirtualClock) -> None:
        folder = tmp_path / "store"
        async with federation(clock, store=SqliteStore(folder)) as world:
            early, device = await world.peer("early"), await world.peer("d1")
            await device.contribute()
            await world.published(1)
            kept = early.update(await early.task())
            await device.contribute()
            await world.published(2)
            undone = device.update(await device.task())
            wanted = (await device.model(kept.base)).tensors
        with closing(SqliteStore(folder)) as store:
            ledger = Ledger(spec_of(), store)
            ledger.open(None, 0)
            assert ledger.roll_back(kept.base) == 3
        async with federation(clock, store=SqliteStore(folder)) as world:
            head = await world.published(3)
            assert head.newest.id.digest == wire.tensors_digest(wanted)
            early, device = await world.peer("early"), await world.peer("d1")
            assert (await device.deliver(undone)).reason == "rolled_back_base"
            assert (await early.deliver(kept)).kind == "accepted"
            device.sequence = 7
            assert (await device.contribute()).kind == "accepted"

    run_virtual(main)


def test_a_restarted_coordinator_takes_the_update_of_a_task_that_its_predecessor_gave(tmp_path: Path) -> None:
    async def main(clock: VirtualClock) -> None:
        store = tmp_path / "store"
        async with federation(clock, store=SqliteStore(store)) as world:
            device = await world.peer()
            update = device.update(await device.task())
        async with federation(clock, store=SqliteStore(store)) as world:
            device = await world.peer()
            first = await device.deliver(update)
            assert first.kind == "accepted"
        async with federation(clock, store=SqliteStore(store)) as world:
            device = await world.peer()
            digest = wire.object_digest(device.encode(update))
            await device.ask(Fetch("update", key=update.key, digest=digest))
            assert await device.reply() == first
            assert world.center.ledger.number == 1
            assert (await device.task()).number == 1

    run_virtual(main)


def test_versions_that_were_made_but_not_published_are_published_at_the_next_start(tmp_path: Path) -> None:
    async def main(clock: VirtualClock) -> None:
        rare = config_of(publish=PublishConfig(every_updates=100, min_interval_s=0.0, min_hold_s=0.0))
        async with federation(clock, config=rare, store=SqliteStore(tmp_path / "store")) as world:
            device = await world.peer()
            for _ in range(3):
                await device.contribute()
            digest = wire.params_digest(world.center.tensors)
        async with federation(clock, config=rare, store=SqliteStore(tmp_path / "store")) as world:
            head = await world.published(3)
            device = await world.peer()
            assert wire.params_digest((await device.model(head.newest.id)).tensors) == digest

    run_virtual(main)

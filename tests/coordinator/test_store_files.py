"""What only the store on disk can suffer: full disks, torn files, other formats, backups."""

import errno
import json
import os
import resource
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.store import SqliteStore, facts, files, maintenance, patches, rows
from coordinator.store.facts import pack_header, unpack_header
from coordinator.store.sqlite import DATABASE
from edge_sdk.core.errors import StoreError
from tests.contract.test_stores import ABOUT, checkpoint, entry, equal, stored, task, tensors


def made(folder: Path) -> SqliteStore:
    store = SqliteStore(folder)
    assert store.open() is None
    store.create(ABOUT, checkpoint(0))
    return store


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_atomically(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_database_that_may_not_grow_refuses_a_commit_and_loses_nothing(tmp_path: Path) -> None:
    store = made(tmp_path / "store")
    store.commit(entry(1))
    store.checkpoint(checkpoint(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))  # a disk with 64 KiB per file
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            store.commit(replace(entry(2), body=os.urandom(1 << 20)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    store.commit(entry(2))
    assert [e.version for e in store.entries(0)] == [1, 2]
    store.close()


def test_bases_are_mapped_into_memory_not_read(tmp_path: Path) -> None:
    store = made(tmp_path / "store")
    store.save_version(stored(1, store.lineage), tensors(1), b"x")
    params = store.tensors(stored(1, store.lineage).id)["fusion"].params
    root = params
    while isinstance(root.base, np.ndarray):
        root = root.base
    assert isinstance(root, np.memmap)
    store.close()


def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    store = made(tmp_path / "store")
    for version in (1, 2, 3, 4):
        store.commit(entry(version))
        if version % 2 == 0:
            store.checkpoint(checkpoint(version))
    path = tmp_path / "store" / "checkpoints" / "0000000004.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    found = store.newest_checkpoint()
    assert found.number == 2
    assert [e.version for e in store.entries(found.number)] == [3, 4]
    (tmp_path / "store" / "checkpoints" / "0000000002.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(StoreError, match="backup"):
        store.newest_checkpoint()
    store.close()


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    made(tmp_path / "store").close()
    leftovers = [
        tmp_path / "store" / name for name in ("versions/9.safetensors", "checkpoints/0000000009.safetensors.tmp")
    ]
    for path in leftovers:
        path.write_bytes(b"torn")
    store = SqliteStore(tmp_path / "store")
    store.open()
    assert not any(path.exists() for path in leftovers)
    assert equal(store.newest_checkpoint().tensors, tensors(0))
    store.close()


def test_a_store_of_format_2_is_opened_and_becomes_one_of_format_3(tmp_path: Path) -> None:
    store = made(tmp_path / "store")
    store.commit(entry(1))
    store.close()
    with closing(sqlite3.connect(tmp_path / "store" / DATABASE)) as db:
        (header,) = db.execute("SELECT header FROM journal").fetchone()
        plain = unpack_header(header, "journal entry")
        assert plain.pop("large") == 0  # format 2 has all entries in the header and does not say so
        db.execute("UPDATE journal SET header = ?", (pack_header(plain, "journal entry"),))
        db.execute("DROP TABLE patches")
        db.execute("UPDATE meta SET value = '2' WHERE name = 'format'")
        db.commit()
    store = SqliteStore(tmp_path / "store")
    assert store.open() == ABOUT
    (found,) = store.entries(0)
    assert np.array_equal(found.patch["sum/a"], entry(1).patch["sum/a"])
    store.close()
    with closing(sqlite3.connect(tmp_path / "store" / DATABASE)) as db:
        assert db.execute("SELECT value FROM meta WHERE name = 'format'").fetchone() == ("3",)


def test_a_checkpoint_of_format_2_is_read(tmp_path: Path) -> None:
    whole = checkpoint(1)
    listing = [[name, list(np.shape(value))] for name, value in sorted(whole.state.items())]
    more = {
        "state/names": np.frombuffer(json.dumps(listing).encode(), np.uint8),
        "state/values": np.concatenate([np.ravel(value) for _, value in sorted(whole.state.items())]),
        "updates": np.array([1, 1], np.int64),
    }
    (tmp_path / "old").write_bytes(files.pack_tensors(whole.tensors, more))
    found = files.read_checkpoint(tmp_path / "old")
    assert equal(found.tensors, whole.tensors)
    assert all(np.array_equal(found.state[name], value) for name, value in whole.state.items())


def test_large_entries_do_not_count_to_what_a_header_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_HEADER_LIMIT", 1 << 20)
    store = made(tmp_path / "store")
    blocks = {f"block/fusion/d{n}": np.arange(40_000.0) + n for n in range(12)}  # 320 kB each, as float32 160
    store.commit(replace(entry(1), patch=blocks))
    (found,) = store.entries(0)
    assert all(np.array_equal(found.patch[name], value) for name, value in blocks.items())
    store.close()
    assert (tmp_path / "store" / DATABASE).stat().st_size < 12 * 200_000  # in half the room


def test_a_decision_that_is_too_large_is_refused_before_it_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made(tmp_path / "store")
    store.commit(entry(1))
    with monkeypatch.context() as patch:
        patch.setattr(facts, "_HEADER_LIMIT", 1 << 10)
        with pytest.raises(StoreError, match=r"journal entry: .* at most 1024 .*select fewer devices per round"):
            store.commit(replace(entry(2), patch={"cells": np.zeros(500)}))
        patch.setattr(patches, "LARGEST", 100_000)
        with pytest.raises(StoreError, match=r"entry 'block/a' of the method's state: .* use a smaller model"):
            store.commit(replace(entry(2), patch={"block/a": np.full(20_000, 0.1)}))
    store.commit(entry(2))  # nothing of it is left, and the store goes on
    assert [e.version for e in store.entries(0)] == [1, 2]
    store.close()


def test_a_decision_that_has_lost_some_of_its_large_entries_is_not_replayed(tmp_path: Path) -> None:
    store = made(tmp_path / "store")
    store.commit(replace(entry(1), patch={f"block/{n}": np.full(20_000, 0.1) for n in range(3)}))
    store.close()
    with closing(sqlite3.connect(tmp_path / "store" / DATABASE)) as db:
        db.execute("DELETE FROM patches WHERE name = 'block/1'")
        db.commit()
    store = SqliteStore(tmp_path / "store")
    store.open()
    with pytest.raises(StoreError, match="2 of 3 large entries"):
        list(store.entries(0))
    store.close()


def test_a_backup_holds_large_entries(tmp_path: Path) -> None:
    store = made(tmp_path / "store")
    patch = {"block/a": np.full(20_000, 0.1)}
    store.commit(replace(entry(1), patch=patch))
    maintenance.backup(tmp_path / "store", tmp_path / "backup")
    store.close()
    maintenance.restore(tmp_path / "backup", tmp_path / "restored")
    with maintenance.reading(tmp_path / "restored") as db:
        (found,) = rows.read_entries(db, 0)
    assert np.array_equal(found.patch["block/a"], patch["block/a"])


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    made(tmp_path / "store").close()
    with sqlite3.connect(tmp_path / "store" / DATABASE) as db:
        db.execute("UPDATE meta SET value = '99' WHERE name = 'format'")
    db.close()
    with pytest.raises(StoreError, match="format 99"):
        SqliteStore(tmp_path / "store").open()


def test_something_else_than_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / DATABASE).write_bytes(b"no database at all, but long enough to be one" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteStore(tmp_path / "store").open()


def test_a_backup_of_a_store_in_use_is_whole_and_a_restored_one_has_a_new_lineage(tmp_path: Path) -> None:
    store = made(tmp_path / "store")
    store.save_version(stored(1, store.lineage), tensors(1), b"x")
    store.commit(replace(entry(1), base=stored(1, store.lineage).id))
    store.open_tasks((task("t9", "d1", 5),))
    maintenance.enrol(tmp_path / "store", "d1")
    maintenance.backup(tmp_path / "store", tmp_path / "backup")
    store.commit(entry(2))
    lineage = maintenance.restore(tmp_path / "backup", tmp_path / "restored")
    copy = SqliteStore(tmp_path / "restored")
    assert copy.open() == ABOUT
    assert copy.lineage == lineage != store.lineage
    assert [e.version for e in copy.entries(0)] == [1]
    assert copy.journal().tasks == ()
    assert copy.journal().task_numbers == {"d1": 6}
    assert copy.enrolled() == {"d1"}
    assert equal(copy.tensors(stored(1, store.lineage).id), tensors(1))  # the journal still reads it
    store.close()
    copy.close()


def test_backup_and_restore_overwrite_nothing(tmp_path: Path) -> None:
    made(tmp_path / "store").close()
    maintenance.backup(tmp_path / "store", tmp_path / "backup")
    with pytest.raises(StoreError, match="exists already"):
        maintenance.backup(tmp_path / "store", tmp_path / "backup")
    with pytest.raises(StoreError, match="holds a store already"):
        maintenance.restore(tmp_path / "backup", tmp_path / "store")
    with pytest.raises(StoreError, match="holds no store"):
        maintenance.restore(tmp_path / "nothing", tmp_path / "new")


def test_a_summary_sees_what_a_running_coordinator_writes(tmp_path: Path) -> None:
    store = made(tmp_path / "store")
    for version in (1, 2, 3):
        store.commit(entry(version))
    found = maintenance.summary(tmp_path / "store")
    assert (found.number, found.updates, found.running) == (3, 3, True)
    store.close()
    assert not maintenance.summary(tmp_path / "store").running

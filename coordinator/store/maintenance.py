"""What is done to a store from outside: looking, backing up, restoring, enrolling. None of it needs torch."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from coordinator.store import facts, files, rounds, rows
from coordinator.store.base import About, Journal, Stored, new_lineage
from coordinator.store.lock import FILES, Holder, holder
from coordinator.store.sqlite import DATABASE, connect, stem
from edge_sdk.core.errors import StoreError
from edge_sdk.transport.topics import identifier

_ATTEMPTS = 5  # of a backup while the coordinator goes on


@dataclass(frozen=True, slots=True)
class Summary:
    """A store at a glance."""

    about: About
    lineage: str
    number: int  # of the newest version
    updates: int  # applied, rollbacks not counted
    journal: Journal
    bytes: int  # on disk
    holder: Holder | None  # the process that has it open

    @property
    def running(self) -> bool:
        """Says whether a process has it open."""
        return self.holder is not None


@contextmanager
def reading(folder: Path) -> Iterator[sqlite3.Connection]:
    """Opens the database of a store for reading, while a coordinator may be writing to it.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    path = folder / DATABASE
    if not path.exists():
        raise StoreError(f"{folder}: holds no store; `edge-coordinator serve` makes it")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=10.0)) as db:
            yield db
    except sqlite3.Error as error:
        raise StoreError(f"{folder}: cannot be read: {error}") from error


def summary(folder: Path) -> Summary:
    """Returns what a store holds."""
    with reading(folder) as db:
        db.execute("BEGIN")  # one moment, while a coordinator goes on
        about = rows.read_about(db)
        if about is None:
            raise StoreError(f"{folder}: holds no model yet")
        number, updates = rows.progress(db)
        journal = rows.read_journal(db, 0)
        lineage = facts.read_meta(db, "lineage")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Summary(about, lineage, number, updates, journal, size, holder(folder))


def version_file(folder: Path, stored: Stored) -> Path:
    """Returns the file with the tensors of a published version."""
    return folder / "versions" / f"{stem(stored.id)}.safetensors"


def backup(folder: Path, target: Path) -> None:
    """Copies a store as it is at one moment, while a coordinator may go on with it.

    Raises:
        StoreError: the target exists already, or something cannot be read or written.
    """
    if target.exists():
        raise StoreError(f"{target}: exists already; give a new folder")
    for attempt in range(_ATTEMPTS):
        try:
            _copy(folder, target)
        except FileNotFoundError as error:  # pruned between the list and the copy: the next list lacks it
            made = target.exists()
            shutil.rmtree(target, ignore_errors=True)
            if not made:
                raise StoreError(f"{target}: cannot be made: {error.strerror}") from error
            if attempt == _ATTEMPTS - 1:
                raise StoreError(f"{folder}: changes too fast to be copied: {error.filename}") from error
        except StoreError:
            shutil.rmtree(target, ignore_errors=True)
            raise
        except (OSError, sqlite3.Error) as error:
            shutil.rmtree(target, ignore_errors=True)
            raise StoreError(f"{target}: cannot be written: {error}") from error
        else:
            return


def _copy(folder: Path, target: Path) -> None:
    with reading(folder) as source:
        for name in ("checkpoints", "versions"):
            (target / name).mkdir(parents=True)
        with closing(sqlite3.connect(target / DATABASE)) as copy:
            source.backup(copy)
            names = [f"checkpoints/{name}" for name in rows.checkpoint_files(copy)]
            for stored in rows.read_versions(copy):
                names += [f"versions/{stem(stored.id)}.{kind}" for kind in ("safetensors", "edsm")]
    for name in names:
        shutil.copy2(folder / name, target / name)
    with suppress(FileNotFoundError):
        shutil.copy2(folder / "enrolled.txt", target / "enrolled.txt")


def restore(source: Path, folder: Path) -> str:
    """Makes a store from a backup and returns its new lineage.

    What happened after the backup is lost, so devices may hold versions that this store never made: a new lineage
    lets the coordinator tell them apart, and open tasks are closed.

    Raises:
        StoreError: there is a store already, or the backup cannot be used.
    """
    if (folder / DATABASE).exists():
        raise StoreError(f"{folder}: holds a store already; move it away first")
    with reading(source) as db:
        if rows.read_about(db) is None:
            raise StoreError(f"{source}: is no backup of a store")
    lineage = new_lineage()
    try:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*FILES))
        with closing(connect(folder / DATABASE)) as db:
            db.execute("BEGIN IMMEDIATE")
            facts.write_meta(db, "lineage", lineage)
            rows.drop_tasks(db, tuple(task.id for task in rows.read_journal(db, 0).tasks))
            rounds.drop_round(db)
            db.execute("COMMIT")
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{folder}: cannot be restored: {error}") from error
    return lineage


def enrol(folder: Path, device: str) -> None:
    """Lets a device take part; a running coordinator hears of it when the device first speaks."""
    identifier("a device id", device)
    path = folder / "enrolled.txt"
    folder.mkdir(parents=True, exist_ok=True)
    known = path.read_text(encoding="utf-8").split() if path.exists() else []
    if device not in known:
        files.write_atomically(path, "".join(f"{name}\n" for name in [*known, device]).encode())


__all__ = ["Summary", "backup", "enrol", "reading", "restore", "summary", "version_file"]

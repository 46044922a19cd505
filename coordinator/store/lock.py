"""Who has a store: one process at a time takes it, and anybody may ask which one without getting in its way.

Two files, both locked by the kernel, which lets go of them with the process, however that ends:

    lock       held by the process that has the store; its text is `<pid> <state>`
    presence   locked after `lock`; who only asks tries this one, shared and for an instant, so that asking can never
               make a coordinator that starts at this moment believe that the store is taken
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge_sdk.core.errors import StoreError

_LOCK, _PRESENCE = "lock", "presence"
FILES = (_LOCK, _PRESENCE)


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that has a store."""

    pid: int  # 0: it could not write it down
    state: str  # what it noted last; "": it is no coordinator that serves


class StoreLock:
    """Takes a store for this process.

    Args:
        folder: the store's; exists.

    Raises:
        StoreError: another process has it, or its folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        with ExitStack() as stack:
            self._lock = stack.enter_context(_open(folder / _LOCK))
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise _taken(folder, _read(folder)) from error
            self._presence = stack.enter_context(_open(folder / _PRESENCE))
            fcntl.flock(self._presence, fcntl.LOCK_EX)  # waits for those who ask: an instant
            self._held = stack.pop_all()
        self.note("")

    def note(self, state: str) -> None:
        """Writes down what this process does, for `holder`; a full disk keeps nobody from working."""
        line = f"{os.getpid()} {state}\n".encode()
        with suppress(OSError):
            os.pwrite(self._lock.fileno(), line, 0)  # a reader takes the first line: there always is a whole one
            os.ftruncate(self._lock.fileno(), len(line))

    def release(self) -> None:
        """Lets the store go."""
        self._held.close()


def holder(folder: Path) -> Holder | None:
    """Returns the process that has the store open; None if nobody has."""
    try:
        with (folder / _PRESENCE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError:
        return _read(folder)
    return None


def check_free(folder: Path) -> None:
    """Raises StoreError if a process has the store: better before a broker is started than after."""
    found = holder(folder)
    if found is not None:
        raise _taken(folder, found)


def _taken(folder: Path, by: Holder) -> StoreError:
    return StoreError(f"{folder}: in use by another process (pid {by.pid or 'unknown'}); stop that coordinator first")


def _read(folder: Path) -> Holder:
    try:
        words = (folder / _LOCK).read_text(encoding="utf-8").partition("\n")[0].split()
        return Holder(int(words[0]), " ".join(words[1:]))
    except (OSError, ValueError, IndexError):
        return Holder(0, "")


def _open(path: Path) -> IO[bytes]:
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened: {error.strerror}") from error


__all__ = ["FILES", "Holder", "StoreLock", "check_free", "holder"]

"""One process per state directory: two devices on one outbox would number their updates alike."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from edge_sdk.core.errors import StoreError


class Lock:
    """A file that one process at a time holds; the kernel lets go of it with the process, however that ends.

    Args:
        path: the file; made with its folder if need be.
        device: id of the device, for the one who finds it taken.

    Raises:
        StoreError: another process holds it, or the folder cannot be written to.
    """

    def __init__(self, path: Path, device: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be opened: {error.strerror}; make it writable or set another device.state_dir"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(self._file)
            raise StoreError(
                f"{path.parent}: {holder} runs on this state directory; stop it, or set another device.state_dir"
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"device {device} (process {os.getpid()})\n".encode(), 0)

    def release(self) -> None:
        """Lets the next one in; may be called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


__all__ = ["Lock"]

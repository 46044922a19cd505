"""Named arrays as bytes and as files: npz, never pickled, files replaced whole or not at all."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge_sdk.core.errors import StoreError
from edge_sdk.core.records import Array


def pack(arrays: Mapping[str, Array]) -> bytes:
    """Returns named arrays as one uncompressed npz."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            item = io.BytesIO()
            np.lib.format.write_array(item, np.asarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(name), item.getvalue())  # ZipInfo: no time in it, same bytes every time
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, Array]:
    """Returns what `pack` packed; StoreError for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: _read(archive.read(name)) for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise StoreError(f"stored arrays are damaged: {error}") from error


def _read(data: bytes) -> Array:
    array: Array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return array


def write(path: Path, data: bytes) -> None:
    """Replaces a file: after a kill or a power cut it holds the old or the new bytes, nothing between.

    Raises:
        StoreError: the disk is full or not writable.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}; make room or fix its permissions") from error


def read(path: Path) -> bytes | None:
    """Returns a file's bytes; None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def remove(path: Path) -> None:
    """Removes a file if it is there; StoreError if it cannot be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot be removed: {error.strerror}; fix its permissions") from error


__all__ = ["pack", "read", "remove", "unpack", "write"]

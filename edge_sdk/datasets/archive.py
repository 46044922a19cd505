"""Reading users' copies of files: members of .npz files without pickles, and folders that may still be zipped."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array

Folder = Path | zipfile.Path  # both know /, name, exists(), iterdir() and open()

# Of acceleration in g and angular velocity in deg/s, three axes each, to m/s² and rad/s.
INERTIAL_UNITS = np.array([9.80665] * 3 + [np.pi / 180] * 3)

# What numpy and zipfile raise on files that are cut short, are no archives, are encrypted, or hold Python objects.
_BROKEN = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_npz(path: Path) -> dict[str, Array]:
    """Returns every array of an .npz file; pickled objects are refused.

    Raises:
        DataError: no such file, not an .npz file, damaged, or an array of Python objects.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected an .npz file as numpy.savez writes it")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an .npz file; write it with numpy.savez or numpy.savez_compressed")
    arrays: dict[str, Array] = {}
    name = "?"
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            for name in file.files:
                member = file[name]
                if not isinstance(member, np.ndarray):  # numpy hands out a member that is no .npy file as bytes
                    raise DataError(f"{path}: {name} is not an array; expected only arrays of numpy.savez")
                arrays[name] = member
    except DataError:
        raise
    except _BROKEN as error:
        hint = "Python objects are not read; use numbers or strings" if "allow_pickle" in str(error) else error
        raise DataError(f"{path}: array {name} cannot be read: {hint}") from error
    return arrays


def read_bytes(path: Folder) -> bytes:
    """Returns the content of a file, in an archive or not; DataError if it is missing or damaged."""
    try:
        content = path.read_bytes()
    except _BROKEN as error:
        raise DataError(f"{path}: cannot be read ({error}); download it again") from error
    if content.startswith(b"version https://git-lfs"):
        raise DataError(f"{path}: only a pointer of Git LFS; fetch the file itself with `git lfs pull`")
    return content


def open_zip(path: Path) -> zipfile.ZipFile:
    """Returns the open archive; DataError if it is damaged."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable zip archive ({error}); download it again") from error


def places(path: Path) -> Iterator[Folder]:
    """Yields the folders where the files of a download may lie: here, one level below, and in zip archives here.

    Args:
        path: a folder, or a zip archive.
    """
    if path.is_file():
        yield from _inside_zip(open_zip(path))
        return
    yield path
    yield from sorted(entry for entry in path.iterdir() if entry.is_dir())
    for archive in sorted(path.glob("*.zip")):
        yield from _inside_zip(open_zip(archive))


def _inside_zip(archive: zipfile.ZipFile) -> Iterator[Folder]:
    root = zipfile.Path(archive)
    yield root
    for entry in sorted(root.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            yield entry
        elif entry.name.endswith(".zip"):  # some sites wrap the archive in another one
            yield from _inside_zip(zipfile.ZipFile(entry.open("rb")))


def check_complete(what: str, found: Iterable[str], expected: Iterable[str], *, where: str) -> None:
    """Raises DataError if files that the set consists of are not there; names the first, the counts and the source."""
    have, all_of_them = set(found), sorted(expected)
    missing = [name for name in all_of_them if name not in have]
    if missing:
        count = f"expected {len(all_of_them)} files, found {len(all_of_them) - len(missing)}"
        raise DataError(
            f"{what}: {missing[0]} is missing ({count}); download the set from {where}, or take what there is with "
            "the option partial=true"
        )


def check_finite(values: Array, what: str) -> None:
    """Raises DataError if a number is NaN or infinite; names the first row (of axis 0) that holds one."""
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{what}: row {row} holds NaN or Inf ({int(bad.sum())} such rows); download the file again")


__all__ = [
    "INERTIAL_UNITS",
    "Folder",
    "check_complete",
    "check_finite",
    "open_zip",
    "places",
    "read_bytes",
    "read_npz",
]

"""Reading users' copies of files: members of .npz files without pickles, and folders that may still be zipped."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array

Folder = Path | zipfile.Path  # both know /, name, exists(), iterdir() and open()

# What numpy and zipfile raise on files that are cut short, are no archives, or hold Python objects.
_BROKEN = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


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
        with np.load(path, allow_pickle=False) as file:
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


def open_zip(path: Path) -> zipfile.ZipFile:
    """Returns the open archive; DataError if it is damaged."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable zip archive ({error}); download it again") from error


__all__ = ["Folder", "open_zip", "read_npz"]

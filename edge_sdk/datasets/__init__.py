"""Public data sets and the user's own files, all as one record.

A loader is registered in the group `edge_sdk.datasets` and called as

    load(data: Path | None = None, *, variant: str = "", seed: int = 0) -> Dataset

`data` is the user's copy (a file or a folder; None: what travels with the package, or an error that says where to
get it), `variant` chooses among forms and sizes of one set (`datasets.variants` reads it), `seed` matters only to what
is drawn at random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edge_sdk.core import registry
from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Dataset


class Loader(Protocol):
    """What an entry point of the group `edge_sdk.datasets` names."""

    def __call__(self, data: Path | None = None, *, variant: str = "", seed: int = 0) -> Dataset:
        """Returns the data set; DataError if a file is missing or malformed."""


def select(name: str, data: Path | None = None, *, seed: int = 0) -> Dataset:
    """Returns a data set by what a user writes: NAME, NAME:FORM,key=value,… or FILE.npz.

    Raises:
        PluginError: no data set of that name is installed.
        DataError: a file is missing or malformed.
    """
    if name.endswith(".npz"):
        if data is not None:
            raise DataError(f"{name} is a file already: leave out the data folder {data}")
        name, data = "npz", Path(name)
    name, _, variant = name.partition(":")
    loader: Loader = registry.load("datasets", name)
    return loader(data, variant=variant, seed=seed)


__all__ = ["Loader", "select"]

"""Whole copies of public data sets, where somebody has put them beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

BESIDE = Path(__file__).parents[3] / "shared" / "data"


def whole_copy(folder: str) -> Path:
    """Returns the folder of a data set; skips the test where there is no copy."""
    path = BESIDE / folder
    if not path.is_dir():
        pytest.skip(f"no copy of the data set: put its files into {path}")
    return path

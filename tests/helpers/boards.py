"""The recorded boards, and copies of them that a test may break."""

from __future__ import annotations

import shutil
from pathlib import Path

BOARDS = Path(__file__).parents[1] / "data" / "boards"
NAMES = sorted(path.name for path in BOARDS.iterdir() if path.is_dir())


def copy(name: str, to: Path, **files: str | None) -> Path:
    """Returns a copy of a board below `to`, with some files changed.

    Args:
        name: of the board.
        to: an empty folder.
        **files: path, with "__" for "/" → new text; None: taken away. Use `change` for names that need more.
    """
    root = shutil.copytree(BOARDS / name, to / name)
    return change(root, {key.replace("__", "/"): text for key, text in files.items()})


def change(root: Path, files: dict[str, str | None]) -> Path:
    """Changes files of a copy; returns its root."""
    for path, text in files.items():
        target = root / path
        if text is None:
            target.unlink()
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    return root

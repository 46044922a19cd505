"""Programs that only note how they were called, for scripts that would change the machine."""

from __future__ import annotations

from pathlib import Path

HEAD = '#!/bin/bash\necho "$(basename "$0") $*" >> "{log}"\n'


class Stubs:
    """A folder of stubs for PATH.

    Args:
        folder: where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "calls.log"
        folder.mkdir(parents=True)
        self.log.touch()

    def add(self, name: str, body: str = "") -> None:
        """Adds a program that notes its call and then runs `body`."""
        path = self.folder / name
        path.write_text(HEAD.format(log=self.log) + body)
        path.chmod(0o755)

    def calls(self) -> list[str]:
        """Returns the calls since the last time."""
        found = self.log.read_text().splitlines()
        self.log.write_text("")
        return found

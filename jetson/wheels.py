"""Which wheels belong on which JetPack: the requirement files in `deploy/`, read so that advice and installer agree."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DEPLOY = Path(__file__).with_name("deploy")
PYTHON = {"4": "3.10", "5": "3.10", "6": "3.10", "7": "3.12"}  # generation of JetPack → Python that its wheels are for


@dataclass(frozen=True, slots=True)
class Wheel:
    """One requirement."""

    name: str  # "onnxruntime-gpu"
    line: str  # "onnxruntime-gpu==1.23.0"
    index: str  # its index; "": PyPI

    def command(self, pip: str) -> str:
        """Returns the command that installs it."""
        where = f"--no-deps --index-url {self.index} " if self.index else ""
        return f"{pip} install {where}'{self.line}'"


@cache
def of(generation: str) -> dict[str, Wheel]:
    """Returns name → wheel of a generation of JetPack ("6"); empty for one that is not known."""
    found: dict[str, Wheel] = {}
    for name in (f"requirements-jp{generation}.txt", f"accelerators-jp{generation}.txt"):
        path = DEPLOY / name
        if path.is_file():
            found |= _read(path.read_text(encoding="utf-8"))
    return found


def _read(text: str) -> dict[str, Wheel]:
    index, found = "", {}
    for line in (raw.strip() for raw in text.splitlines()):
        if line.startswith("--index-url "):
            index = line.split()[1]
        elif match := re.match(r"[A-Za-z][\w.-]*", line):
            found[match[0]] = Wheel(match[0], line, index)
    return found


__all__ = ["DEPLOY", "PYTHON", "Wheel", "of"]

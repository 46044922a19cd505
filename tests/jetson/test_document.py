"""docs/jetson.md is true: keys, defaults, files, flags and board names."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

import edge_sdk.cli
from edge_sdk.core.config import TrainerConfig
from tests.helpers.boards import NAMES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/jetson.md").read_text(encoding="utf-8")
NUMBERS = {1: "one", 7: "seven", 8: "eight", 9: "nine", 10: "ten", 11: "eleven", 12: "twelve"}


def test_the_keys_of_training_stand_there_with_their_defaults() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    told = tomllib.loads(block)["training"]
    assert TrainerConfig.model_validate(told) == TrainerConfig()
    others = {"enabled", "niceness", "threads"}
    assert set(told) == set(TrainerConfig.model_fields) - others


def test_files_that_are_named_are_there() -> None:
    named = re.findall(r"`((?:jetson|coordinator|tests)/[\w./-]+)`", TEXT) + re.findall(r"\]\((\w+\.md)\)", TEXT)
    assert len(named) > 5
    assert [name for name in named if not (ROOT / name).exists() and not (ROOT / "docs" / name).exists()] == []


def edge_sdk_commands() -> list[str]:
    lines = [line for block in re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    inline = re.findall(r"`(edge-sdk [^`]+)`", TEXT)
    found = [line[line.index("edge-sdk ") :] for line in lines if "/bin/edge-sdk " in line]
    return sorted({*found, *(line for line in inline if " " in line)})


@pytest.mark.parametrize("line", edge_sdk_commands())
def test_commands_are_spelled_right(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, *arguments = shlex.split(line.replace("FOLDER", "folder"))
    with pytest.raises(SystemExit) as ended:
        edge_sdk.cli.main([*arguments, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(flag in told for flag in arguments if flag.startswith("--"))


def test_the_number_of_recorded_boards_is_right() -> None:
    assert f"{NUMBERS[len(NAMES)]} of them (`tests/data/boards`)" in TEXT
    readme = (ROOT / "tests/data/boards/README.md").read_text()
    assert all(f"| `{name}` |" in readme for name in NAMES)

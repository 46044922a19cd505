from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from edge_sdk.core.program import DONE, WRONG, at_least, carry_out


@pytest.mark.parametrize(("kind", "text"), [(int, "0"), (int, "1.5"), (float, "nan"), (float, "-3"), (float, "many")])
def test_a_number_that_is_too_small_or_none_is_named(
    kind: Callable[[str], float], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=at_least(1, kind))
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([f"--threads={text}"])
    assert ended.value.code == 2
    assert f"--threads: expected a number of at least 1, found '{text}'" in capsys.readouterr().err


def test_a_number_that_is_large_enough_is_taken() -> None:
    assert at_least(0, float)("0") == 0.0
    assert at_least(1, int)("3") == 3


class Ending:
    """A command that ends with an error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        pass

    def run(self, args: argparse.Namespace) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(28, "No space left on device", "/data/x"), WRONG, "tool: /data/x: No space left on device\n"),
        (OSError("odd"), WRONG, "tool: odd\n"),
        (KeyboardInterrupt(), DONE, ""),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = argparse.Namespace(log_format="text", log_level="error")
    assert carry_out(Ending(error), args, name="tool", interrupted=DONE) == code
    assert capsys.readouterr().err == said

"""The benchmark runner: what it finds, and what it refuses to write. The figures themselves are `make bench`."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from tests.bench import run

ROW = {"name": "a", "value": 1.0, "unit": "ms", "reference": "a limit", "ratio": 0.5}


def test_every_benchmark_is_found_and_has_run() -> None:
    topics = run.topics()
    assert {"codecs", "coordinator", "export", "ingest", "mixing", "runtime", "transport"} <= set(topics)
    for topic in topics:
        tree = ast.parse((run.HERE / f"bench_{topic}.py").read_text())
        assert "run" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, topic


def test_good_rows_pass() -> None:
    run.check("x", [ROW, {**ROW, "name": "b", "value": 0}])


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "no rows"),
        ([{k: v for k, v in ROW.items() if k != "ratio"}], "must have exactly"),
        ([{**ROW, "note": ""}], "must have exactly"),
        ([{**ROW, "ratio": float("nan")}], "finite"),
        ([{**ROW, "value": float("inf")}], "finite"),
        ([ROW, ROW], "two rows are called 'a'"),
    ],
)
def test_bad_rows_end_the_run(rows: list[dict[str, Any]], complaint: str) -> None:
    with pytest.raises(SystemExit, match=complaint):
        run.check("x", rows)


def test_an_unknown_topic_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["--only", "mixing,nope", "--out", str(tmp_path / "bench.json")])
    assert ended.value.code == 2
    assert "no benchmark nope" in capsys.readouterr().err
    assert not (tmp_path / "bench.json").exists()

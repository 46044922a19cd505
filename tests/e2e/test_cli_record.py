"""`edge-sdk record` and `edge-sdk replay`: what comes out of a recording is what went in, to the bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_sdk import cli
from edge_sdk.recording import Reader
from edge_sdk.runtime import recorder
from sensors import replay

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HEAD = '[device]\nid = "d1"\nfederation = "home"\nstream_speed = 20.0\n'
SENSORS = """
[sensors.acc]
driver = "synthetic"
drop = "block"
options = { rate_hz = 50.0, channels = 3, chunk = 7, duration_s = 10.0, jitter_s = 0.002 }
[sensors.video]
driver = "synthetic"
drop = "block"
options = { rate_hz = 10.0, kind = "image", channels = 3, height = 12, width = 16, chunk = 1, duration_s = 10.0 }
"""


def streams(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["streams"]
    return found


@pytest.fixture
def first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A recording of two sensors."""
    (tmp_path / "device.toml").write_text(HEAD + SENSORS, encoding="utf-8")
    assert cli.main(["record", str(tmp_path / "device.toml"), "-o", str(tmp_path / "first")]) == 0
    capsys.readouterr()
    return tmp_path / "first"


def test_recorded_again_from_its_replay_not_a_bit_differs(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["replay", str(first)]) == 0
    lines = capsys.readouterr().out
    pasted = lines[lines.index("[sensors.") :].replace('driver = "replay"', 'driver = "replay"\ndrop = "block"')
    assert sorted(tomllib.loads(pasted)["sensors"]) == ["acc", "video"]
    (tmp_path / "again.toml").write_text(HEAD + pasted, encoding="utf-8")
    assert cli.main(["record", str(tmp_path / "again.toml"), "-o", str(tmp_path / "second"), "--json"]) == 0
    second = streams(capsys)
    assert cli.main(["replay", str(first), "--json"]) == 0
    assert second == streams(capsys)  # digests, samples, shapes, rates, gaps
    for stream in ("acc", "video"):
        pairs = zip(Reader(first).chunks(stream), Reader(tmp_path / "second").chunks(stream), strict=True)
        assert all(a.data.tobytes() == b.data.tobytes() and a.data.dtype == b.data.dtype for a, b in pairs)
    assert second["acc"]["samples"] == 500
    assert second["video"]["shape"] == [3, 12, 16]


def test_verify_plays_it_through_the_driver(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", str(first), "--verify"]) == 0
    assert capsys.readouterr().out.count("replayed bit by bit the same") == 2


def test_verify_notices_a_single_bit(
    first: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shifted = replay._shifted

    def flipped(chunk: Any, shift_ns: int, *, gap: bool) -> Any:
        made = shifted(chunk, shift_ns, gap=gap)
        if made.stream == "acc" and made.seq == 3:
            data = made.data.copy()
            data.view("u4").reshape(-1)[5] ^= 1
            made = recorder.Chunk(**{f: getattr(made, f) for f in made.__slots__} | {"data": data})
        return made

    monkeypatch.setattr(replay, "_shifted", flipped)
    assert cli.main(["replay", str(first), "--verify", "--json"]) == 2
    found = streams(capsys)
    assert (found["acc"]["identical"], found["video"]["identical"]) == (False, True)

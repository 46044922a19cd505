"""`edge-sdk monitor`: for scripts, for people at a terminal, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import numpy as np
import pytest

from edge_sdk import cli
from edge_sdk.core.clock import NS
from edge_sdk.core.records import Chunk
from edge_sdk.recording import Writer

HEAD = '[device]\nid = "d1"\nfederation = "home"\n'
SYNTHETIC = """
[sensors.acc]
driver = "synthetic"
options = { rate_hz = 50.0, channels = 3, chunk = 5 }
[sensors.video]
driver = "synthetic"
drop = "latest"
options = { rate_hz = 20.0, kind = "image", channels = 3, height = 48, width = 64, chunk = 1 }
"""
BROKEN = '[sensors.bad]\ndriver = "synthetic"\noptions = { fail_opens = 1000 }\n'
PATIENCE_S = 60.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "device.toml"
    path.write_text(HEAD + SYNTHETIC, encoding="utf-8")
    return path


def test_once_as_json_for_scripts(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["monitor", str(file), "--once", "--json"]) == 0
    acc, video = json.loads(capsys.readouterr().out)
    assert (acc["modality"], acc["state"], acc["shape"], acc["error"]) == ("acc", "streaming", [3], "")
    assert acc["rate_hz"] == pytest.approx(50, rel=0.1)
    assert acc["samples"] >= 40
    assert 0 <= acc["age_s"] < 1.0
    assert sorted(acc["values"]) == ["0", "1", "2"]
    assert (video["shape"], video["values"]) == ([3, 48, 64], {})


def test_once_waits_no_longer_than_it_was_told_and_says_what_does_not_deliver(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text() + BROKEN)
    assert cli.main(["monitor", str(file), "--once", "--seconds", "1.5"]) == 2
    said = capsys.readouterr().out
    assert re.search(r"^bad +synthetic +(failed|opening) +0\.0 +- +0 ", said, flags=re.MULTILINE)
    assert "bad: SensorUnavailable: sensors.bad: fails to open" in said
    assert re.search(r"acc\.0 +[▁-█ ]{60}  -?[\d.]+ … [\d.]+", said)


def test_a_line_per_interval(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["monitor", str(file), "--json", "--seconds", "0.9", "--interval", "0.3"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    counts = [answer[0]["samples"] for answer in answers]
    assert 3 <= len(counts) <= 5
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_a_replay_is_seen_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Writer(tmp_path / "rec", start_ns=0) as writer:
        for second in range(40):
            data = np.full((100, 2), second, np.float32)
            writer.append(Chunk("acc", second, second * NS, data, period_ns=NS // 100, gap_before=second == 20))
    file = tmp_path / "device.toml"
    replay = f'[sensors.acc]\ndriver = "replay"\noptions = {{ path = "{tmp_path / "rec"}" }}\n'
    file.write_text(f"{HEAD}stream_speed = 40.0\n{replay}", encoding="utf-8")
    assert cli.main(["monitor", str(file), "--json"]) == 0
    (last,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["state"], last["samples"], last["gaps"], last["dropped"]) == ("ended", 4000, 1, {})
    assert last["rate_hz"] == pytest.approx(100, rel=0.01)
    assert last["values"] == {"0": 39.0, "1": 39.0}


def test_nothing_to_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "device.toml"
    file.write_text(HEAD, encoding="utf-8")
    assert cli.main(["monitor", str(file), "--once"]) == 2
    assert "no section [sensors.<modality>]" in capsys.readouterr().err


def test_a_terminal_shows_waves_and_a_picture_and_ctrl_c_leaves_it_clean(file: Path) -> None:
    pytest.importorskip("rich", reason="the live screen needs rich (extra `view`)")
    file.write_text(file.read_text() + BROKEN)
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 45, 130, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_sdk.cli", "monitor", str(file)], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        shown = until(ours, "▀")
        process.send_signal(signal.SIGINT)
        after = until(ours, "\x1b[?1049l")  # the screen as it was
        after += rest(ours)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "\x1b[?1049h" in shown
    assert "\x1b[?25h" in after  # the cursor is back
    whole = shown + after
    for part in ("d1 of home", "streaming", "acc 0", "38;2;", "waveforms: the last 6 s"):
        assert part in whole
    assert "bad: SensorUnavailable" in whole
    assert re.search(r"acc +synthetic +streaming", after)  # and what it was at the end
    assert "Traceback" not in whole


def until(terminal: int, text: str) -> str:
    """Returns what is shown up to and including some text."""
    shown = ""
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], PATIENCE_S)
        assert ready, f"{PATIENCE_S:g} s without {text!r}: {shown[-2000:]}"
        shown += os.read(terminal, 1 << 16).decode("utf-8", "replace")
    return shown


def rest(terminal: int) -> str:
    """Returns what is shown until the program has left the terminal."""
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # nobody has the other end open
            return shown.decode("utf-8", "replace")
        shown += piece

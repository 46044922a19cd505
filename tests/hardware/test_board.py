"""The suite on a board's file: what it names is tried, what it does not name or nobody is there to do is skipped."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from edge_sdk.core.config import parse
from tests.helpers.benches import ROOT, Board, CannotDo, HardwareSection
from tests.helpers.virtual_imu import Emulator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BOARD = """
[device]
id = "bench"
federation = "bench"
[sensors.wrist]
driver = "imu_serial"
options = {{ port = "{port}", rate_hz = 100.0, baud = 115200 }}
[hardware]
seconds = 1.0
settle_s = 0.2
soak_s = 1.5
soak_pieces = 3
report = "{report}"
[hardware.sensors.wrist]
jitter_share = 2.0
loss = 0.5
rate_share = {share}
"""


def suite(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "tests/hardware/test_bench.py", "--board", str(file), "-p", "no:xdist"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.skipif(find_spec("serial") is None, reason="pyserial is not installed: pip install 'edge-sdk[serial]'")
def test_what_a_board_does_not_name_is_skipped_with_the_reason(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, which draws the report (extra `view`)")
    file, report = tmp_path / "board.toml", tmp_path / "deep" / "report.html"
    with Emulator("witmotion", rate=100.0) as imu:
        file.write_text(BOARD.format(port=imu.port, report=report, share=0.5), encoding="utf-8")
        done = suite(file)
    assert done.returncode == 0, done.stdout
    for said in (
        f"no camera on this bench: {file} names none",
        f"no microphone on this bench: {file} names none",
        f"nobody is there to do it: run pytest with -s, or set hardware.knock in {file}",
        f"nobody is there to do it: run pytest with -s, or set hardware.sensors.wrist.unplug in {file}",
    ):
        assert said in done.stdout
    assert re.search(r"5 passed, 14 skipped", done.stdout), done.stdout
    text = report.read_text(encoding="utf-8")
    assert "<td>wrist</td><td>imu_serial</td>" in text
    assert "wrist, clock offset: skipped: nobody is there to do it" in text


@pytest.mark.skipif(find_spec("serial") is None, reason="pyserial is not installed: pip install 'edge-sdk[serial]'")
def test_what_misses_its_limit_or_does_not_come_up_fails_alone_and_the_report_says_why(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, which draws the report (extra `view`)")
    file, report = tmp_path / "board.toml", tmp_path / "report.html"
    more = (
        '[sensors.ankle]\ndriver = "imu_serial"\noptions = { port = "/nowhere/tty", rate_hz = 100.0 }\n'
        f'[sensors.notes]\ndriver = "text"\noptions = {{ path = "{tmp_path / "notes"}" }}\n'
    )
    (tmp_path / "notes").touch()
    with Emulator("witmotion", rate=100.0) as imu:
        text = BOARD.format(port=imu.port, report=report, share=0.05) + "rate_hz = 150.0\n"
        file.write_text(text.replace("settle_s", "starts_s = 2.0\nsettle_s") + more, encoding="utf-8")
        done = suite(file)
    assert done.returncode == 1, done.stdout
    assert "6 errors" in done.stdout, done.stdout
    said = report.read_text(encoding="utf-8")
    assert "ankle delivers nothing: SensorUnavailable: /nowhere/tty: no such port" in said
    assert "notes is not here: nobody says its rate" in said
    assert re.search(r"wrist, rate: FAILED: \d+\.\d+ Hz, expected 150 ± 5%", said)
    assert "wrist, loss" not in said


def bench_of(folder: Path, limits: str, asked: list[str] | None) -> Board:
    file = folder / "board.toml"
    file.write_text(
        '[device]\nid = "b"\nfederation = "b"\n[sensors.imu]\ndriver = "synthetic"\noptions = { rate_hz = 50.0 }\n'
        + limits,
        encoding="utf-8",
    )
    return Board(file, None if asked is None else asked.append)


def test_a_hand_is_asked_and_a_relay_is_not(tmp_path: Path) -> None:
    asked: list[str] = []
    relay = f'[hardware.sensors.imu]\nunplug = "touch {tmp_path / "off"}"\n'
    bench = bench_of(tmp_path, relay, asked)
    bench.unplug("imu")
    assert (tmp_path / "off").exists()
    assert asked == []
    bench.plug("imu")
    bench.knock()
    assert [sentence.split(",")[0] for sentence in asked] == ["Plug imu in again", "Knock once on the table"]


def test_where_nobody_is_it_says_which_key_would_do(tmp_path: Path) -> None:
    with pytest.raises(CannotDo, match=r"hardware\.sensors\.imu\.unplug in .*board\.toml"):
        bench_of(tmp_path, "", None).unplug("imu")


def test_a_relay_that_fails_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        bench_of(tmp_path, '[hardware.sensors.imu]\nplug = "false"\n', []).plug("imu")


@pytest.mark.parametrize("text", ["[sensors.wrist]", "[hardware]\nsecond = 1.0"])
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed, which draws the report (extra `view`)")
    file = tmp_path / "board.toml"
    file.write_text(f'[device]\nid = "b"\nfederation = "b"\n{text}\n', encoding="utf-8")
    done = suite(file)
    assert done.returncode != 0
    assert f"{file}:" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_documented_section_holds_every_limit_with_its_default() -> None:
    text = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
    plain = tomllib.loads(re.findall(r"```toml\n(\[hardware\].*?)```", text, flags=re.DOTALL)[0])["hardware"]
    read = parse(plain, HardwareSection, "docs/hardware.md")
    limits = read.sensors["imu"].model_copy(update={"unplug": "", "plug": ""})
    assert read.model_copy(update={"sensors": {}}) == HardwareSection()
    assert limits == type(limits)()
    assert set(plain) == set(HardwareSection.model_fields)
    assert set(plain["sensors"]["imu"]) == set(type(limits).model_fields)

"""Every general check, on recorded boards that are broken one thing at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edge_sdk import cli
from edge_sdk.core import boards
from edge_sdk.core.boards import Finding
from edge_sdk.core.errors import BoardError
from edge_sdk.core.machine import RECORD, Probe, recorded
from edge_sdk.core.sysfs import Tree
from edge_sdk.runtime import board_record, doctor
from tests.helpers.boards import BOARDS, NAMES, change, copy

SITE = "opt/edge-sdk/venv/lib/python3.10/site-packages"
LINES, COLUMNS = 32, 100  # of one screen


def found(root: Path, name: str) -> Finding:
    """Returns what a check found on a recorded board."""
    machine = recorded(root)
    by_name = {finding.name: finding for finding in doctor.examine(machine, boards.find(machine.tree))}
    return by_name[name]


def record(root: Path, **keys: object) -> Path:
    """Changes what is recorded of a running machine."""
    plain = json.loads((root / RECORD).read_text())
    return change(root, {RECORD: json.dumps({**plain, **keys})})


def package(name: str, version: str, *imports: str, site: str = SITE) -> dict[str, str | None]:
    info = f"{site}/{name.replace('-', '_')}-{version}.dist-info"
    return {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/top_level.txt": "\n".join(imports),
    }


@pytest.fixture
def board(tmp_path: Path) -> Path:
    return copy("orin_nano_super", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_fails_on_a_recorded_board(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--root", str(BOARDS / name)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Jetson ")
    assert len(lines) <= LINES
    assert not [line for line in lines if line.startswith("FAIL")]


@pytest.mark.parametrize("name", ["orin_nano_super", "orin_nx", "agx_orin", "agx_orin_jp7", "thor"])
def test_a_board_that_is_set_up_well_has_not_even_a_warning(name: str) -> None:
    machine = recorded(BOARDS / name)
    assert {f.state for f in doctor.examine(machine, boards.find(machine.tree))} == {"ok"}


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_is_wrong_has_a_fix(name: str) -> None:
    machine = recorded(BOARDS / name)
    for finding in doctor.examine(machine, boards.find(machine.tree)):
        assert bool(finding.fix) == (finding.state != "ok"), finding


def test_json_holds_board_readings_and_findings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json", "--root", str(BOARDS / "thor")]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["board"]["capability"] == "11.0"
    assert plain["readings"]["power_mode"] == "120W"
    assert {"name", "state", "found", "fix"} == set(plain["findings"][0])


def test_what_fails_stands_first_and_ends_with_2(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(board, disk_free_mb=50.0, groups=["audio"])
    assert cli.main(["doctor", "--root", str(board)]) == 2
    states = [line[:4] for line in capsys.readouterr().out.splitlines()[2:] if not line.startswith("      >")]
    assert states == sorted(states, key=["FAIL", "warn", "ok  "].index)
    assert states[:2] == ["FAIL", "warn"]


def test_python(board: Path) -> None:
    assert found(board, "python").state == "ok"
    finding = found(record(board, python="3.8.10"), "python")
    assert (finding.state, "3.10" in finding.fix) == ("fail", True)


def test_venv(board: Path) -> None:
    finding = found(record(board, venv=""), "venv")
    assert finding.state == "warn"
    assert "--system-site-packages" in finding.fix


def test_shadowed_packages(board: Path) -> None:
    change(board, {**package("PySensors", "0.3", "sensors"), **package("jetson-inference", "2.0", "jetson", "x")})
    finding = found(board, "packages")
    assert finding.state == "fail"
    assert "pysensors installs sensors too" in finding.found
    assert finding.fix == "/opt/edge-sdk/venv/bin/pip uninstall -y jetson-inference pysensors"


def test_a_package_is_seen_by_the_files_it_lists(board: Path) -> None:
    info = f"{SITE}/other-1.0.dist-info"
    record = {f"{info}/METADATA": "Name: other\nVersion: 1.0\n", f"{info}/RECORD": "export/__init__.py,,\nx.pth,,\n"}
    change(board, {**record, f"{SITE}/export/__init__.py": "", f"{SITE}/x.pth": ""})
    assert found(board, "packages").found == "other installs export too"


def test_ours_is_missing(board: Path) -> None:
    for path in (board / SITE).glob("edge_sdk-*/*"):
        path.unlink()
    assert found(board, "packages").found == "edge-sdk is not installed"


def plain(root: Path) -> Path:
    """Makes a machine that no plug-in knows of a board."""
    for path in ("etc/nv_tegra_release", "proc/device-tree/compatible", "var/lib/dpkg/status"):
        (root / path).unlink()
    return root


def test_both_onnxruntimes(board: Path) -> None:
    finding = found(change(plain(board), package("onnxruntime", "1.23.2", "onnxruntime")), "onnxruntime")
    assert finding.state == "fail"
    assert finding.fix.endswith("pip install onnxruntime-gpu==1.23.0")


def test_no_onnxruntime_and_no_torch(board: Path) -> None:
    for name in ("onnxruntime_gpu", "torch"):
        for path in (board / SITE).glob(f"{name}-*/*"):
            path.unlink()
    on_board = found(board, "torch").fix
    assert "torch==2.8.0" in on_board
    assert found(plain(board), "onnxruntime").fix == "/opt/edge-sdk/venv/bin/pip install onnxruntime"
    assert found(board, "torch").state == "warn"


def test_clock(board: Path) -> None:
    finding = found(change(board, {"run/systemd/timesync/synchronized": None}), "clock")
    assert (finding.state, finding.fix) == ("warn", "sudo timedatectl set-ntp true")
    assert found(change(board, {"run/chrony/chronyd.pid": "1"}), "clock").state == "ok"


@pytest.mark.parametrize(("free", "state"), [(50.0, "fail"), (900.0, "warn"), (9000.0, "ok"), (None, "warn")])
def test_disk(board: Path, free: float | None, state: str) -> None:
    assert found(record(board, disk_free_mb=free), "disk").state == state


def test_a_disk_that_may_not_be_written(tmp_path: Path) -> None:
    place = tmp_path / "state"
    place.mkdir()
    machine = doctor.this_machine(place)
    assert doctor.disk(machine).state in ("ok", "warn")
    finding = doctor.disk(replace(machine, writable=False))
    assert finding.state == "fail"
    assert "sudo chown" in finding.fix


def test_groups_of_ports(board: Path) -> None:
    finding = found(record(board, groups=["video"]), "ports")
    assert finding.state == "warn"
    assert finding.fix == "sudo usermod -aG dialout,i2c edge, then log in again"
    assert found(record(board, groups=[], user="root"), "ports").state == "ok"


def test_no_such_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--root", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"probe": {"surprise": 1}}'])
def test_a_broken_record_is_said(board: Path, text: str) -> None:
    with pytest.raises(BoardError, match=r"machine\.json"):
        recorded(change(board, {RECORD: text}))


def test_an_empty_tree_is_a_machine_that_says_nothing(tmp_path: Path) -> None:
    machine = recorded(tmp_path)
    board = boards.find(Tree(tmp_path))
    assert board.facts().name == "this machine"
    assert board.readings().temp_c is None
    assert doctor.examine(machine, board)


def test_what_is_recorded_is_seen_again(board: Path, tmp_path: Path) -> None:
    machine = recorded(board)
    assert board_record.write(machine, tmp_path / "again") > 50
    again = recorded(tmp_path / "again")
    assert again.probe == machine.probe
    assert {(p.name, p.version) for p in again.packages} == {(p.name, p.version) for p in machine.packages}
    one, two = boards.find(machine.tree), boards.find(again.tree)
    assert one.facts() == two.facts()
    assert one.readings() == two.readings()
    assert doctor.examine(machine, one) == doctor.examine(again, two)
    with pytest.raises(BoardError, match="not empty"):
        board_record.write(machine, tmp_path / "again")


def test_this_machine_is_recorded_without_what_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--quick", "--record", str(tmp_path / "here")]) == 0
    capsys.readouterr()
    names = {path.name for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert "machine.json" in names
    assert not names & {"serial-number", "machine-id", "hostname", "address"}
    assert cli.main(["doctor", "--root", str(tmp_path / "here"), "--json"]) in (0, 2)


def test_nothing_is_run_where_it_is_quick(tmp_path: Path) -> None:
    assert doctor.this_machine(tmp_path).probe == Probe()

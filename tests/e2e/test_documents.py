"""README and examples are true: every code block and every example runs."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import coordinator.cli
import edge_sdk.cli
from edge_sdk.core import registry
from edge_sdk.core.config import DeviceConfig, load_toml
from edge_sdk.core.spec import FederationSpec

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Commands of the README that take minutes, need a board or ask a person; each has a test of its own elsewhere.
NOT_HERE = ("make", "python3 -m venv", ".venv/bin/pip", "git clone", "cd ", "edge-coordinator demo")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_shows_code_and_configuration() -> None:
    assert blocks("python")
    assert blocks("toml")
    assert blocks("sh")


@pytest.mark.parametrize("code", blocks("python"))
def test_python_in_the_readme_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out


@pytest.mark.parametrize("text", blocks("toml"))
def test_configurations_in_the_readme_are_valid(text: str, tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text(text, encoding="utf-8")
    assert edge_sdk.cli.main(["check", str(path)]) == 0


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(NOT_HERE)]


@pytest.mark.parametrize("line", commands())
def test_commands_in_the_readme_are_spelled_right(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Their flags are accepted: the parser gets as far as --help."""
    program, *arguments = shlex.split(line)
    main = {"edge-sdk": edge_sdk.cli.main, "edge-coordinator": coordinator.cli.main}[program]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(flag.split("=")[0] in told for flag in arguments if flag.startswith("--"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    registry._group.cache_clear()  # an example may bring a plug-in along, as a new process would see it
    try:
        assert _exit_code(path) == 0
    finally:
        registry._group.cache_clear()


def test_a_method_of_ones_own_takes_less_than_60_lines() -> None:
    assert len((ROOT / "examples" / "own_method.py").read_text().splitlines()) < 60


def _exit_code(path: Path) -> int:
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("device*.toml")), ids=lambda path: path.name)
def test_example_configurations_are_valid(path: Path) -> None:
    if "csi://" in path.read_text(encoding="utf-8") and shutil.which("gst-launch-1.0") is None:
        pytest.skip("GStreamer is not installed: apt install gstreamer1.0-tools")
    if 'driver = "microphone"' in path.read_text(encoding="utf-8"):
        pytest.importorskip("sounddevice", reason="sounddevice or PortAudio is missing", exc_type=Exception)
    assert edge_sdk.cli.main(["check", str(path)]) == 0


@pytest.mark.parametrize("name", ["device_camera.toml", "device_jetson.toml"])
def test_examples_of_the_scenes_federation_fit_it(name: str) -> None:
    spec = load_toml(ROOT / "examples" / "federation_scenes.toml", FederationSpec)
    device = load_toml(ROOT / "examples" / name, DeviceConfig)
    assert device.device.federation == spec.name
    assert set(device.sensors) <= set(spec.modality_names)
    named = {c for section in device.labels.values() for c in section.options.get("classes", {}).values()}
    assert named <= set(spec.classes)

"""Every dependency resolves to wheels for aarch64, on the Python of each JetPack. Needs the network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "jetson/deploy"
DEVICE = ("train", "serial", "i2c", "audio", "camera", "mic", "text", "view")
OFFLINE = (
    "error sending request",
    "dns error",
    "Could not connect",
    "Failed to fetch",
    "NewConnectionError",
    "timed out",
)


def lines(name: str) -> list[str]:
    return [line for line in (DEPLOY / name).read_text().splitlines() if line and not line.startswith(("#", "--"))]


def uv(python: str, platform: str, *extras: str) -> list[str]:
    """Returns the command that resolves extras, and requirements from stdin, to wheels alone."""
    program = shutil.which("uv", path=sysconfig.get_path("scripts")) or shutil.which("uv")
    if program is None:
        pytest.skip("uv is not installed; pip install uv")
    return [
        program, "pip", "compile", "-q", "--no-header", "--no-annotate", "--only-binary", ":all:",
        "--python-platform", platform, "--python-version", python, "pyproject.toml", "-",
        *(part for extra in extras for part in ("--extra", extra)),
    ]  # fmt: skip


def pip(*requirements: str) -> list[str]:
    """Returns the command that resolves requirements for Python 3.10 and the C library of Ubuntu 18.04."""
    tags = ("manylinux_2_27", "manylinux_2_17", "manylinux2014")
    return [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--target", "unused", "--quiet",
        "--only-binary", ":all:", *(part for tag in tags for part in ("--platform", f"{tag}_aarch64")),
        "--python-version", "3.10", "--report", "-", "--retries", "1", "--timeout", "15", *requirements,
    ]  # fmt: skip


Answers = Callable[[str], str]


@pytest.fixture(scope="module")
def answers() -> Iterator[Answers]:
    """Resolves everything at once: most of the time goes to waiting for the index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bare = [line.split(";")[0].strip() for line in project["dependencies"]]
    asked = {
        "jp4": (pip(*bare, *lines("requirements-jp4.txt")), []),
        "jp5": (uv("3.10", "aarch64-manylinux_2_31", *DEVICE, "ort", "coordinator", "broker"), []),
        "jp6": (uv("3.10", "aarch64-manylinux_2_35", "train"), [*lines("requirements-jp6.txt"), "torch==2.8.0"]),
        "jp7": (uv("3.12", "aarch64-manylinux_2_39", *DEVICE, "ort-gpu", "coordinator"), lines("requirements-jp7.txt")),
    }
    pipe = subprocess.PIPE
    running = {}
    for name, (command, stdin) in asked.items():
        running[name] = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
        channel = running[name].stdin
        assert channel is not None
        channel.write("\n".join(stdin))
        channel.close()
        running[name].stdin = None

    def answer(name: str) -> str:
        try:
            out, error = running[name].communicate(timeout=100)
        except subprocess.TimeoutExpired:
            pytest.skip("the package index did not answer in time")
        if running[name].returncode and any(sign in error for sign in OFFLINE):
            pytest.skip("no package index can be reached from here")
        assert running[name].returncode == 0, error
        return out

    yield answer
    for process in running.values():
        process.kill()
        process.communicate()


def chosen_by(out: str) -> dict[str, str]:
    """Returns name → version."""
    return dict(line.split(";")[0].strip().split("==") for line in out.splitlines() if "==" in line)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+", maxsplit=1)[0].split(".")[:2])


@pytest.mark.slow
def test_python_3_10_has_wheels_for_all_extras_of_a_device(answers: Answers) -> None:
    chosen = chosen_by(answers("jp5"))
    assert {"torch", "onnxruntime", "numpy", "librosa", "transformers", "opencv-python-headless"} <= set(chosen)
    assert numbers(chosen["numpy"]) <= (2, 2)  # the last ones for this Python


@pytest.mark.slow
def test_python_3_12_has_wheels_for_all_extras_of_a_device_gpu_builds_among_them(answers: Answers) -> None:
    chosen = chosen_by(answers("jp7"))
    assert numbers(chosen["onnxruntime-gpu"]) >= (1, 31)
    assert numbers(chosen["torch"]) >= (2, 14)
    assert "nvidia-cuda-runtime" in chosen


@pytest.mark.slow
def test_jetpack_6_lives_with_numpy_1(answers: Answers) -> None:
    """Of NVIDIA's own builds PyPI has others of the same version: the rest is what this resolves."""
    chosen = chosen_by(answers("jp6"))
    assert numbers(chosen["numpy"])[0] == 1
    assert not [name for name in chosen if name.startswith("nvidia-")]


@pytest.mark.slow
def test_jetpack_4_has_wheels_for_its_old_c_library(answers: Answers) -> None:
    """PyTorch's wheels need 2.28, hence a board that predicts and does not train."""
    names = [item["metadata"]["name"] for item in json.loads(answers("jp4"))["install"]]
    assert {"onnxruntime", "numpy", "pyserial", "smbus2"} <= set(names)

"""Every dependency resolves to wheels for aarch64, on the Python of each JetPack. Needs the network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
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


def resolved(command: list[str], stdin: str = "") -> str:
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=100, check=False, cwd=ROOT)
    except subprocess.TimeoutExpired:
        pytest.skip("the package index did not answer in time")
    if done.returncode and any(sign in done.stderr for sign in OFFLINE):
        pytest.skip("no package index can be reached from here")
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_uv(python: str, platform: str, *extras: str, requirements: tuple[str, ...] = ()) -> dict[str, str]:
    """Returns name → version of what uv chose."""
    uv = shutil.which("uv", path=sysconfig.get_path("scripts")) or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed; pip install uv")
    command = [
        uv, "pip", "compile", "-q", "--no-header", "--no-annotate", "--only-binary", ":all:",
        "--python-platform", platform, "--python-version", python, "pyproject.toml", "-",
        *(part for extra in extras for part in ("--extra", extra)),
    ]  # fmt: skip
    chosen = [line for line in resolved(command, "\n".join(requirements)).splitlines() if "==" in line]
    return dict(line.split(";")[0].strip().split("==") for line in chosen)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+", maxsplit=1)[0].split(".")[:2])


@pytest.mark.slow
def test_python_3_10_has_wheels_for_all_extras_of_a_device() -> None:
    chosen = by_uv("3.10", "aarch64-manylinux_2_31", *DEVICE, "ort", "coordinator", "broker")
    assert {"torch", "onnxruntime", "numpy", "librosa", "transformers", "opencv-python-headless"} <= set(chosen)
    assert numbers(chosen["numpy"]) <= (2, 2)  # the last ones for this Python


@pytest.mark.slow
def test_python_3_12_has_wheels_for_all_extras_of_a_device_gpu_builds_among_them() -> None:
    requirements = tuple(lines("requirements-jp7.txt"))
    chosen = by_uv("3.12", "aarch64-manylinux_2_39", *DEVICE, "ort-gpu", "coordinator", requirements=requirements)
    assert numbers(chosen["onnxruntime-gpu"]) >= (1, 31)
    assert numbers(chosen["torch"]) >= (2, 14)
    assert "nvidia-cuda-runtime" in chosen


@pytest.mark.slow
def test_jetpack_6_lives_with_numpy_1() -> None:
    """Of NVIDIA's own builds PyPI has others of the same version: the rest is what this resolves."""
    requirements = (*lines("requirements-jp6.txt"), "torch==2.8.0")
    chosen = by_uv("3.10", "aarch64-manylinux_2_35", "train", requirements=requirements)
    assert numbers(chosen["numpy"])[0] == 1
    assert not [name for name in chosen if name.startswith("nvidia-")]


def test_jetpack_4_has_wheels_for_its_old_c_library() -> None:
    """PyTorch's wheels need 2.28, hence a board that predicts and does not train."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [line.split(";")[0].strip() for line in project["dependencies"]]
    platforms = [
        part
        for tag in ("manylinux_2_27", "manylinux_2_17", "manylinux2014")
        for part in ("--platform", f"{tag}_aarch64")
    ]
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--target", "unused", "--quiet",
        "--only-binary", ":all:", *platforms, "--python-version", "3.10", "--report", "-", "--retries", "1",
        "--timeout", "15", *wanted, *lines("requirements-jp4.txt"),
    ]  # fmt: skip
    assert '"onnxruntime"' in resolved(command)

"""`install.sh`: dry runs against recorded boards, and whole runs in which nothing but notes is made."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from jetson import wheels
from tests.helpers.boards import BOARDS, NAMES, change, copy
from tests.helpers.stubs import Stubs

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "jetson/deploy/install.sh"
PYTHON = {"nano": "3.10", "tx2": "3.10", "xavier_nx": "3.10", "agx_orin_jp7": "3.12", "thor": "3.12"}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="install.sh is a bash script")


def install(root: Path, *options: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FAKE_ROOT": str(root)}
    if path is not None:
        environment["PATH"] = f"{path}:/usr/bin:/bin"
    command = ["bash", str(SCRIPT), "--root", str(root), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def state(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        digest.update(f"{path} {path.is_file() and path.read_bytes()!r}".encode())
    return digest.hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_names_every_command_and_changes_nothing(name: str) -> None:
    root = BOARDS / name
    before = state(root)
    done = install(root, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert state(root) == before
    commands = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    text = "\n".join(commands)
    python = PYTHON.get(name, "3.10")
    uv = name in ("nano", "tx2", "xavier_nx")
    assert (f"uv venv --seed --python {python}" if uv else f"python{python} -m venv --system-site-packages") in text
    assert f"{root}/opt/edge-sdk/venv" in text
    assert "systemctl enable edge-sdk.service" in text
    assert "useradd --system" in text
    assert ("[train" in text.replace("\\", "")) == (name not in ("nano", "tx2"))


@pytest.mark.parametrize(
    ("name", "index"),
    [("xavier_nx", "download.pytorch.org/whl/cpu"), ("orin_nx", "pypi.jetson-ai-lab.io/jp6/cu126"), ("thor", "")],
)
def test_what_comes_from_another_index_comes_alone(name: str, index: str) -> None:
    pips = [line for line in install(BOARDS / name, "--dry-run").stdout.splitlines() if " -m pip install " in line]
    assert len(pips) == (2 if index else 1)
    assert "--index-url" not in pips[-1]
    if index:
        assert f"--no-deps --index-url https://{index} torch==2.8.0" in pips[0]


def test_the_doctor_and_the_installer_name_the_same_wheels() -> None:
    text = install(BOARDS / "orin_nx", "--dry-run").stdout
    for name in ("torch", "onnxruntime-gpu"):
        wheel = wheels.of("6")[name]
        assert wheel.line in text
        assert wheel.index in text


def test_without_a_network_nothing_is_asked_of_one(tmp_path: Path) -> None:
    done = install(BOARDS / "orin_nx", "--dry-run", "--wheels", str(tmp_path))
    pips = [line for line in done.stdout.splitlines() if " -m pip " in line]
    assert len(pips) == 2
    assert all(f"--no-index --find-links {tmp_path}" in line and "--index-url" not in line for line in pips)
    assert "edge-sdk\\[train\\]" in pips[1]
    assert "apt-get" not in done.stdout.replace("warning", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--wheels", "/nowhere"), "--collect fills one"),
        (("--source", "/nowhere"), "neither a checkout nor a wheel"),
        (("--surprise",), "unknown argument --surprise"),
        (("--python",), "--python needs a value"),
    ],
)
def test_wrong_arguments_are_refused(options: tuple[str, ...], said: str) -> None:
    done = install(BOARDS / "orin_nx", "--dry-run", *options)
    assert done.returncode == 2
    assert said in done.stderr


def test_what_is_no_jetson_is_refused(tmp_path: Path) -> None:
    done = install(tmp_path, "--dry-run")
    assert (done.returncode, "this is not a Jetson" in done.stderr) == (2, True)


def test_in_a_container_the_package_tells_the_release(tmp_path: Path) -> None:
    root = change(copy("orin_nx", tmp_path), {"etc/nv_tegra_release": None})
    assert "L4T 36.4.4, JetPack 6" in install(root, "--dry-run").stdout


def test_a_release_that_is_not_known(tmp_path: Path) -> None:
    root = copy("thor", tmp_path)
    change(root, {"etc/nv_tegra_release": "# R41 (release), REVISION: 1.0, GCID: 1\n"})
    done = install(root, "--dry-run")
    assert done.returncode == 0
    assert "warning: L4T 41.1.0 is newer" in done.stdout
    change(root, {"etc/nv_tegra_release": "# R28 (release), REVISION: 1.0, GCID: 1\n"})
    assert install(root, "--dry-run").returncode == 2


@pytest.fixture
def stubs(tmp_path: Path) -> Stubs:
    found = Stubs(tmp_path / "bin")
    for name in ("apt-get", "systemctl", "sudo"):
        found.add(name, 'exec "$@"\n' if name == "sudo" else "")
    found.add("env", 'while [[ $1 == *=* ]]; do shift; done; exec "$@"\n')
    found.add("groupadd", 'echo "${@: -1}:x:1:" >> "$FAKE_ROOT/etc/group"\n')
    found.add("useradd", 'echo "${@: -1}:x:1:1::/:/bin/false" >> "$FAKE_ROOT/etc/passwd"\n')
    frozen = 'printf "edge-sdk @ file:///x\\nnumpy==1.26.4\\ntorch==2.8.0\\n"'
    python = f'[ "$3" != freeze ] || {frozen}\necho "venv $*" >> "{found.log}"\n'
    make = f"""folder="${{@: -1}}"; mkdir -p "$folder/bin"
printf '#!/bin/bash\\n%s' '{python}' > "$folder/bin/python"; chmod +x "$folder/bin/python"
"""
    found.add("python3.10", make)
    found.add("uv", make)
    return found


def test_a_whole_run_and_another_that_finds_all_done(tmp_path: Path, stubs: Stubs) -> None:
    root = copy("orin_nx", tmp_path / "board")
    first = install(root, path=stubs.folder)
    assert first.returncode == 0, first.stderr
    calls = stubs.calls()
    assert [c.split()[0] for c in calls if not c.startswith(("sudo", "venv"))] == [
        "apt-get", "env", "apt-get", "python3.10", "groupadd", "groupadd", "groupadd", "groupadd", "useradd",
        "systemctl", "systemctl",
    ]  # fmt: skip
    assert [c.split()[3] for c in calls if c.startswith("venv -m pip")] == ["install", "install"]
    unit = (root / "etc/systemd/system/edge-sdk.service").read_text()
    assert "User=edge-sdk\n" in unit

    debs = "".join(
        f"\n\nPackage: {name}\nStatus: install ok installed\n" for name in ("python3.10-venv", "libportaudio2")
    )
    change(root, {"var/lib/dpkg/status": (root / "var/lib/dpkg/status").read_text() + debs})
    change(root, {"etc/edge-sdk/device.toml": "mine = true\n"})
    second = install(root, path=stubs.folder)
    assert second.returncode == 0, second.stderr
    calls = [c for c in stubs.calls() if not c.startswith(("sudo", "venv -c"))]
    assert [c for c in calls if not c.startswith("venv")] == ["systemctl restart edge-sdk.service"]
    assert (root / "etc/edge-sdk/device.toml").read_text() == "mine = true\n"
    assert {line.removeprefix("install.sh: ") for line in second.stdout.splitlines()} >= {
        "kept /opt/edge-sdk/venv", "kept user edge-sdk", "kept /etc/systemd/system/edge-sdk.service",
    }  # fmt: skip


def test_another_place_and_user_are_in_the_unit(tmp_path: Path, stubs: Stubs) -> None:
    root = copy("orin_nx", tmp_path / "board")
    assert install(root, "--prefix", "/srv/edge", "--user", "me", path=stubs.folder).returncode == 0
    unit = (root / "etc/systemd/system/edge-sdk.service").read_text()
    assert "ExecStart=/srv/edge/venv/bin/edge-sdk run /etc/edge-sdk/device.toml" in unit
    assert "User=me\n" in unit
    assert (root / "srv/edge/venv/bin/python").exists()


def test_no_service_touches_no_user_and_no_unit(tmp_path: Path, stubs: Stubs) -> None:
    root = copy("orin_nx", tmp_path / "board")
    assert install(root, "--no-service", path=stubs.folder).returncode == 0
    assert not [c for c in stubs.calls() if c.startswith(("useradd", "groupadd", "systemctl"))]
    assert not (root / "etc/systemd/system/edge-sdk.service").exists()


def test_wheels_are_collected_of_what_was_installed(tmp_path: Path, stubs: Stubs) -> None:
    root = copy("orin_nx", tmp_path / "board")
    done = install(root, "--collect", str(tmp_path / "wheels"), path=stubs.folder)
    assert done.returncode == 0, done.stderr
    pips = [c.removeprefix("venv -m pip ") for c in stubs.calls() if c.startswith("venv -m pip")]
    assert [c.split()[0] for c in pips] == ["install", "install", "wheel", "download", "freeze", "download"]
    assert not (root / "opt/edge-sdk/venv/bin").exists()
    assert not (tmp_path / "wheels/.venv").exists()
    assert pips[3].endswith("torch==2.8.0 onnxruntime-gpu==1.23.0")
    assert pips[5] == f"download --no-deps --dest {tmp_path / 'wheels'} numpy==1.26.4"


def test_an_old_board_needs_a_python_of_its_own(tmp_path: Path, stubs: Stubs) -> None:
    root = copy("xavier_nx", tmp_path / "board")
    assert install(root, "--no-service", path=stubs.folder).returncode == 0
    assert [c.split()[:2] for c in stubs.calls() if c.startswith("uv")] == [["uv", "venv"]]
    (stubs.folder / "uv").unlink()
    again = install(copy("xavier_nx", tmp_path / "again"), "--no-service", path=stubs.folder)
    assert again.returncode == 2
    assert "install uv, or name one with --python" in again.stderr

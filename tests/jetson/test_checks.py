"""Every check of a Jetson, on recorded boards that are broken one thing at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_sdk.core.boards import Finding
from edge_sdk.core.machine import RECORD, recorded
from jetson import stack, wheels
from jetson.plugin import Jetson
from tests.helpers.boards import BOARDS, change, copy

SITE = "opt/edge-sdk/venv/lib/python3.10/site-packages"
PIP = "/opt/edge-sdk/venv/bin/pip"
NVIDIA = f"{PIP} install --no-deps --index-url https://pypi.jetson-ai-lab.io/jp6/cu126"


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    return copy("orin_nano_super", tmp_path)


@pytest.fixture
def thor(tmp_path: Path) -> Path:
    return copy("thor", tmp_path)


def all_of(root: Path) -> dict[str, Finding]:
    machine = recorded(root)
    return {finding.name: finding for finding in Jetson(machine.tree).checks(machine)}


def probe(root: Path, **keys: object) -> Path:
    plain = json.loads((root / RECORD).read_text())
    plain["probe"] = {**plain["probe"], **keys}
    return change(root, {RECORD: json.dumps(plain)})


def package(name: str, version: str, site: str = SITE) -> dict[str, str | None]:
    info = f"{site}/{name.replace('-', '_')}-{version}.dist-info"
    return {f"{info}/METADATA": f"Name: {name}\nVersion: {version}\n"}


def without(root: Path, name: str) -> Path:
    for path in root.glob(f"opt/edge-sdk/venv/lib/*/site-packages/{name}-*/*"):
        path.unlink()
    return root


def test_unknown_release_is_a_warning(nano: Path) -> None:
    change(nano, {"etc/nv_tegra_release": "# R36 (release), REVISION: 9.0\n"})
    finding = all_of(nano)["board"]
    assert finding.state == "warn"
    assert "L4T 36.9.0 is not known" in finding.found


def test_torch_for_another_cuda(nano: Path) -> None:
    change(nano, {f"{SITE}/torch/version.py": "cuda: Optional[str] = '13.0'\n"})
    finding = all_of(nano)["torch cuda"]
    assert finding.state == "fail"
    assert finding.found == "2.8.0, built for CUDA 13.0; the board has 12.6"
    assert finding.fix == f"{PIP} uninstall -y torch && {NVIDIA} 'torch==2.8.0'"


def test_torch_for_cuda_12_on_thor(thor: Path) -> None:
    change(thor, {"opt/edge-sdk/venv/lib/python3.12/site-packages/torch/version.py": "cuda = '12.8'\n"})
    finding = all_of(thor)["torch cuda"]
    assert finding.state == "fail"
    assert finding.fix == f"{PIP} uninstall -y torch && {PIP} install 'torch>=2.14'"


def test_torch_for_the_cpu(nano: Path) -> None:
    change(nano, {f"{SITE}/torch/version.py": "cuda = None\n"})
    finding = all_of(nano)["torch cuda"]
    assert (finding.state, finding.fix) == ("warn", f"{NVIDIA} 'torch==2.8.0'")


def test_no_kernel_image_by_the_list_and_by_trying(nano: Path) -> None:
    probe(nano, torch_arch=["sm_80", "sm_90"], kernel="CUDA error: no kernel image is available for execution")
    finding = all_of(nano)["gpu kernel"]
    assert finding.state == "fail"
    assert finding.found == "no kernel image for compute capability 8.7; torch has sm_80, sm_90"
    probe(nano, torch_arch=["sm_87"])
    finding = all_of(nano)["gpu kernel"]
    assert finding.found == "CUDA error: no kernel image is available for execution"
    assert "uninstall -y torch" in finding.fix


def test_what_ran_counts_more_than_the_list(nano: Path) -> None:
    assert all_of(probe(nano, torch_arch=["sm_80"], kernel=""))["gpu kernel"].state == "ok"


def test_kernel_not_tried_and_no_gpu(nano: Path) -> None:
    assert all_of(probe(nano, kernel=None, capability=None))["gpu kernel"].state == "warn"
    finding = all_of(probe(nano, capability=""))["gpu kernel"]
    assert (finding.state, finding.found) == ("fail", "torch sees no GPU")
    assert "usermod -aG video,render edge" in finding.fix


def test_a_gpu_that_fails_otherwise(nano: Path) -> None:
    finding = all_of(probe(nano, kernel="CUDA error: unspecified launch failure"))["gpu kernel"]
    assert (finding.state, finding.fix) == ("fail", "sudo reboot")


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (("sm_87",), "8.7", True),
        (("sm_80", "sm_86"), "8.7", False),  # machine code for desktops does not run on Tegra
        (("sm_80", "compute_80"), "8.7", True),
        (("compute_90",), "8.7", False),
        (("sm_110",), "11.0", True),
        ((), "8.7", False),
    ],
)
def test_what_runs_on_what(archs: tuple[str, ...], capability: str, runs: bool) -> None:
    assert stack.runs_on(archs, capability) is runs


def test_numpy_2_under_torch_of_jetpack_6(nano: Path) -> None:
    without(nano, "numpy")
    change(nano, package("numpy", "2.2.6"))
    probe(nano, torch_numpy="Numpy is not available")
    finding = all_of(nano)["numpy"]
    assert (finding.state, finding.fix) == ("fail", f"{PIP} install 'numpy<2'")
    assert "2.2.6 does not work with this torch: Numpy is not available" in finding.found
    assert all_of(probe(nano, torch_numpy=None))["numpy"].state == "warn"
    assert "numpy" not in all_of(probe(nano, torch_numpy=""))


def test_provider_that_did_not_load(nano: Path) -> None:
    finding = all_of(probe(nano, providers=["CPUExecutionProvider"]))["providers"]
    assert finding.state == "fail"
    assert finding.fix == f"{PIP} uninstall -y onnxruntime-gpu && {NVIDIA} 'onnxruntime-gpu==1.23.0'"
    finding = all_of(probe(nano, providers=["CUDAExecutionProvider", "CPUExecutionProvider"]))["providers"]
    assert (finding.state, finding.fix) == ("warn", "sudo apt install tensorrt")
    assert all_of(probe(nano, providers=None))["providers"].found == "not tried"


def test_the_cpu_build_of_onnxruntime(nano: Path) -> None:
    without(nano, "onnxruntime_gpu")
    finding = all_of(change(nano, package("onnxruntime", "1.23.2")))["providers"]
    assert finding.state == "warn"
    assert finding.fix == f"{PIP} uninstall -y onnxruntime && {NVIDIA} 'onnxruntime-gpu==1.23.0'"


def test_both_builds_of_onnxruntime_and_none(nano: Path) -> None:
    change(nano, package("onnxruntime", "1.23.2"))
    finding = all_of(nano)["onnxruntime"]
    assert finding.state == "fail"
    assert finding.fix == f"{PIP} uninstall -y onnxruntime-gpu onnxruntime && {NVIDIA} 'onnxruntime-gpu==1.23.0'"
    finding = all_of(without(without(nano, "onnxruntime"), "onnxruntime_gpu"))["onnxruntime"]
    assert (finding.state, finding.fix) == ("warn", f"{NVIDIA} 'onnxruntime-gpu==1.23.0'")


def test_no_torch_is_mended_by_the_boards_own(nano: Path, tmp_path: Path) -> None:
    assert all_of(without(nano, "torch"))["torch"].fix == f"{NVIDIA} 'torch==2.8.0' && {PIP} install 'edge-sdk[train]'"
    old = all_of(BOARDS / "xavier_nx")["torch"]
    assert (old.state, "download.pytorch.org/whl/cpu" in old.fix) == ("warn", True)
    assert all_of(BOARDS / "nano")["torch"].state == "ok"


def test_the_wrong_python(nano: Path) -> None:
    plain = json.loads((nano / RECORD).read_text())
    finding = all_of(change(nano, {RECORD: json.dumps({**plain, "python": "3.12.3"})}))["board python"]
    assert finding.state == "warn"
    assert finding.fix.startswith("python3.10 -m venv")


def test_jetpack_without_its_libraries(nano: Path) -> None:
    text = "Package: nvidia-l4t-core\nStatus: install ok installed\nVersion: 36.4.3-1\n"
    finding = all_of(change(nano, {"var/lib/dpkg/status": text}))["libraries"]
    assert (finding.state, finding.fix) == ("warn", "sudo apt install nvidia-jetpack")
    assert finding.found == "TensorRT and cuDNN not installed"


def test_pip_opencv(nano: Path) -> None:
    change(nano, package("opencv-python-headless", "5.0.0"))
    finding = all_of(nano)["opencv"]
    assert "sudo apt install python3-opencv" in finding.fix
    change(nano, {"usr/lib/python3.10/dist-packages/cv2.cpython-310-aarch64-linux-gnu.so": ""})
    finding = all_of(nano)["opencv"]
    assert "hides the board's own" in finding.found
    assert finding.fix == f"{PIP} uninstall -y opencv-python-headless"


def test_argus(nano: Path) -> None:
    finding = all_of(change(nano, {"proc/812/comm": "something\n"}))["nvargus-daemon"]
    assert (finding.state, finding.fix) == ("warn", "sudo systemctl restart nvargus-daemon")
    assert "nvargus-daemon" not in all_of(change(nano, {"dev/video0": None}))


def test_serial_console(nano: Path) -> None:
    change(nano, {"etc/systemd/system/multi-user.target.wants/nvgetty.service": ""})
    assert all_of(nano)["serial console"].fix == "sudo systemctl disable --now nvgetty"


def test_swap(nano: Path) -> None:
    head = "Filename Type Size Used Priority\n"
    assert all_of(nano)["swap"].state == "ok"
    zram = all_of(change(nano, {"proc/swaps": f"{head}/dev/zram0 partition 650236 0 5\n"}))["swap"]
    assert (zram.state, "zram only" in zram.found) == ("warn", True)
    none = all_of(change(nano, {"proc/swaps": head}))["swap"]
    assert (none.state, "none" in none.found) == ("warn", True)
    assert "mkswap" in none.fix


def test_much_memory_needs_no_swap(thor: Path) -> None:
    assert all_of(change(thor, {"proc/swaps": "Filename Type Size\n"}))["swap"].state == "ok"


def test_fragments(nano: Path) -> None:
    finding = all_of(change(nano, {"proc/buddyinfo": "Node 0, zone Normal 900 80 4 0 0 0 0 0 0 0 0\n"}))["free memory"]
    assert (finding.state, finding.fix) == ("warn", "sudo reboot")


def test_heat(nano: Path) -> None:
    zone = "sys/class/thermal/thermal_zone6"
    finding = all_of(change(nano, {f"{zone}/temp": "97000\n"}))["temperature"]
    assert finding.state == "warn"
    assert "tj-thermal 97 °C" in finding.found


def test_a_mode_of_another_board(nano: Path) -> None:
    assert all_of(change(nano, {"var/lib/nvpmodel/status": "pmode:0009"}))["power mode"].state == "warn"


def test_there_is_no_gpu_build_for_an_old_board() -> None:
    assert not [name for name in all_of(BOARDS / "xavier_nx") if name in ("providers", "torch cuda", "gpu kernel")]


def test_the_requirement_files_are_read() -> None:
    assert wheels.of("6")["torch"].index.startswith("https://")
    assert wheels.of("7")["torch"].index == ""
    assert "torch" not in wheels.of("4")
    assert wheels.of("9") == {}
    assert all(wheels.of(generation) for generation in wheels.PYTHON)

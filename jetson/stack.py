"""Does the Python stack fit the board: wheels for its CUDA, kernels for its GPU, providers, NumPy, OpenCV."""

from __future__ import annotations

from edge_sdk.core.boards import Facts, Finding
from edge_sdk.core.machine import Machine
from jetson import wheels
from jetson.board import generation

_ORT = ("onnxruntime-gpu", "onnxruntime")
_GPU_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


def jetpack(facts: Facts) -> str:
    """Returns the generation of JetPack, "6"; "" where it is not known."""
    return generation(facts.system.removeprefix("L4T "))


def install(machine: Machine, facts: Facts, name: str) -> str:
    """Returns the command that installs the right build of a package; a sentence where there is none."""
    wheel = wheels.of(jetpack(facts)).get(name)
    if wheel is None:
        return f"there is no GPU build of {name} for {facts.release or 'this release'}; docs/jetson.md says what works"
    return wheel.command(machine.pip)


def python(machine: Machine, facts: Facts) -> Finding | None:
    """NVIDIA's wheels are for one Python."""
    wanted = wheels.PYTHON.get(jetpack(facts))
    if wanted is None or machine.python.startswith(f"{wanted}."):
        return None
    fix = f"python{wanted} -m venv --system-site-packages /opt/edge-sdk/venv, and install edge-sdk there"
    return Finding(
        "board python", "warn", f"Python {machine.python}; GPU wheels for {facts.release} are for {wanted}", fix
    )


def onnxruntime(machine: Machine, facts: Facts) -> Finding | None:
    """Which ONNX Runtime is right depends on the board: what is said of any machine would install the wrong one."""
    both = [p for name in _ORT if (p := machine.package(name))]
    fitting = next((name for name in _ORT if name in wheels.of(jetpack(facts))), "onnxruntime")
    if len(both) == 1:
        return None
    found = "onnxruntime and onnxruntime-gpu overwrite one another" if both else "not installed; nothing is predicted"
    remove = f"{machine.pip} uninstall -y {' '.join(p.name for p in both)} && " if both else ""
    fix = f"{remove}{install(machine, facts, fitting)}"
    return Finding("onnxruntime", "fail" if both else "warn", found, fix)


def no_torch(machine: Machine, facts: Facts) -> Finding | None:
    """PyPI's torch for aarch64 brings CUDA 13, and needs a newer C library than JetPack 4 has."""
    if machine.package("torch") is not None:
        return None
    if jetpack(facts) == "4":
        return Finding("torch", "ok", "not installed; PyTorch has no wheels for JetPack 4: this device predicts only")
    fix = f"{install(machine, facts, 'torch')} && {machine.pip} install 'edge-sdk[train]'"
    return Finding("torch", "warn", "not installed; this device predicts and does not train", fix)


def torch(machine: Machine, facts: Facts) -> Finding | None:
    """Is torch built for the CUDA that the board has?"""
    package = machine.package("torch")
    if package is None:
        return None
    has_wheel = "torch" in wheels.of(jetpack(facts)) and jetpack(facts) in ("6", "7")
    if not machine.torch_cuda:
        found = f"{package.version}, for the CPU only"
        return Finding("torch cuda", "warn", found, install(machine, facts, "torch")) if has_wheel else None
    found = f"{package.version}, built for CUDA {machine.torch_cuda}; the board has {facts.cuda or 'an unknown one'}"
    if not facts.cuda:
        return Finding("torch cuda", "warn", found, "sudo apt install nvidia-jetpack")
    if machine.torch_cuda.split(".")[0] != facts.cuda.split(".")[0]:
        return Finding("torch cuda", "fail", found, _reinstall(machine, facts, "torch"))
    return Finding("torch cuda", "ok", found)


def _reinstall(machine: Machine, facts: Facts, name: str) -> str:
    return f"{machine.pip} uninstall -y {name} && {install(machine, facts, name)}"


def kernel(machine: Machine, facts: Facts) -> Finding | None:
    """Has torch a kernel for this GPU? It imports without one, and dies on the first product."""
    probe = machine.probe
    if machine.package("torch") is None or not machine.torch_cuda:
        return None
    if probe.kernel == "":
        return Finding("gpu kernel", "ok", f"a matrix product on compute capability {probe.capability} is right")
    capability = probe.capability or facts.capability
    if probe.capability == "":
        fix = f"sudo usermod -aG video,render {machine.user}, then log in again; in Docker: --runtime nvidia"
        return Finding("gpu kernel", "fail", "torch sees no GPU", fix)
    if probe.torch_arch is not None and capability and not runs_on(probe.torch_arch, capability):
        found = f"no kernel image for compute capability {capability}; torch has {', '.join(probe.torch_arch)}"
        return Finding("gpu kernel", "fail", found, _reinstall(machine, facts, "torch"))
    if probe.kernel is not None:
        fix = _reinstall(machine, facts, "torch") if "kernel image" in probe.kernel else "sudo reboot"
        return Finding("gpu kernel", "fail", probe.kernel, fix)
    return Finding("gpu kernel", "warn", "not tried", "edge-sdk doctor, on the board and without --quick")


def runs_on(archs: tuple[str, ...], capability: str) -> bool:
    """Says whether code for these architectures runs: on Tegra machine code is exact, PTX is for what came after."""
    number = int(capability.replace(".", ""))
    ptx = [int(arch.removeprefix("compute_")) for arch in archs if arch.removeprefix("compute_").isdecimal()]
    return f"sm_{number}" in archs or any(least <= number for least in ptx)


def numpy(machine: Machine, facts: Facts) -> Finding | None:
    """Torch that was built on NumPy 1 loads beside NumPy 2, and fails at the first conversion."""
    package = machine.package("numpy")
    if package is None or machine.package("torch") is None or machine.probe.torch_numpy == "":
        return None
    if machine.probe.torch_numpy:
        found = f"{package.version} does not work with this torch: {machine.probe.torch_numpy}"
        return Finding("numpy", "fail", found, f"{machine.pip} install 'numpy<2'")
    if jetpack(facts) == "6" and int(package.version.split(".")[0]) >= 2:
        found = f"{package.version}, while NVIDIA's torch for JetPack 6 was built on NumPy 1"
        return Finding("numpy", "warn", found, f"{machine.pip} install 'numpy<2'")
    return None


def providers(machine: Machine, facts: Facts) -> Finding | None:
    """ONNX Runtime falls back to the CPU in silence where a provider does not load."""
    package = next((p for name in _ORT if (p := machine.package(name))), None)
    if package is None or jetpack(facts) in ("4", "5"):  # there the CPU is all there is
        return None
    if package.name == "onnxruntime":
        fix = f"{machine.pip} uninstall -y onnxruntime && {install(machine, facts, 'onnxruntime-gpu')}"
        return Finding("providers", "warn", f"onnxruntime {package.version} runs on the CPU only", fix)
    told = machine.probe.providers
    if told is None:
        return Finding("providers", "warn", "not tried", "edge-sdk doctor, on the board and without --quick")
    missing = [name for name in _GPU_PROVIDERS if name not in told]
    if "CUDAExecutionProvider" in missing:
        found = f"onnxruntime-gpu {package.version} loads only {', '.join(told) or 'nothing'}"
        return Finding("providers", "fail", found, _reinstall(machine, facts, "onnxruntime-gpu"))
    if missing:
        return Finding("providers", "warn", "TensorrtExecutionProvider is missing", "sudo apt install tensorrt")
    return Finding("providers", "ok", ", ".join(told))


def opencv(machine: Machine, facts: Facts) -> Finding | None:
    """Pip's OpenCV has no GStreamer, and hides the board's, which has: then no CSI camera opens."""
    pips = [p for p in machine.packages if p.name.startswith("opencv-") and "site-packages" in p.place]
    system = machine.tree.find("usr/lib/python3*/dist-packages/cv2*")
    if not pips or machine.probe.gstreamer:
        return None
    found = f"{pips[0].name} {pips[0].version} has no GStreamer"
    fix = f"{machine.pip} uninstall -y {' '.join(p.name for p in pips)}"
    if system:
        return Finding("opencv", "warn", f"{found} and hides the board's own; CSI cameras do not open through it", fix)
    return Finding(
        "opencv", "warn", f"{found}; CSI cameras do not open through it", f"sudo apt install python3-opencv && {fix}"
    )


__all__ = [
    "install",
    "jetpack",
    "kernel",
    "no_torch",
    "numpy",
    "onnxruntime",
    "opencv",
    "providers",
    "python",
    "runs_on",
    "torch",
]

"""Writes the recorded boards beside this file: `python tests/data/boards/make_boards.py`. See README.md."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ORIN_ZONES = {
    "cpu-thermal": 52562, "gpu-thermal": None, "cv0-thermal": -256000, "soc0-thermal": 49093, "soc1-thermal": 49656,
    "soc2-thermal": 48437, "tj-thermal": 52562,
}  # fmt: skip
GROUPS = ("audio", "dialout", "gpio", "i2c", "video")


@dataclass(frozen=True)
class Spec:
    """What a board's files say."""

    model: str
    compatible: tuple[str, ...]
    release: str  # first line of /etc/nv_tegra_release
    modes: tuple[tuple[int, str], ...]
    status: str
    default: int
    zones: dict[str, int | None]  # type → m°C; None: the zone gives an error, so it has no file
    rails: dict[str, tuple[int, int]]  # label → mV, mA
    memory_kb: tuple[int, int]  # total, available
    buddy: tuple[int, ...]
    cores: int
    mhz: int
    devices: tuple[str, ...]
    debs: dict[str, str]
    cuda: str
    python: str
    packages: dict[str, str]
    torch_cuda: str | None
    probe: dict[str, object]
    kernel: str
    iio: bool = False
    swap_file: bool = False


CPU_ONLY = {"edge-sdk": "0.1.0", "numpy": "2.2.6", "onnxruntime": "1.23.2"}
JP6 = {"edge-sdk": "0.1.0", "numpy": "1.26.4", "onnxruntime-gpu": "1.23.0", "torch": "2.8.0"}
JP7 = {"edge-sdk": "0.1.0", "numpy": "2.5.5", "onnxruntime-gpu": "1.31.1", "torch": "2.14.0+cu130"}
GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
NO_GPU: dict[str, object] = {"providers": ["CPUExecutionProvider"]}
JP4_DEBS = {
    "nvidia-l4t-core": "32.7.4-20230608211515",
    "libnvinfer8": "8.2.1-1+cuda10.2",
    "libcudnn8": "8.2.1.32-1+cuda10.2",
}
JP5_DEBS = {
    "nvidia-l4t-core": "35.4.1-20230801124926",
    "libnvinfer8": "8.5.2-1+cuda11.4",
    "libcudnn8": "8.6.0.166-1+cuda11.4",
}
JP6_DEBS = {
    "libnvinfer10": "10.3.0.30-1+cuda12.5",
    "libcudnn9-cuda-12": "9.3.0.75-1",
    "nvidia-l4t-core": "36.4.3-20250107174145",
}
JP7_DEBS = {
    "libnvinfer10": "10.13.2.6-1+cuda13.0",
    "libcudnn9-cuda-13": "9.12.0.46-1",
    "nvidia-l4t-core": "38.2.0-20250820135530",
}


def gpu(arch: str, capability: str) -> dict[str, object]:
    return {
        "torch_arch": [arch], "torch_numpy": "", "capability": capability, "kernel": "", "providers": GPU,
    }  # fmt: skip


def l4t(major: int, revision: str, board: str, date: str) -> str:
    return f"# R{major} (release), REVISION: {revision}, GCID: 38968081, BOARD: {board}, EABI: aarch64, DATE: {date}"


BOARDS = {
    "nano": Spec(
        model="NVIDIA Jetson Nano Developer Kit",
        compatible=("nvidia,p3449-0000-b00+p3448-0000-b00", "nvidia,jetson-nano", "nvidia,tegra210"),
        release=l4t(32, "7.4", "t210ref", "Thu Jun  8 21:19:14 UTC 2023"),
        modes=((0, "MAXN"), (1, "5W")), status="pmode:0000 fmode:quiet", default=0,
        zones={"AO-therm": 44500, "CPU-therm": 38500, "GPU-therm": 37000, "PLL-therm": 37500, "PMIC-Die": 100000},
        rails={"POM_5V_IN": (5000, 520), "POM_5V_GPU": (5000, 8), "POM_5V_CPU": (5000, 110)}, iio=True,
        memory_kb=(4059248, 2874004), buddy=(120, 80, 41, 20, 11, 6, 4, 3, 2, 1, 350), cores=4, mhz=1479,
        devices=("ttyTHS1", "i2c-1"), debs=JP4_DEBS, cuda="10.2.300", python="3.10.18", packages=CPU_ONLY,
        torch_cuda=None, probe=NO_GPU, kernel="4.9.337-tegra",
    ),
    "tx2": Spec(
        model="quill", compatible=("nvidia,p2597-0000+p3310-1000", "nvidia,quill", "nvidia,tegra186"),
        release=l4t(32, "7.4", "t186ref", "Thu Jun  8 21:19:14 UTC 2023"),
        modes=((0, "MAXN"), (1, "MAXQ"), (2, "MAXP_CORE_ALL"), (3, "MAXP_CORE_ARM"), (4, "MAXP_CORE_DENVER")),
        status="pmode:0003 fmode:quiet", default=3,
        zones={"BCPU-therm": 45000, "MCPU-therm": 45000, "GPU-therm": 43500, "PLL-therm": 45000, "PMIC-Die": 100000},
        rails={"VDD_IN": (19064, 190), "VDD_CPU": (19064, 40), "VDD_GPU": (19064, 12)}, iio=True,
        memory_kb=(8042108, 3122000), buddy=(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0), cores=6, mhz=2035,
        devices=("ttyTHS2", "i2c-1"), debs=JP4_DEBS, cuda="10.2.300", python="3.10.18", packages=CPU_ONLY,
        torch_cuda=None, probe=NO_GPU, kernel="4.9.337-tegra",
    ),
    "xavier_nx": Spec(
        model="NVIDIA Jetson Xavier NX Developer Kit",
        compatible=("nvidia,p3509-0000+p3668-0000", "nvidia,tegra194"),
        release=l4t(35, "4.1", "t186ref", "Tue Aug  1 19:57:35 UTC 2023"),
        modes=((0, "MODE_15W_2CORE"), (1, "MODE_15W_4CORE"), (2, "MODE_15W_6CORE"), (8, "MODE_20W_6CORE")),
        status="pmode:0008", default=8,
        zones={"CPU-therm": 41500, "GPU-therm": 40000, "AUX-therm": 40000, "AO-therm": 40500, "PMIC-Die": 50000},
        rails={"VDD_IN": (4952, 976), "VDD_CPU_GPU_CV": (4952, 120), "VDD_SOC": (4952, 208)},
        memory_kb=(7020000, 4900000), buddy=(0, 5, 3, 2, 2, 1, 1, 1, 1, 0, 812), cores=6, mhz=1420,
        devices=("ttyTHS0", "i2c-8"), debs=JP5_DEBS, cuda="11.4.19", python="3.10.18", packages=CPU_ONLY,
        torch_cuda=None, probe=NO_GPU, kernel="5.10.120-tegra",
    ),
    "orin_nano_super": Spec(
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        compatible=("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"),
        release=l4t(36, "4.3", "generic", "Wed Jan  8 01:49:37 UTC 2025"),
        modes=((0, "15W"), (1, "25W"), (2, "MAXN_SUPER"), (3, "7W")), status="pmode:0002", default=1,
        zones={**ORIN_ZONES, "gpu-thermal": 58625, "tj-thermal": 58312},
        rails={"VDD_IN": (5000, 1120), "VDD_CPU_GPU_CV": (5000, 380), "VDD_SOC": (5000, 290)},
        memory_kb=(7802880, 5200000), buddy=(40, 22, 11, 9, 4, 3, 1, 1, 1, 2, 12), cores=6, mhz=1728,
        devices=("ttyTHS1", "ttyTHS2", "i2c-1", "i2c-7", "video0"), debs=JP6_DEBS, cuda="12.6.11", python="3.10.12",
        packages=JP6, torch_cuda="12.6", probe=gpu("sm_87", "8.7"), kernel="5.15.148-tegra", swap_file=True,
    ),
    "orin_nx": Spec(
        model="NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super",
        compatible=("nvidia,p3768-0000+p3767-0000-super", "nvidia,p3767-0000", "nvidia,tegra234"),
        release=l4t(36, "4.4", "generic", "Mon Jun 16 16:07:13 UTC 2025"),
        modes=((0, "MAXN_SUPER"), (1, "10W"), (2, "15W"), (3, "25W"), (4, "40W")), status="pmode:0003", default=3,
        zones={**ORIN_ZONES, "gpu-thermal": 47000},
        rails={"VDD_IN": (4968, 1310), "VDD_CPU_GPU_CV": (4968, 410), "VDD_SOC": (4968, 400)},
        memory_kb=(16402432, 11000000), buddy=(50, 22, 10, 8, 5, 3, 2, 1, 1, 0, 1800), cores=8, mhz=1984,
        devices=("ttyTHS1", "i2c-1", "i2c-7", "video0"), debs={**JP6_DEBS, "nvidia-l4t-core": "36.4.4-20250616085344"},
        cuda="12.6.11", python="3.10.12", packages=JP6, torch_cuda="12.6", probe=gpu("sm_87", "8.7"),
        kernel="5.15.148-tegra",
    ),
    "agx_orin": Spec(
        model="NVIDIA Jetson AGX Orin Developer Kit",
        compatible=("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"),
        release=l4t(36, "4.4", "generic", "Mon Jun 16 16:07:13 UTC 2025"),
        modes=((0, "MAXN"), (1, "MODE_15W"), (2, "MODE_30W"), (3, "MODE_50W")), status="pmode:0000", default=2,
        zones=ORIN_ZONES,
        rails={"VDD_GPU_SOC": (20000, 120), "VDD_CPU_CV": (20000, 80), "VIN_SYS_5V0": (5048, 932), "NC": (0, 0),
               "VDDQ_VDD2_1V8AO": (5000, 60)},
        memory_kb=(64349184, 44000000), buddy=(800, 400, 200, 100, 50, 25, 12, 6, 3, 2, 466), cores=12, mhz=2201,
        devices=("ttyTHS1", "ttyTHS4", "i2c-7", "video0"),
        debs={**JP6_DEBS, "nvidia-l4t-core": "36.4.4-20250616085344"},
        cuda="12.6.11", python="3.10.12", packages=JP6, torch_cuda="12.6", probe=gpu("sm_87", "8.7"),
        kernel="5.15.148-tegra",
    ),
    "agx_orin_jp7": Spec(
        model="NVIDIA Jetson AGX Orin Developer Kit",
        compatible=("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"),
        release=l4t(39, "2.0", "generic", "Mon Jun 22 16:07:13 UTC 2026"),
        modes=((0, "MAXN"), (1, "MODE_15W"), (2, "MODE_30W"), (3, "MODE_50W")), status="pmode:0000", default=2,
        zones={**ORIN_ZONES, "tj-thermal": 53218},
        rails={"VDD_GPU_SOC": (20000, 118), "VDD_CPU_CV": (20000, 78), "VIN_SYS_5V0": (5048, 930)},
        memory_kb=(64324608, 43000000), buddy=(20, 10, 4, 2, 1, 1, 1, 1, 1, 1, 900), cores=12, mhz=2201,
        devices=("ttyTHS1", "i2c-7", "video0"),
        debs={"libnvinfer10": "10.16.2.5-1+cuda13.2", "libcudnn9-cuda-13": "9.20.0.40-1",
              "nvidia-l4t-core": "39.2.0-20260610101010"},
        cuda="13.2.0", python="3.12.3", packages=JP7, torch_cuda="13.0",
        probe={**gpu("sm_87", "8.7"), "torch_arch": ["sm_80", "sm_87", "sm_90", "sm_110", "compute_110"]},
        kernel="6.8.12-tegra",
    ),
    "thor": Spec(
        model="NVIDIA Jetson AGX Thor Developer Kit",
        compatible=("nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"),
        release=l4t(38, "2.0", "generic", "Fri Aug 22 00:55:42 UTC 2025"),
        modes=((0, "MAXN"), (1, "120W"), (2, "90W"), (3, "70W")), status="pmode:0001", default=1,
        zones={"cpu-thermal": 44000, "gpu-thermal": 43000, "soc012-thermal": 43500, "soc345-thermal": 42000,
               "tj-thermal": 44100},
        rails={"VDD_GPU": (20000, 300), "VDD_CPU_SOC_MSS": (20000, 500), "VIN_SYS_5V0": (5000, 1200),
               "VIN": (20000, 2100)},
        memory_kb=(128825804, 110000000), buddy=(9, 8, 7, 6, 5, 4, 3, 2, 1, 1, 9000), cores=14, mhz=2601,
        devices=("ttyTHS1", "i2c-1", "video0"), debs=JP7_DEBS, cuda="13.0.48", python="3.12.3", packages=JP7,
        torch_cuda="13.0", probe={**gpu("sm_110", "11.0"), "torch_arch": ["sm_80", "sm_90", "sm_110"]},
        kernel="6.8.12-tegra",
    ),
}  # fmt: skip


def main() -> None:
    for name, spec in BOARDS.items():
        root = HERE / name
        shutil.rmtree(root, ignore_errors=True)
        for path, text in (*files(spec), *sysfs(spec), *packages(spec)):
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)


def files(spec: Spec) -> Iterator[tuple[str, str]]:
    """Yields (path, text) of the files in /etc, /proc, /var, /usr and /dev."""
    yield "etc/nv_tegra_release", f"{spec.release}\n"
    yield "proc/device-tree/model", f"{spec.model}\0"
    yield "proc/device-tree/compatible", "".join(f"{text}\0" for text in spec.compatible)
    modes = "".join(f"< POWER_MODEL ID={n} NAME={name} >\nCPU_ONLINE CORE_0 1\n\n" for n, name in spec.modes)
    yield "etc/nvpmodel.conf", f"{modes}# the mode after the first boot\n< PM_CONFIG DEFAULT={spec.default} >\n"
    yield "var/lib/nvpmodel/status", f"{spec.status}\n"
    total, available = spec.memory_kb
    swap = total // 2
    yield (
        "proc/meminfo",
        (
            f"MemTotal:       {total} kB\nMemFree:        {available // 2} kB\nMemAvailable:   {available} kB\n"
            f"SwapTotal:      {swap} kB\nSwapFree:       {swap} kB\n"
        ),
    )
    yield "proc/buddyinfo", f"Node 0, zone   Normal {' '.join(f'{n:6}' for n in spec.buddy)} \n"
    swaps = [(f"/dev/zram{i}", "partition", swap // spec.cores, 5) for i in range(spec.cores)]
    if spec.swap_file:
        swaps = [("/var/swapfile", "file", 8388604, -2)]
    yield (
        "proc/swaps",
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        + "".join(
            f"{name}                              {kind}\t{size}\t\t0\t\t{priority}\n"
            for name, kind, size, priority in swaps
        ),
    )
    yield (
        "var/lib/dpkg/status",
        "\n".join(
            f"Package: {name}\nStatus: install ok installed\nArchitecture: arm64\nVersion: {version}\n"
            for name, version in spec.debs.items()
        ),
    )
    yield (
        "usr/local/cuda/version.json",
        json.dumps({"cuda": {"name": "CUDA SDK", "version": spec.cuda}}, indent=3) + "\n",
    )
    yield "etc/systemd/system/nvargus-daemon.service", "[Unit]\nDescription=Argus daemon\n"
    yield "proc/812/comm", "nvargus-daemon\n"
    yield "run/systemd/timesync/synchronized", ""
    for device in spec.devices:
        yield f"dev/{device}", ""


def sysfs(spec: Spec) -> Iterator[tuple[str, str]]:
    """Yields (path, text) of the files in /sys."""
    for i, (name, milli) in enumerate(spec.zones.items()):
        zone = f"sys/class/thermal/thermal_zone{i}"
        yield f"{zone}/type", f"{name}\n"
        if milli is not None:
            yield f"{zone}/temp", f"{milli}\n"
        if not name.startswith("PMIC"):
            yield f"{zone}/trip_point_0_type", "critical\n"
            yield f"{zone}/trip_point_0_temp", "104500\n"
            yield f"{zone}/trip_point_1_type", "passive\n"
            yield f"{zone}/trip_point_1_temp", "99000\n"
    yield "sys/class/thermal/cooling_device0/type", "pwm-fan\n"
    yield "sys/class/thermal/cooling_device0/cur_state", "1\n"
    yield "sys/class/thermal/cooling_device1/type", "cpufreq-cpu0\n"
    yield "sys/class/thermal/cooling_device1/cur_state", "0\n"
    for i, (label, (volts, amps)) in enumerate(spec.rails.items()):
        if spec.iio:
            folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
            yield f"{folder}/rail_name_{i}", f"{label}\n"
            yield f"{folder}/in_power{i}_input", f"{volts * amps // 1000}\n"
            continue
        chip, channel = divmod(i, 3)
        folder = f"sys/bus/i2c/drivers/ina3221/1-004{chip}/hwmon/hwmon{chip + 3}"
        yield f"{folder}/in{channel + 1}_label", f"{label}\n"
        yield f"{folder}/in{channel + 1}_input", f"{volts}\n"
        yield f"{folder}/curr{channel + 1}_input", f"{amps}\n"
    for core in range(spec.cores):
        folder = f"sys/devices/system/cpu/cpu{core}"
        if core:
            yield f"{folder}/online", "1\n"
        yield f"{folder}/cpufreq/scaling_governor", "schedutil\n"
        yield f"{folder}/cpufreq/scaling_cur_freq", f"{spec.mhz * 500}\n"
        yield f"{folder}/cpufreq/scaling_max_freq", f"{spec.mhz * 1000}\n"
    yield "sys/class/devfreq/17000000.gpu/cur_freq", "306000000\n"
    yield "sys/class/devfreq/17000000.gpu/max_freq", "1020000000\n"
    yield "sys/devices/platform/17000000.gpu/load", "125\n"


def packages(spec: Spec) -> Iterator[tuple[str, str]]:
    """Yields (path, text) of the Python packages' metadata and of the record of what ran."""
    short = ".".join(spec.python.split(".")[:2])
    site = f"opt/edge-sdk/venv/lib/python{short}/site-packages"
    for name, version in spec.packages.items():
        info = f"{site}/{name.replace('-', '_')}-{version}.dist-info"
        imports = {"edge-sdk": "coordinator\nedge_sdk\nexport\njetson\nsensors", "onnxruntime-gpu": "onnxruntime"}
        yield f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        yield f"{info}/top_level.txt", f"{imports.get(name, name)}\n"
    if "torch" in spec.packages:
        yield (
            f"{site}/torch/version.py",
            f"__version__ = '{spec.packages['torch']}'\ncuda: str | None = {spec.torch_cuda!r}\n",
        )
    record = {
        "python": spec.python, "arch": "aarch64", "venv": "/opt/edge-sdk/venv", "user": "edge",
        "groups": list(GROUPS), "state_dir": "/var/lib/edge-sdk", "disk_free_mb": 41000.0, "kernel": spec.kernel,
        "probe": spec.probe,
    }  # fmt: skip
    yield "edge-sdk/machine.json", json.dumps(record, indent=1) + "\n"


if __name__ == "__main__":
    main()

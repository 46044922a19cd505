"""What may be wrong with the machine that a device runs on, found without changing anything."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path

OURS = ("edge_sdk", "coordinator", "sensors", "export", "jetson")
_LEAST_DISK_MB = 200


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    name: str
    state: str  # "ok" | "note" | "bad"
    detail: str


def examine(state_dir: Path) -> list[Finding]:
    """Returns everything looked at, in a fixed order."""
    return [python(), venv(), *shadows(), *engines(), training(), clock(Path("/")), disk(state_dir)]


def python() -> Finding:
    """Looks at the interpreter."""
    ok = sys.version_info >= (3, 10)
    return Finding("python", "ok" if ok else "bad", f"{platform.python_version()} on {platform.machine()}")


def venv() -> Finding:
    """Looks whether we live in an environment of our own."""
    own = sys.prefix != sys.base_prefix
    detail = sys.prefix if own else "not in a virtual environment; other packages may shadow ours"
    return Finding("venv", "ok" if own else "note", detail)


def shadows() -> list[Finding]:
    """Looks for distributions that bring packages under our import names, and says whose module is imported."""
    rivals: dict[str, set[str]] = {name: set() for name in OURS}
    home = ""
    for found in distributions():
        name = str(found.metadata["Name"])
        if name == "edge-sdk":
            home = str(found.version)
            continue
        for top in {file.parts[0] for file in found.files or () if len(file.parts) > 1} & set(OURS):
            rivals[top].add(name)
    bad = [
        Finding(f"package {top}", "bad", f"{', '.join(sorted(names))} installs the same import name; remove it here")
        for top, names in rivals.items()
        if names
    ]
    missing = [top for top in OURS if importlib.util.find_spec(top) is None]
    if missing:
        bad.append(Finding("packages", "bad", f"{', '.join(missing)} cannot be imported; install edge-sdk again"))
    return bad or [Finding("packages", "ok", f"edge-sdk {home or 'from a checkout'}: {', '.join(OURS)}")]


def engines() -> list[Finding]:
    """Looks for ONNX Runtime and what it can run on."""
    installed = {str(d.metadata["Name"]) for d in distributions()} & {"onnxruntime", "onnxruntime-gpu"}
    if len(installed) == 2:
        text = "onnxruntime and onnxruntime-gpu overwrite one another; uninstall both, then install one"
        return [Finding("onnxruntime", "bad", text)]
    if importlib.util.find_spec("onnxruntime") is None:
        return [Finding("onnxruntime", "note", "not installed; predicting needs edge-sdk[ort] or edge-sdk[ort-gpu]")]
    import onnxruntime

    providers = ", ".join(onnxruntime.get_available_providers())
    return [Finding("onnxruntime", "ok", f"{onnxruntime.__version__}: {providers}")]


def training() -> Finding:
    """Looks for torch, without importing it."""
    if importlib.util.find_spec("torch") is None:
        return Finding("torch", "note", "not installed; this device can predict, training needs edge-sdk[train]")
    return Finding("torch", "ok", version("torch"))


def clock(root: Path) -> Finding:
    """Looks whether the time of day is kept right; labels from elsewhere are placed by it."""
    marks = ("run/systemd/timesync/synchronized", "run/chrony/chronyd.pid", "run/chronyd.pid", "run/ntpd.pid")
    for mark in marks:
        if (root / mark).exists():
            return Finding("clock", "ok", f"/{mark}")
    return Finding("clock", "note", "no sign of time synchronisation; labels from other machines may be misplaced")


def disk(state_dir: Path) -> Finding:
    """Looks at the room for the device's state."""
    place = state_dir
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e6
    if not os.access(place, os.W_OK):
        return Finding("disk", "bad", f"{place} is not writable; set device.state_dir or run as its owner")
    state = "ok" if free >= _LEAST_DISK_MB else "bad"
    return Finding("disk", state, f"{free:.0f} MB free for {state_dir}, at least {_LEAST_DISK_MB} MB are needed")


__all__ = ["OURS", "Finding", "clock", "disk", "engines", "examine", "python", "shadows", "training", "venv"]

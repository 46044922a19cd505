"""Runs what cannot be read: does a kernel start on the GPU, which providers load.

Every library is tried in a process of its own: one that crashes, or hangs on a wedged GPU, takes nothing else with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from edge_sdk.core.machine import Probe, probe_of

LIMIT_S = 120.0
_LIBRARIES = ("torch", "onnxruntime", "cv2")


def run() -> Probe:
    """Returns what every installed library did."""
    told: dict[str, Any] = {}
    for library in _LIBRARIES:
        if find_spec(library) is not None:
            told |= _child(library)
    return probe_of(told)


def _child(library: str) -> dict[str, Any]:
    """Returns a library's answer; where its process dies, that is the answer."""
    command = [sys.executable, "-m", "edge_sdk.runtime.probe", library]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return _failure(library, f"no answer within {LIMIT_S:g} s")
    lines = done.stdout.splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return _failure(library, last[:300])
    return dict(answer)


def _failure(library: str, text: str) -> dict[str, Any]:
    answers: dict[str, dict[str, Any]] = {"torch": {"kernel": text}, "onnxruntime": {"providers": []}, "cv2": {}}
    return answers[library]


def _torch() -> dict[str, Any]:
    import torch

    told: dict[str, Any] = {"torch_arch": torch.cuda.get_arch_list(), "torch_numpy": ""}
    try:
        torch.zeros(1).numpy()
    except (RuntimeError, ImportError, TypeError) as error:
        told["torch_numpy"] = str(error).splitlines()[0]
    if torch.version.cuda is None:
        return told
    if not torch.cuda.is_available():
        return {**told, "capability": ""}
    major, minor = torch.cuda.get_device_capability()
    return {**told, "capability": f"{major}.{minor}", "kernel": _product()}


def _product() -> str:
    """Returns "" if a matrix product on the GPU is right, else what is wrong."""
    import torch

    try:
        ones = torch.ones(64, 64, device="cuda")
        return "" if float((ones @ ones).sum()) == 64.0**3 else "a matrix product on the GPU is wrong"
    except RuntimeError as error:
        return str(error).splitlines()[0]


def _onnxruntime() -> dict[str, Any]:
    import onnxruntime

    return {"providers": onnxruntime.get_available_providers()}


def _cv2() -> dict[str, Any]:
    import cv2

    lines = [line for line in cv2.getBuildInformation().splitlines() if "GStreamer:" in line]
    return {"gstreamer": any("YES" in line for line in lines)}


def main() -> None:
    """Writes the answer of one library as JSON."""
    ask = {"torch": _torch, "onnxruntime": _onnxruntime, "cv2": _cv2}[sys.argv[1]]
    sys.stdout.write(json.dumps(ask()) + "\n")


if __name__ == "__main__":
    main()

__all__ = ["LIMIT_S", "main", "run"]

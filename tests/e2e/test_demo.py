"""`edge-coordinator demo`, as a user runs it: separate processes, a real broker, real data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest

from coordinator.preparation import split
from edge_sdk import datasets

pytestmark = pytest.mark.slow


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "coordinator.cli", "demo", "--port", "0", "--out", str(out), *more]


def members(out: Path) -> list[psutil.Process]:
    """Processes that still speak of this demo's folder."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(out) in " ".join(p.info["cmdline"] or ())]


@pytest.mark.timeout(400)
def test_a_short_demo_learns_and_leaves_its_results(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(
        command(out, "--updates", "16", "--seconds", "180"),
        capture_output=True, text=True, timeout=380, check=False, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    for shown in ("Accuracy on people no device has seen", "trained alone", "all sensors", "hot-swaps"):
        assert shown in done.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["updates_applied"] == 16
    assert report["updates_rejected"] == 0
    assert report["test_subjects"] == 9
    assert report["accuracy"]["fused"]["best"] > report["accuracy"]["fused"]["before"] + 0.2
    assert set(report["alone"]) == {"acc", "gyro"}
    assert report["predictions"] > 100
    assert report["swaps"] > 0
    assert report["bytes_up"] < report["bytes_up_float32"] / 3
    assert (out / "curves.png").stat().st_size > 10_000
    assert list((out / "store").glob("*.db"))
    assert members(out) == []
    _the_exported_model_is_the_one_that_was_tested(out, report["curve"][-1]["acc"])


def _the_exported_model_is_the_one_that_was_tested(out: Path, acc: float) -> None:
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    test = split(datasets.select("uci_har"), 1).test
    mask = np.ones((len(test.y), len(test.modalities)), np.float32)
    feed = {**{m: test.x[m].astype(np.float32) for m in test.modalities}, "mask": mask}
    (logits,) = session.run(["logits"], feed)
    assert float((logits.argmax(1) == test.y).mean()) == pytest.approx(acc, abs=2e-3)


@pytest.mark.timeout(180)
def test_ctrl_c_stops_everything_and_the_next_demo_starts_clean(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    for _ in range(2):
        process = subprocess.Popen(command(out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            _wait_for_members(out, 7, process)  # the demo, its broker, the coordinator and four devices
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130, said
        assert "Stopped" in said
        assert members(out) == []


def _wait_for_members(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 90
    while len(members(out)) < count:
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            raise AssertionError(f"{len(members(out))} of {count} processes; {process.communicate()[0]}")
        time.sleep(0.2)

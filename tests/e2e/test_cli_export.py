"""`edge-sdk export` and `edge-sdk bench` on what a device has stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edge_sdk import cli
from edge_sdk.core import parity
from edge_sdk.core.clock import VirtualClock, run_virtual
from edge_sdk.core.config import ReservoirConfig
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.interfaces import EngineOptions
from edge_sdk.core.records import ModelVersion, VersionId, Window
from edge_sdk.methods.base import find
from edge_sdk.models import build
from edge_sdk.runtime import measuring, stock
from edge_sdk.runtime.measuring import Case, measure
from edge_sdk.runtime.state import MODEL, DeviceState
from edge_sdk.streams.reservoir import Reservoir
from tests.helpers import virtual_tensorrt
from tests.helpers.exports import exported
from tests.helpers.office import small_spec
from tests.helpers.virtual_tensorrt import VirtualTensorRt

SPEC = small_spec()
NEEDS = find(SPEC.method.name).needs
TENSORS = build.initial_tensors(SPEC, NEEDS, 1)
BOARDS = Path(__file__).parents[1] / "data" / "boards"


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """The configuration of a device that has run: spec, model 7, and 80 labelled windows."""
    state = DeviceState.open(tmp_path / "state", "home", "d1")
    state.keep_spec(SPEC)
    state.keep_model(MODEL, ModelVersion(VersionId("ab" * 16, 7, "cd" * 16), TENSORS), SPEC.shape_digest)
    state.close()
    run_virtual(lambda clock: _fill(clock, tmp_path / "state" / "home" / "reservoir"))
    path = tmp_path / "device.toml"
    path.write_text(
        f'[device]\nid = "d1"\nfederation = "home"\nstate_dir = "{tmp_path / "state"}"\n'
        f'[inference]\ngraph = "{exported(SPEC, NEEDS)}"\n'
    )
    return path


async def _fill(clock: VirtualClock, folder: Path) -> None:
    reservoir = Reservoir(SPEC, ReservoirConfig(), clock, folder)
    x = parity.noise(SPEC, 80, 3)
    for i in range(80):
        await clock.sleep(0.5)
        data = {m: a[i] for m, a in x.items()}
        reservoir.add(Window(i, i * 5 * 10**8, 10**9, data, dict.fromkeys(data, 0.0), dict.fromkeys(data, 1.0)))
        reservoir.label(i, i % 2)
    reservoir.close()


def test_a_devices_model_becomes_one_onnx_file(
    device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    assert cli.main(["export", str(device), "-o", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "file": str(out),
        "version": "7",
        "precision": "fp32",
        "bytes": out.stat().st_size,
    }
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["version"] == "7"
    assert session.run(None, {**parity.noise(SPEC, 2, 0), "mask": np.ones((2, 2), np.float32)})[0].shape == (2, 2)


def test_int8_is_calibrated_with_the_windows_that_the_device_kept(
    device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "int8.onnx"
    arguments = ["export", str(device), "-o", str(out), "--precision", "int8", "--max-drop", "0.2"]
    assert cli.main([*arguments, "--target", "arm", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["labelled"], told["target"], told["evaluated"]) == (True, "arm", 80)
    assert cli.main(arguments) == 0
    assert "times as fast" in capsys.readouterr().out


def test_too_few_windows_are_refused(device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "state" / "home" / "reservoir").iterdir():
        path.unlink()
    assert cli.main(["export", str(device), "-o", str(tmp_path / "int8.onnx"), "--precision", "int8"]) == 2
    assert "calibration needs 32 windows of every modality, found 0 of 'acc'" in capsys.readouterr().err
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.skipif(bool(virtual_tensorrt.missing()), reason=virtual_tensorrt.missing() or "there is a compiler")
def test_an_engine_for_this_board(device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "machine").mkdir()
    machine = VirtualTensorRt(tmp_path / "machine", monkeypatch)
    out = tmp_path / "model.plan"
    assert cli.main(["export", str(device), "-o", str(out), "--precision", "fp16", "--max-batch", "8"]) == 0
    assert machine.builds == 1
    assert b'"acc": [[1, 3, 16], [1, 3, 16], [8, 3, 16]]' in out.read_bytes()


@pytest.mark.parametrize(
    ("name", "precision", "said"),
    [("model.bin", "fp32", ".onnx in fp32, .onnx in int8, .plan in fp32"), ("model.onnx", "fp16", "in fp16")],
)
def test_what_cannot_be_written_is_refused(
    device: Path, name: str, precision: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(device), "-o", name, "--precision", precision]) == 2
    assert said in capsys.readouterr().err


def test_a_device_that_has_nothing_says_so(device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state" / "home" / "model.npz").unlink()
    for command in (["export", str(device), "-o", "x.onnx"], ["bench", str(device)]):
        assert cli.main(command) == 2
        assert "has no model yet" in capsys.readouterr().err
    (tmp_path / "state" / "home" / "spec.json").unlink()
    assert cli.main(["bench", str(device)]) == 2
    assert "has not heard of its federation's spec" in capsys.readouterr().err
    assert cli.main(["bench", str(tmp_path / "model.bin")]) == 2
    assert ".toml" in capsys.readouterr().err


def test_bench_compares_engines_and_precisions(
    device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.png"
    arguments = ["bench", str(device), "--seconds", "0.05", "--precisions", "fp32,int8", "--batches", "1,4"]
    assert cli.main([*arguments, "--plot", str(plot), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["windows"], told["troubles"]) == ("7", "of this device", {})
    cases = [(f["engine"], f["precision"], f["batch"]) for f in told["figures"]]
    assert cases == [("ort", "fp32", 1), ("ort", "fp32", 4), ("standalone", "int8", 1), ("standalone", "int8", 4)]
    for figures in told["figures"]:
        assert 0 < figures["p50_ms"] <= figures["p99_ms"]
        assert figures["per_s"] > 0
        assert figures["runs"] >= 20
        assert figures["provider"] == "CPUExecutionProvider"
        assert (figures["swap_ms"] is None) == (figures["engine"] == "standalone")
        assert figures["peak_mb"] > figures["memory_mb"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_bench_of_a_graph_alone_names_what_does_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    graph = str(exported(SPEC, NEEDS))
    assert cli.main(["bench", graph, "--seconds", "0.01", "--engines", "ort,abacus"]) == 2
    shown = capsys.readouterr().out
    assert "ort" in shown
    assert "CPU" in shown
    assert "p99 ms" in shown
    assert "abacus fp32 batch 1: no plug-in 'abacus'" in shown
    assert cli.main(["bench", graph, "--batches", "0"]) == 2
    assert "--batches" in capsys.readouterr().err


def test_a_plot_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[object] = []
    monkeypatch.setattr("edge_sdk.commands.bench._cases", lambda *given: measured.append(given) or ())
    graph = str(exported(SPEC, NEEDS))
    for name, reason in (("x.foo", "ends with one of"), ("plot", "ends with one of"), ("a/x.png", "no folder")):
        assert cli.main(["bench", graph, "--plot", str(tmp_path / name)]) == 2
        assert reason in capsys.readouterr().err
    assert not measured


def case(**changes: object) -> Case:
    given = Case("ort", EngineOptions(), exported(SPEC, NEEDS), TENSORS, parity.noise(SPEC, 2, 0), 0.0)
    return replace(given, **changes)  # type: ignore[arg-type]


def test_energy_is_told_where_the_board_tells_its_power() -> None:
    assert measure(case(root=Path("/nowhere"))).energy_mj is None
    boards = [board for board in sorted(BOARDS.iterdir()) if board.is_dir()]
    told = [measure(case(root=board)) for board in boards]
    found = [f for f in told if f.energy_mj is not None]
    assert found
    for figures in found:
        power_mw = figures.energy_mj * figures.per_s  # mJ per window times windows per second
        assert 500 < power_mw < 200_000


def test_a_case_counts_rows_and_names_what_ran_it() -> None:
    figures = measure(case())
    assert (figures.batch, figures.runs, figures.provider) == (2, 20, "CPUExecutionProvider")
    assert figures.swap_ms is not None
    assert measuring.resident_mb() > 10


def test_only_configurations_and_graphs_are_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.onnx"):
        stock.read(tmp_path / "model.safetensors")

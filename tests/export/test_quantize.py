"""int8 from a device's own windows: as accurate as float32 within the bound, or nothing is written."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_sdk.core import parity
from edge_sdk.core.errors import EngineError, ShapeMismatch
from edge_sdk.core.records import RoundData
from edge_sdk.core.scoring import classes, masks
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from export import quantize as quantising
from export import sidecar
from export.engines.ort import OrtEngine
from export.engines.standalone import StandaloneEngine
from export.quantize import LEAST, TARGETS, quantize
from export.to_onnx import export_standalone
from tests.helpers.exports import exported
from tests.helpers.specs import har_spec

SPEC, NEEDS = har_spec(), Needs()
TENSORS = build.initial_tensors(SPEC, NEEDS, 3)


def windows(n: int = 160, *, labelled: int = 160) -> RoundData:
    """Windows whose labels are what float32 says of them, so that float32 is always right."""
    x = parity.noise(SPEC, n, 0)
    has = {"acc": np.ones(n, bool), "gyro": np.arange(n) % 4 > 0}  # every fourth window lacks one
    data = RoundData(np.arange(n), np.zeros(n, np.int64), x, has)
    y = classes(OrtEngine(exported(SPEC), TENSORS), data)
    y[labelled:] = -1
    return replace(data, y=y)


def made(path: Path, data: RoundData, **options: object) -> quantising.Quantized:
    return quantize(SPEC, NEEDS, TENSORS, path, data=data, graph=exported(SPEC), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", TARGETS)
def test_int8_says_nearly_what_float32_says(target: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "int8.onnx"
    done = made(path, windows(), target=target, max_drop=0.15)
    report = done.report
    assert (report.target, report.calibrated, report.evaluated) == (target, 105, 55)
    assert report.accuracy_fp32 == 1.0
    assert report.accuracy == report.agreement >= 0.85
    assert report.labelled
    assert report.bytes < 0.6 * report.bytes_fp32 or target == "tensorrt"  # which quantises weights by itself
    assert report.latency_ms > 0
    assert report.speedup == report.latency_fp32_ms / report.latency_ms
    x = parity.noise(SPEC, 5, 9)
    before = OrtEngine(exported(SPEC), TENSORS)
    assert not parity.compare(done.engine, before, x, rows=parity.masks(SPEC), tolerance=1e-6).ok  # it is quantised
    assert parity.compare(done.engine, before, x, rows=parity.masks(SPEC), tolerance=0.1).ok
    assert capfd.readouterr() == ("", "")
    assert [p.name for p in tmp_path.iterdir()] == ["int8.onnx"]


@pytest.mark.parametrize(("target", "kind"), [("x86", "UINT8"), ("arm", "INT8"), ("tensorrt", "INT8")])
def test_the_target_decides_the_type_of_activations(target: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    made(path, windows(), target=target, max_drop=1.0)
    proto = onnx.load(str(path))
    values = {i.name: i for i in proto.graph.initializer}
    points = [values[n.input[2]] for n in proto.graph.node if n.op_type == "QuantizeLinear"]
    activations = [p for p in points if not p.dims]
    assert activations
    assert {onnx.TensorProto.DataType.Name(p.data_type) for p in activations} == {kind}
    if kind == "INT8":
        assert not any(onnx.numpy_helper.to_array(p).any() for p in activations)  # symmetric
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert kinds["DequantizeLinear"] > kinds["QuantizeLinear"] or target == "tensorrt"
    assert proto.ir_version <= 10


def test_a_file_says_what_it_is_and_takes_no_other_weights(tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    done = made(path, windows(), version="17", max_drop=1.0)
    info = sidecar.read(exported(SPEC)).info
    assert done.engine.info == replace(info, shape_digest="")
    told = {p.key: p.value for p in onnx.load(str(path)).metadata_props}
    assert (told["precision"], told["version"], told["spec_digest"]) == ("int8", "17", SPEC.digest)
    with pytest.raises(EngineError, match="fixed"):
        done.engine.with_tensors(TENSORS)
    with pytest.raises(ShapeMismatch, match="refuses its input"):
        done.engine.run({"acc": np.zeros((1, 2, 32), np.float32)}, np.array([[1, 0]], np.float32))


def test_accuracy_that_drops_too_far_is_refused_and_nothing_written(tmp_path: Path) -> None:
    """One window of another world stretches the range until all others look alike."""
    data = windows()
    data.x["acc"][0] = 1e9
    path = tmp_path / "int8.onnx"
    path.write_bytes(b"what was there before")
    with pytest.raises(EngineError, match=r"points are lost, 0\.5 are allowed"):
        made(path, data)
    assert path.read_bytes() == b"what was there before"


def test_without_labels_agreement_with_float32_is_judged(tmp_path: Path) -> None:
    report = made(tmp_path / "int8.onnx", windows(labelled=0), max_drop=0.2).report
    assert not report.labelled
    assert report.accuracy_fp32 == 1.0
    assert report.accuracy == report.agreement
    data = windows(labelled=0)
    data.x["acc"][0] = 1e9
    with pytest.raises(EngineError, match="agrees with float32 on"):
        made(tmp_path / "second.onnx", data)


def test_a_set_that_is_too_small_is_refused(tmp_path: Path) -> None:
    few = windows(LEAST - 1)
    with pytest.raises(EngineError, match=f"needs {LEAST} windows of every modality, found {LEAST - 1} of 'acc'"):
        made(tmp_path / "int8.onnx", few)
    data = windows(64)
    data.has["gyro"][:] = np.arange(64) < 3
    with pytest.raises(EngineError, match="found 3 of 'gyro'"):
        made(tmp_path / "int8.onnx", data)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="'abacus'; there are x86, arm, tensorrt"):
        made(tmp_path / "int8.onnx", windows(), target="abacus")


def test_the_terminal_and_the_log_are_as_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path / "int8.onnx", windows(), max_drop=1.0)
    assert caplog.records == []
    assert logging.root.manager.disable == 0


@pytest.mark.parametrize("content", [None, b"", b"no graph", "an ONNX file of somebody else's"])
def test_a_standalone_file_that_is_none_is_refused(content: bytes | str | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        export_standalone(SPEC, NEEDS, TENSORS, path, graph=exported(SPEC))
        proto = onnx.load(str(path))
        del proto.metadata_props[:]
        onnx.save(proto, str(path))
    with pytest.raises(EngineError, match=r"cannot be read|cannot load|exported"):
        StandaloneEngine(path)


def test_rows_that_calibrate_do_not_judge_where_there_are_enough() -> None:
    data = windows(200, labelled=200)
    calibrating, judging = quantising._split(data, SPEC)
    assert not set(calibrating.indices) & set(judging.indices)
    assert masks(calibrating, SPEC.modality_names).sum(0).min() >= LEAST
    few = windows(48, labelled=44)
    _, judging = quantising._split(few, SPEC)
    assert len(judging.y) == 44

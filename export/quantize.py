"""The federated model in int8: static quantisation, calibrated with a device's own windows, and what it gains.

Which type activations get decides whether int8 pays: on x86 (VNNI) unsigned activations with signed weights were seen
to run three times as fast as float32, signed ones slower than float32; ARM and TensorRT want both signed and symmetric.
Nothing is written unless the quantised model is as accurate as the bound says on windows that did not calibrate it.

ONNX Runtime's quantiser does the work: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization as q
from onnxruntime.quantization.shape_inference import quant_pre_process

from edge_sdk.core.clock import monotonic_ns
from edge_sdk.core.errors import EngineError
from edge_sdk.core.interfaces import Engine
from edge_sdk.core.records import Float32, ModelTensors, RoundData
from edge_sdk.core.scoring import classes, masks
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn.records import Needs
from export import sidecar
from export.engines.ort import OrtEngine
from export.engines.standalone import StandaloneEngine
from export.to_onnx import export_standalone

LEAST = 32  # windows of each modality that calibration needs
MOST = 128  # windows that are used for calibration; more change nothing
MAX_DROP = 0.005  # accuracy that may be lost, half a point
_RUNS = 50  # predictions of each engine that are timed


@dataclass(frozen=True, slots=True)
class Target:
    """What a kind of machine wants."""

    activations: Any  # onnxruntime's QuantType; weights are always QInt8, per output channel
    options: Mapping[str, bool]  # more for the quantiser


SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True}
TARGETS: Mapping[str, Target] = {
    "x86": Target(q.QuantType.QUInt8, {"ActivationSymmetric": False, "WeightSymmetric": True}),
    "arm": Target(q.QuantType.QInt8, SYMMETRIC),
    "tensorrt": Target(q.QuantType.QInt8, {**SYMMETRIC, "AddQDQPairToWeight": True, "QuantizeBias": False}),
}


@dataclass(frozen=True, slots=True)
class Report:
    """The quantised model beside the one in float32."""

    target: str
    calibrated: int  # windows
    evaluated: int  # windows, others than those where there are enough
    labelled: bool  # they have labels; False: `accuracy` is agreement with float32
    accuracy_fp32: float  # [0, 1]
    accuracy: float
    agreement: float  # share of windows that both give the same class
    latency_fp32_ms: float  # median of one window, one thread of this machine
    latency_ms: float
    bytes_fp32: int
    bytes: int

    @property
    def speedup(self) -> float:
        """How many times faster than float32, on this machine."""
        return self.latency_fp32_ms / self.latency_ms


@dataclass(frozen=True, slots=True)
class Quantized:
    """What came of it."""

    engine: Engine  # runs the file that was written
    report: Report


def quantize(
    spec: FederationSpec,
    needs: Needs,
    tensors: ModelTensors,
    path: Path,
    *,
    data: RoundData,
    target: str = "x86",
    max_drop: float = MAX_DROP,
    version: str = "",
    graph: Path | None = None,
) -> Quantized:
    """Writes one ONNX file in int8 (QDQ), its inputs and outputs in float32 as those of `export_standalone`.

    Args:
        spec: the federation.
        needs: what its method needs of the model.
        tensors: the version.
        path: file to write.
        data: windows of the device; labels (−1: none) are used for judging only.
        target: "x86", "arm" or "tensorrt".
        max_drop: accuracy against float32 that may be lost, [0, 1].
        version: the version's name, for the metadata.
        graph: an exported graph of this federation, which saves exporting it again.

    Raises:
        EngineError: the target is unknown, there are too few windows, an operator cannot be quantised, or accuracy
            drops by more than the bound; nothing is written then.
    """
    if target not in TARGETS:
        raise EngineError(f"there is no target {target!r}; there are {', '.join(TARGETS)}")
    calibrating, judging = _split(data, spec)
    with tempfile.TemporaryDirectory() as folder:
        plain, draft = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        export_standalone(spec, needs, tensors, plain, version=version, graph=graph)
        _write(plain, draft, _rows(calibrating, spec.modality_names), TARGETS[target])
        written = _with_metadata(plain, draft)
        draft.write_bytes(written)
        report = _compared(plain, draft, calibrating, judging, target)
        _judge(report, max_drop)
        sidecar.replace(path, written)
    return Quantized(StandaloneEngine(path), report)


def _split(data: RoundData, spec: FederationSpec) -> tuple[RoundData, RoundData]:
    """Returns rows to calibrate with, spread over all, and rows to judge by: others, with labels, where there are."""
    for name in spec.modality_names:
        found = int(data.has[name].sum())
        if found < LEAST:
            raise EngineError(
                f"calibration needs {LEAST} windows of every modality, found {found} of {name!r}; let the device sense"
                " longer"
            )
    n = len(data.y)
    chosen = np.unique(np.linspace(0, n - 1, min(MOST, max(LEAST, n // 2))).round().astype(np.int64))
    for name in spec.modality_names:  # every modality has its share
        there = np.flatnonzero(data.has[name])
        chosen = np.union1d(chosen, there[np.linspace(0, len(there) - 1, LEAST).round().astype(np.int64)])
    rest = np.setdiff1d(np.arange(n), chosen)
    labelled = np.flatnonzero(data.y >= 0)
    for rows in (np.intersect1d(rest, labelled), labelled, rest):
        if len(rows) >= LEAST:
            return _take(data, chosen), _take(data, rows)
    return _take(data, chosen), data


def _take(data: RoundData, rows: Any) -> RoundData:
    x = {m: a[rows] for m, a in data.x.items()}
    return RoundData(data.indices[rows], data.y[rows], x, {m: a[rows] for m, a in data.has.items()})


class _Rows(q.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands windows to the quantiser, one at a time."""

    def __init__(self, feeds: Mapping[str, Float32]) -> None:
        self._feeds = feeds
        self._left = iter(range(len(feeds["mask"])))

    def get_next(self) -> dict[str, Float32] | None:
        """Returns one window; None after the last."""
        row = next(self._left, None)
        return None if row is None else {name: a[row : row + 1] for name, a in self._feeds.items()}


def _rows(data: RoundData, modalities: tuple[str, ...]) -> _Rows:
    return _Rows({**{m: data.x[m] for m in modalities}, "mask": masks(data, modalities)})


def _write(plain: Path, draft: Path, rows: _Rows, target: Target) -> None:
    prepared = draft.with_name("prepared.onnx")
    try:
        with _quiet():
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            q.quantize_static(
                str(prepared),
                str(draft),
                rows,
                quant_format=q.QuantFormat.QDQ,
                per_channel=True,
                activation_type=target.activations,
                weight_type=q.QuantType.QInt8,
                extra_options=dict(target.options),
            )
    except Exception as error:  # the quantiser raises what it likes
        raise EngineError(f"the model cannot be quantised: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the quantiser's advice from the user's terminal; it logs to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _with_metadata(plain: Path, draft: Path) -> bytes:
    """Returns the quantised file with what the float one says of itself."""
    made, source = (onnx.load(str(path)) for path in (draft, plain))
    told = {p.key: p.value for p in source.metadata_props}
    onnx.helper.set_model_props(made, {**told, "precision": "int8"})
    made.producer_name = source.producer_name
    made.ir_version = min(made.ir_version, source.ir_version)
    out: bytes = made.SerializeToString(deterministic=True)
    return out


def _compared(plain: Path, draft: Path, calibrating: RoundData, judging: RoundData, target: str) -> Report:
    before, after = (StandaloneEngine(path) for path in (plain, draft))
    expected, found = (classes(engine, judging) for engine in (before, after))
    labelled = bool((judging.y >= 0).all())
    truth = judging.y if labelled else expected
    slow, fast = _medians(before, after, judging)
    return Report(
        target=target,
        calibrated=len(calibrating.y),
        evaluated=len(judging.y),
        labelled=labelled,
        accuracy_fp32=float(np.mean(expected == truth)),
        accuracy=float(np.mean(found == truth)),
        agreement=float(np.mean(found == expected)),
        latency_fp32_ms=slow,
        latency_ms=fast,
        bytes_fp32=plain.stat().st_size,
        bytes=draft.stat().st_size,
    )


def _medians(before: OrtEngine, after: OrtEngine, data: RoundData) -> tuple[float, float]:
    """Returns medians of one prediction each, ms, taken in turn: what disturbs the machine disturbs both."""
    x = {m: data.x[m][:1] for m in before.info.modalities}
    mask = np.ones((1, len(before.info.modalities)), np.float32)
    taken: tuple[list[int], list[int]] = ([], [])
    for _ in range(_RUNS):
        for engine, kept in zip((before, after), taken, strict=True):
            engine.run(x, mask)  # the other one's weights have left the caches
            start_ns = monotonic_ns()
            engine.run(x, mask)
            kept.append(monotonic_ns() - start_ns)
    return statistics.median(taken[0]) / 1e6, statistics.median(taken[1]) / 1e6


def _judge(report: Report, max_drop: float) -> None:
    lost = report.accuracy_fp32 - report.accuracy
    if lost > max_drop:
        what = "is right on" if report.labelled else "agrees with float32 on"
        raise EngineError(
            f"int8 {what} {report.accuracy:.1%} of {report.evaluated} windows, float32 on {report.accuracy_fp32:.1%}:"
            f" {100 * lost:.1f} points are lost, {100 * max_drop:g} are allowed; calibrate with more windows, or stay"
            " with float32"
        )


__all__ = ["LEAST", "MAX_DROP", "TARGETS", "Quantized", "Report", "Target", "quantize"]

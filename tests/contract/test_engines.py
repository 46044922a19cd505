"""What every registered engine does: the same logits, the same refusals, and no harm to a running engine."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sdk.core import parity, registry
from edge_sdk.core.errors import EngineError, PluginError, ShapeMismatch
from edge_sdk.core.interfaces import Engine, EngineOptions, mask_row
from edge_sdk.core.records import Float32, ModelTensors, Segments
from edge_sdk.learn import params
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from export import sidecar
from export.engines.torch_engine import TorchEngine
from tests.helpers import virtual_tensorrt
from tests.helpers.exports import exported
from tests.helpers.specs import tri_spec

SPEC, NEEDS = tri_spec(), Needs(heads=True)
ROWS = parity.masks(SPEC)
X = parity.noise(SPEC, 6, 0)
FULL = np.ones((6, 3), np.float32)


def version(number: int) -> ModelTensors:
    return build.initial_tensors(SPEC, NEEDS, number)


def torch_logits(tensors: ModelTensors) -> dict[str, Float32]:
    return parity.logits(TorchEngine(SPEC, NEEDS, tensors), X, ROWS)


@pytest.fixture(params=registry.names("engines"))
def kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> type[Engine]:  # fmt: skip
    if request.param == "tensorrt":
        if virtual_tensorrt.missing():
            pytest.skip(virtual_tensorrt.missing())
        virtual_tensorrt.VirtualTensorRt(tmp_path_factory.mktemp("machine"), monkeypatch)
    try:
        engine: type[Engine] = registry.load("engines", request.param)
    except PluginError as error:
        pytest.skip(str(error))
    return engine


@pytest.fixture
def engine(kind: type[Engine]) -> Engine:
    return kind.open(exported(SPEC, NEEDS), version(1))


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A graph and its sidecar that the test may spoil."""
    graph = tmp_path / "model.onnx"
    sidecar.write(graph, exported(SPEC, NEEDS).read_bytes(), sidecar.read(exported(SPEC, NEEDS)))
    return graph


def test_says_what_it_is(engine: Engine) -> None:
    assert engine.info == sidecar.read(exported(SPEC, NEEDS)).info
    assert engine.info.shape_digest == SPEC.shape_digest
    assert engine.provider


def test_agrees_with_torch_under_every_mask(engine: Engine) -> None:
    report = parity.check(engine, torch_logits(version(1)), X, rows=ROWS, tolerance=1e-5)
    assert report.agreement == 1.0


def test_a_subset_is_answered_by_its_own_blocks_of_a_linear_fusion(kind: type[Engine]) -> None:
    """b + Σ W_m φ_m(x_m) over what is there: an engine needs no other graph for it, and no retraining."""
    spec = tri_spec(fusion="linear")
    model = build.build(spec, seed=4).eval()
    engine = kind.open(exported(spec), params.read(model.named()))
    weight, bias = dict(model.module("fusion").named_parameters()).values()
    with torch.no_grad():
        features = model.encode({m: torch.from_numpy(x) for m, x in X.items()})
    blocks = dict(zip(spec.modality_names, torch.split(weight, spec.model.feature_dim, dim=1), strict=True))
    for count in (1, 2, 3):
        for subset in combinations(spec.modality_names, count):
            with torch.no_grad():
                expected = bias + sum(features[m] @ blocks[m].T for m in subset)
            mask = np.repeat(mask_row(subset, spec.modality_names), 6, axis=0)
            there = {m: X[m] for m in subset}
            np.testing.assert_allclose(engine.run(there, mask), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5, 33])
def test_any_batch_gives_the_logits_of_its_rows(engine: Engine, batch: int) -> None:
    x = parity.noise(SPEC, batch, batch)
    mask = np.ones((batch, 3), np.float32)
    mask[:, 0] = np.arange(batch) % 2  # rows differ in what they have
    together = engine.run(x, mask)
    alone = [engine.run({m: a[i : i + 1] for m, a in x.items()}, mask[i : i + 1]) for i in range(batch)]
    assert together.dtype == np.float32
    assert together.shape == (batch, 4)
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


def test_masked_rows_may_hold_anything_finite(engine: Engine) -> None:
    mask = np.repeat(mask_row(("imu", "audio"), SPEC.modality_names), 6, axis=0)
    wild = {**X, "camera": np.full_like(X["camera"], 1e6)}
    np.testing.assert_allclose(engine.run(wild, mask), engine.run(X, mask), atol=1e-6)


def test_an_absent_modality_need_not_be_given(engine: Engine) -> None:
    mask = np.repeat(mask_row(("imu",), SPEC.modality_names), 6, axis=0)
    np.testing.assert_allclose(engine.run({"imu": X["imu"]}, mask), engine.run(X, mask), atol=1e-6)
    with pytest.raises(ShapeMismatch, match="camera"):
        engine.run({"imu": X["imu"], "audio": X["audio"]}, FULL)


def test_read_only_windows_are_fine(engine: Engine) -> None:
    frozen = {m: a.copy() for m, a in X.items()}
    for array in frozen.values():
        array.setflags(write=False)
    np.testing.assert_array_equal(engine.run(frozen, FULL), engine.run(X, FULL))


def test_input_of_another_shape_is_refused(engine: Engine) -> None:
    with pytest.raises(ShapeMismatch, match="refuses its input"):
        engine.run({**X, "imu": np.zeros((6, 5, 32), np.float32)}, FULL)
    assert engine.run(X, FULL).shape == (6, 4)


def test_engines_of_one_graph_never_share_results(engine: Engine) -> None:
    engines = {1: engine, 2: engine.with_tensors(version(2)), 3: engine.with_tensors(version(3))}
    for _ in range(3):
        for number, one in engines.items():
            parity.check(one, torch_logits(version(number)), X, rows=ROWS, tolerance=1e-5)
    assert not parity.compare(engines[2], engine, X, rows=ROWS, tolerance=1e-3).ok
    back = engines[3].with_tensors(version(1))
    np.testing.assert_array_equal(back.run(X, FULL), engine.run(X, FULL))


def test_an_engine_keeps_its_weights_when_the_buffers_change(kind: type[Engine]) -> None:
    tensors = version(1)
    engine = kind.open(exported(SPEC, NEEDS), tensors)
    before = engine.run(X, FULL)
    for segments in tensors.values():
        segments.params[:] = 0.0  # the coordinator mixes in place; a trainer trains on
    np.testing.assert_array_equal(engine.run(X, FULL), before)


def test_decoded_buffers_may_be_read_only_and_unaligned(kind: type[Engine]) -> None:
    def decoded(a: Float32) -> Float32:
        return np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(np.float32)

    tensors = {n: Segments(decoded(s.params), s.stats, s.counters) for n, s in version(1).items()}
    engine = kind.open(exported(SPEC, NEEDS), tensors)
    parity.check(engine, torch_logits(version(1)), X, rows=ROWS, tolerance=1e-5)


def test_swapping_under_load_loses_no_prediction(engine: Engine) -> None:
    """One thread predicts all the while; every prediction is exactly that of the version it was asked of."""
    numbers = (1, 2, 3)
    expected = {n: engine.with_tensors(version(n)).run(X, FULL) for n in numbers}
    current: list[tuple[int, Engine]] = [(1, engine)]
    wrong: list[int] = []
    seen = dict.fromkeys(numbers, 0)
    stop = threading.Event()

    def predict() -> None:
        while not stop.is_set():
            number, one = current[0]
            seen[number] += 1
            if not np.allclose(one.run(X, FULL), expected[number], atol=1e-6):
                wrong.append(number)

    thread = threading.Thread(target=predict)
    thread.start()
    for i in range(24):
        number = numbers[i % 3]
        current[0] = (number, current[0][1].with_tensors(version(number)))
    for number in numbers:  # every version is asked at least once, however slow the other thread is
        current[0] = (number, current[0][1].with_tensors(version(number)))
        target = seen[number] + 2
        while seen[number] < target and thread.is_alive():
            stop.wait(0.001)
    stop.set()
    thread.join()
    assert wrong == []
    assert min(seen.values()) > 0


def test_a_gpu_that_is_not_there_is_an_error_or_a_degraded_state(kind: type[Engine]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    if kind.takes_long(EngineOptions()):
        pytest.skip("it runs on a GPU or not at all; what serves in its place is chosen by the device")
    with pytest.raises(EngineError, match=r"GPU|libcuda|onnxruntime"):
        kind.open(exported(SPEC, NEEDS), version(1), EngineOptions(provider="cuda"))
    engine = kind.open(exported(SPEC, NEEDS), version(1), EngineOptions(provider="cuda", fallback=True))
    parity.check(engine, torch_logits(version(1)), X, rows=ROWS, tolerance=1e-5)
    assert "not on cuda" in engine.degraded
    assert "not on cuda" in engine.with_tensors(version(2)).degraded
    assert kind.open(exported(SPEC, NEEDS), version(1)).degraded == ""


def test_on_a_gpu_it_says_what_the_cpu_says(kind: type[Engine]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")
    engine = kind.open(exported(SPEC, NEEDS), version(1), EngineOptions(provider="cuda"))
    for number, one in ((1, engine), (2, engine.with_tensors(version(2)))):
        parity.check(one, torch_logits(version(number)), X, rows=ROWS, tolerance=1e-3)
        assert one.degraded == ""
        assert one.provider != "CPUExecutionProvider"


def _with(tensors: ModelTensors, name: str, **changes: Float32) -> ModelTensors:
    return {**tensors, name: replace(tensors[name], **changes)}


WRONG = {
    "module missing": lambda t: {n: s for n, s in t.items() if n != "encoder.imu"},
    "unknown module": lambda t: {**t, "encoder.smell": t["fusion"]},
    "too short": lambda t: _with(t, "fusion", params=t["fusion"].params[:-1]),
    "float64": lambda t: _with(t, "fusion", params=t["fusion"].params.astype(np.float64)),
    "too many stats": lambda t: _with(t, "fusion", stats=np.ones(3, np.float32)),
    "nothing": lambda _: {},
}


@pytest.mark.parametrize("case", WRONG)
def test_tensors_of_another_model_are_refused(engine: Engine, case: str) -> None:
    before = engine.run(X, FULL)
    with pytest.raises(ShapeMismatch):
        engine.with_tensors(WRONG[case](version(2)))
    with pytest.raises(ShapeMismatch):
        type(engine).open(exported(SPEC, NEEDS), WRONG[case](version(2)))
    np.testing.assert_array_equal(engine.run(X, FULL), before)


def test_shared_heads_may_stay_behind(engine: Engine) -> None:
    without = {n: s for n, s in version(2).items() if not n.startswith("head.")}
    parity.check(engine.with_tensors(without), torch_logits(version(2)), X, rows=ROWS, tolerance=1e-5)


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


SPOILED = {
    "no sidecar": lambda graph: sidecar.path_of(graph).unlink(),
    "empty sidecar": lambda graph: sidecar.path_of(graph).write_bytes(b""),
    "not JSON": lambda graph: sidecar.path_of(graph).write_bytes(b"\xff\xfe{"),
    "a list": lambda graph: sidecar.path_of(graph).write_text("[]"),
    "another format": lambda graph: _edit(sidecar.path_of(graph), '"format": 1', '"format": 99'),
    "another layout": lambda graph: _edit(sidecar.path_of(graph), '"body.0.0.weight"', '"body.0.1.weights"'),
    "another digest": lambda graph: _edit(sidecar.path_of(graph), '"layout_digest": "', '"layout_digest": "0'),
    "a spec that is none": lambda graph: _edit(sidecar.path_of(graph), '"feature_dim": 16', '"feature_dim": -1'),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_sidecar_is_refused(kind: type[Engine], pair: Path, case: str) -> None:
    SPOILED[case](pair)
    with pytest.raises(EngineError, match=r"model\.onnx\.json"):
        kind.open(pair, version(1))


def test_the_pair_that_is_not_spoiled_is_taken(kind: type[Engine], pair: Path) -> None:
    assert kind.open(pair, version(1)).run(X, FULL).shape == (6, 4)

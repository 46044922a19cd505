"""TensorRT's engine against a stand-in: building apart, refitting, caching, and what is refused. No real TensorRT."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.core import parity, registry
from edge_sdk.core.errors import EngineError, ShapeMismatch
from edge_sdk.core.interfaces import EngineOptions
from edge_sdk.core.records import ModelTensors
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from export import cuda, engine_cache, graphs, sidecar
from export.engines.ort import OrtEngine
from export.engines.tensorrt_engine import TensorRtEngine
from export.to_tensorrt import Order, build_plan, export_plan
from tests.helpers import virtual_tensorrt
from tests.helpers.exports import exported
from tests.helpers.specs import har_spec
from tests.helpers.virtual_tensorrt import VirtualTensorRt

if virtual_tensorrt.missing():
    pytest.skip(virtual_tensorrt.missing(), allow_module_level=True)

SPEC = har_spec()
ROWS = parity.masks(SPEC)
X = parity.noise(SPEC, 5, 1)
FULL = np.ones((5, 2), np.float32)


def version(seed: int) -> ModelTensors:
    return build.initial_tensors(SPEC, seed=seed)


def truth(seed: int) -> OrtEngine:
    return OrtEngine(exported(SPEC), version(seed))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualTensorRt]:
    (tmp_path / "machine").mkdir()
    yield VirtualTensorRt(tmp_path / "machine", monkeypatch)
    cuda._runtime.cache_clear()


@pytest.fixture
def options(tmp_path: Path) -> EngineOptions:
    return EngineOptions(max_batch=4, cache=tmp_path / "engines", build_limit_s=60.0)


def opened(options: EngineOptions, seed: int = 1) -> TensorRtEngine:
    return TensorRtEngine.open(exported(SPEC), version(seed), options)


def test_it_is_built_once_and_refitted_for_every_version(machine: VirtualTensorRt, options: EngineOptions) -> None:
    first = opened(options)
    assert machine.builds == 1
    second = first.with_tensors(version(2))
    third = second.with_tensors(version(3))
    assert machine.builds == 1
    for seed, engine in ((1, first), (2, second), (3, third)):  # the refits have touched nobody else
        parity.check(engine, truth(seed), X, rows=ROWS, tolerance=1e-5)
    assert not parity.compare(first, second, X, rows=ROWS, tolerance=1e-3).ok


def test_batches_beyond_the_profile_are_run_in_pieces(machine: VirtualTensorRt, options: EngineOptions) -> None:
    engine = opened(options)
    x = parity.noise(SPEC, 11, 2)
    mask = np.ones((11, 2), np.float32)
    np.testing.assert_allclose(engine.run(x, mask), truth(1).run(x, mask), atol=1e-6)


def test_a_second_start_builds_nothing(machine: VirtualTensorRt, options: EngineOptions) -> None:
    opened(options)
    again = opened(options)
    assert machine.builds == 1
    parity.check(again, truth(1), X, rows=ROWS, tolerance=1e-5)


def test_two_models_of_one_graph_never_share_results(machine: VirtualTensorRt, options: EngineOptions) -> None:
    """The cached engine of another model is refitted and proved, never served as it is."""
    opened(options, 1)
    other = opened(options, 2)
    assert machine.builds == 1
    parity.check(other, truth(2), X, rows=ROWS, tolerance=1e-5)
    machine.goes_wrong("drops biases")
    third = opened(options, 3)
    assert machine.builds == 2
    parity.check(third, truth(3), X, rows=ROWS, tolerance=1e-5)
    assert opened(options, 3).info == third.info
    assert machine.builds == 2


@pytest.mark.parametrize("trouble", ["drops biases", "cannot refit"])
def test_a_refit_that_does_not_take_is_built(machine: VirtualTensorRt, options: EngineOptions, trouble: str) -> None:
    first = opened(options)
    machine.goes_wrong(trouble)
    second = first.with_tensors(version(2))
    assert machine.builds == 2
    parity.check(second, truth(2), X, rows=ROWS, tolerance=1e-5)
    parity.check(first, truth(1), X, rows=ROWS, tolerance=1e-5)


def test_an_engine_of_another_board_is_refused_and_built_anew(machine: VirtualTensorRt, options: EngineOptions) -> None:
    opened(options)
    machine.board("sm72")
    engine = opened(options)  # the file is there under its key, but TensorRT does not read it
    assert machine.builds == 2
    parity.check(engine, truth(1), X, rows=ROWS, tolerance=1e-5)
    plan = engine._plan
    machine.board("sm87")
    with pytest.raises(EngineError, match="built on another board or by another release"):
        engine._load(plan)


def test_a_damaged_engine_file_is_built_anew(machine: VirtualTensorRt, options: EngineOptions) -> None:
    opened(options)
    assert options.cache is not None
    (plan,) = options.cache.rglob(engine_cache.PLAN)
    plan.write_bytes(plan.read_bytes()[:-20])
    parity.check(opened(options), truth(1), X, rows=ROWS, tolerance=1e-5)
    assert machine.builds == 2


def test_an_engine_of_another_graph_is_refused(machine: VirtualTensorRt, options: EngineOptions) -> None:
    engine = opened(options)
    one = har_spec(modalities=SPEC.modalities[:1])
    profile = engine_cache.profile_of(sidecar.read(exported(one)).info, 4)
    model = graphs.baked(
        exported(one).read_bytes(), sidecar.read(exported(one)).map.apply(build.initial_tensors(one))
    )  # fmt: skip
    plan = build_plan(model, Order(profile, "fp32"), limit_s=60.0)
    with pytest.raises(EngineError, match="built from another graph"):
        engine._load(plan)


REFUSED = {
    "unsupported Gemm": r"operator Gemm \(.+\): no importer",
    "memory": "out of memory: host; add swap",
    "killed": "was killed: the board is out of memory",
    "nothing": "the build failed: Could not find any implementation for node: out of memory",
    "crash": "RuntimeError: the vendor's library is unwell",
}


@pytest.mark.parametrize("trouble", REFUSED)
def test_a_build_that_fails_says_why_and_leaves_the_running_engine_alone(
    machine: VirtualTensorRt, options: EngineOptions, trouble: str
) -> None:
    running = opened(options)
    before = running.run(X, FULL)
    machine.goes_wrong(trouble)
    with pytest.raises(EngineError, match=REFUSED[trouble]):
        opened(replace(options, cache=None), 2)
    machine.goes_wrong("")
    np.testing.assert_array_equal(running.run(X, FULL), before)


def test_a_build_that_takes_too_long_is_stopped(machine: VirtualTensorRt, options: EngineOptions) -> None:
    machine.goes_wrong("hang")
    with pytest.raises(EngineError, match=r"took longer than 3 s \(inference\.build_limit_s\)"):
        opened(replace(options, build_limit_s=3.0))


def test_a_build_ends_with_the_device_that_wanted_it(machine: VirtualTensorRt) -> None:
    machine.goes_wrong("hang")
    code = f"from tests.export.test_tensorrt import plain; plain({str(exported(SPEC))!r})"
    device = subprocess.Popen([sys.executable, "-c", code], cwd=virtual_tensorrt.ROOT)
    try:
        waited(lambda: machine.builds == 1)
        ((builder, niceness),) = machine.builders
        assert niceness >= 10
        assert Path(f"/proc/{builder}").exists()
    finally:
        device.kill()
        device.wait()
    waited(lambda: not running(builder))


def plain(graph: str) -> None:
    """Builds an engine of a graph; what the process of the test above does."""
    made = sidecar.read(Path(graph))
    model = graphs.baked(Path(graph).read_bytes(), made.map.apply(version(1)))
    build_plan(model, Order(engine_cache.profile_of(made.info, 4), "fp32"), limit_s=60.0)


def waited(ready: Callable[[], bool]) -> None:
    for _ in range(600):
        if ready():
            return
        signal.sigtimedwait([], 0.05)
    raise AssertionError("it did not happen")


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_build_says_how_far_it_is(machine: VirtualTensorRt, options: EngineOptions, tmp_path: Path) -> None:
    said: list[str] = []
    info = export_plan(
        SPEC, Needs(), version(1), tmp_path / "a.plan", precision="fp16", graph=exported(SPEC), progress=said.append
    )  # fmt: skip
    assert info == sidecar.read(exported(SPEC)).info
    assert said == ["parsing", "Building 1/2", "Building 2/2"]
    assert b'"fp16", "refit"' in (tmp_path / "a.plan").read_bytes()


def test_float32_is_float32(machine: VirtualTensorRt, options: EngineOptions) -> None:
    plan = opened(options)._plan
    assert b'"flags": ["refit"]' in plan  # no TF32, which keeps ten bits of mantissa


def test_shapes_outside_the_profile_are_refused(machine: VirtualTensorRt, options: EngineOptions) -> None:
    engine = opened(options)
    with pytest.raises(ShapeMismatch, match=r"acc has shape \(5, 3, 31\), built for \(B, \(3, 32\)\)"):
        engine.run({**X, "acc": X["acc"][:, :, :31]}, FULL)
    with pytest.raises(ShapeMismatch, match="gyro has shape"):
        engine.run({**X, "gyro": X["gyro"][:3]}, FULL)
    assert engine.run(X, FULL).shape == (5, 4)


@pytest.mark.parametrize(
    ("call", "said"), [("cudaMalloc", r"cudaMalloc: out of memory \(error 2\)"), ("cudaStreamSynchronize", "error 2")]
)
def test_what_cuda_says_is_passed_on(machine: VirtualTensorRt, options: EngineOptions, call: str, said: str) -> None:
    running = opened(options)
    machine.cuda_fails(call)
    with pytest.raises(EngineError, match=said):
        running.with_tensors(version(2))
    machine.cuda_fails("")
    assert running.run(X, FULL).shape == (5, 4)


def test_an_engine_that_cannot_run_says_so(machine: VirtualTensorRt, options: EngineOptions) -> None:
    engine = opened(options)
    machine.goes_wrong("cannot run")
    with pytest.raises(EngineError, match="could not run"):
        engine.run(X, FULL)


def test_memory_is_given_back_with_the_engine(machine: VirtualTensorRt, options: EngineOptions) -> None:
    engine = opened(options)
    held = machine.buffers
    second = engine.with_tensors(version(2))
    assert machine.buffers == 2 * held == 8
    del second
    gc.collect()
    assert machine.buffers == held


def test_without_the_package_it_says_where_it_comes_from(options: EngineOptions) -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("this machine has TensorRT")
    with pytest.raises(EngineError, match="python3-libnvinfer"):
        opened(options)


def test_precisions_that_it_does_not_run_are_refused(options: EngineOptions) -> None:
    with pytest.raises(EngineError, match="not int8"):
        opened(replace(options, precision="int8"))


def test_it_is_found_by_name() -> None:
    assert registry.load("engines", "tensorrt") is TensorRtEngine
    assert registry.load("exporters", "tensorrt") is export_plan
    assert TensorRtEngine.takes_long(EngineOptions())
    assert not OrtEngine.takes_long(EngineOptions())

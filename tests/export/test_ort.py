"""ONNX Runtime: corrupt graphs, accelerators that are not there, and a device without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edge_sdk.core import parity
from edge_sdk.core.errors import EngineError
from edge_sdk.core.interfaces import EngineOptions
from edge_sdk.models import build
from export import builds, cuda, engine_cache, graphs, sidecar
from export.engines import ort
from export.engines.ort import OrtEngine
from tests.helpers.exports import exported
from tests.helpers.specs import har_spec

SPEC = har_spec()
TENSORS = build.initial_tensors(SPEC)


def _flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0xFF]) + data[len(data) // 2 + 1 :]


DAMAGE = {
    "empty": lambda _: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "one byte": _flip,
    "text": lambda _: b"this is no graph",
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_graph_is_refused_before_a_session_is_made(case: str, tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    sidecar.write(graph, exported(SPEC).read_bytes(), sidecar.read(exported(SPEC)))
    graph.write_bytes(DAMAGE[case](graph.read_bytes()))
    with pytest.raises(EngineError, match="is not the graph"):
        OrtEngine.open(graph, TENSORS)
    graph.unlink()
    with pytest.raises(EngineError, match="cannot be read"):
        OrtEngine.open(graph, TENSORS)


@pytest.mark.parametrize("case", ["empty", "truncated", "text"])
def test_a_graph_that_onnxruntime_cannot_read_is_refused(case: str, tmp_path: Path) -> None:
    graph, data = tmp_path / "model.onnx", DAMAGE[case](exported(SPEC).read_bytes())
    sidecar.write(graph, data, replace(sidecar.read(exported(SPEC)), graph_digest=sidecar.digest(data)))
    with pytest.raises(EngineError, match="cannot load the graph"):
        OrtEngine.open(graph, TENSORS)


def _rewritten(tmp_path: Path, proto: onnx.ModelProto) -> Path:
    graph, data = tmp_path / "model.onnx", proto.SerializeToString()
    sidecar.write(graph, data, replace(sidecar.read(exported(SPEC)), graph_digest=sidecar.digest(data)))
    return graph


def test_a_newer_ir_version_is_refused_with_the_reason(tmp_path: Path) -> None:
    proto = onnx.load(str(exported(SPEC)), load_external_data=False)
    proto.ir_version = 99
    with pytest.raises(EngineError, match="IR version"):
        OrtEngine.open(_rewritten(tmp_path, proto), TENSORS)


def test_an_operator_that_onnxruntime_lacks_is_named(tmp_path: Path) -> None:
    proto = onnx.load(str(exported(SPEC)), load_external_data=False)
    next(node for node in proto.graph.node if node.op_type == "Relu").op_type = "Frobnicate"
    running = OrtEngine.open(exported(SPEC), TENSORS)
    with pytest.raises(EngineError, match="Frobnicate"):
        OrtEngine.open(_rewritten(tmp_path, proto), TENSORS)
    assert running.run(parity.noise(SPEC, 1, 0), np.ones((1, 2), np.float32)).shape == (1, 4)


def test_an_initialiser_outside_the_map_is_refused(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    whole = sidecar.read(exported(SPEC))
    sidecar.write(graph, exported(SPEC).read_bytes(), replace(whole, weights=whole.weights[1:]))
    with pytest.raises(EngineError, match="cannot load the graph"):
        OrtEngine.open(graph, TENSORS)


def test_a_graph_with_other_inputs_is_refused(tmp_path: Path) -> None:
    proto = onnx.load(str(exported(SPEC)), load_external_data=False)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, (1,)))
    with pytest.raises(EngineError, match="extra"):
        OrtEngine.open(_rewritten(tmp_path, proto), TENSORS)


CUDA_OPTIONS = EngineOptions(provider="cuda")


def test_an_accelerator_that_is_not_there_is_an_error() -> None:
    if ort.CUDA in onnxruntime.get_available_providers() and cuda.loads(ort.LIBRARIES[ort.CUDA]):
        pytest.skip("this machine has CUDA")
    with pytest.raises(EngineError, match=r"libcuda|onnxruntime-gpu"):
        OrtEngine(exported(SPEC), TENSORS, CUDA_OPTIONS)


@pytest.mark.parametrize(
    ("options", "said"),
    [(EngineOptions(provider="abacus"), "abacus"), (EngineOptions(precision="fp16"), "needs provider tensorrt")],
)
def test_what_ort_cannot_do_is_refused(options: EngineOptions, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        OrtEngine(exported(SPEC), TENSORS, options)


class Forgetting:
    """onnxruntime on a machine where an accelerator's libraries load, but the provider then drops out, silently."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[list[str], list[dict[str, str]]]] = []
        self._session = onnxruntime.InferenceSession
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(ort.PROVIDERS["tensorrt"]))
        monkeypatch.setattr(cuda, "loads", lambda names: object())
        monkeypatch.setattr(onnxruntime, "InferenceSession", self)

    def __call__(
        self, data: bytes, options: object, *, providers: list[str], provider_options: list[dict[str, str]]
    ) -> onnxruntime.InferenceSession:  # fmt: skip
        self.asked.append((providers, provider_options))
        return self._session(data, options, providers=[ort.CPU])


def test_a_silent_fall_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Forgetting(monkeypatch)
    with pytest.raises(EngineError, match=f"dropped {ort.CUDA} and would run on {ort.CPU}"):
        OrtEngine(exported(SPEC), TENSORS, CUDA_OPTIONS)


def test_a_fall_back_that_is_allowed_is_told_by_every_engine_that_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    forgetting = Forgetting(monkeypatch)
    engine = OrtEngine(exported(SPEC), TENSORS, replace(CUDA_OPTIONS, fallback=True))
    assert engine.provider == ort.CPU
    assert engine.degraded.startswith("runs on the CPU, not on cuda: onnxruntime dropped CUDA")
    again = engine.with_tensors(build.initial_tensors(SPEC, seed=1))
    assert again.degraded == engine.degraded
    assert forgetting.asked[0][0] == [ort.CUDA, ort.CPU]
    assert all(providers == [ort.CPU] for providers, _ in forgetting.asked[1:])
    assert OrtEngine(exported(SPEC), TENSORS).degraded == ""


class Apart:
    """Stands for the process in which TensorRT's provider builds; keeps what it was ordered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trouble: str = "") -> None:
        self.orders: list[dict[str, Any]] = []
        self._trouble = trouble
        monkeypatch.setattr(builds, "run", self)
        monkeypatch.setattr(cuda, "tensorrt_version", lambda: "100300")
        monkeypatch.setattr(cuda, "compute_capability", lambda: "87")

    def __call__(self, module: str, folder: Path, *, leaves: str, limit_s: float, progress: builds.Progress) -> None:
        order = json.loads((folder / builds.ORDER).read_text(encoding="utf-8"))
        self.orders.append({**order, "module": module, "limit_s": limit_s, "leaves": leaves})
        assert (folder / builds.MODEL).stat().st_size > 0
        if self._trouble:
            raise EngineError(self._trouble)


def test_the_engine_of_tensorrts_provider_is_built_apart_once_per_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetting, apart = Forgetting(monkeypatch), Apart(monkeypatch)
    options = EngineOptions(provider="tensorrt", fallback=True, max_batch=8, cache=tmp_path, build_limit_s=77.0)
    for tensors in (TENSORS, build.initial_tensors(SPEC, seed=1), TENSORS):
        OrtEngine(exported(SPEC), tensors, options)
    asked = [special[0] for providers, special in forgetting.asked if ort.TENSORRT in providers]
    assert len(asked) == 3
    assert [order["special"][ort.TENSORRT] for order in apart.orders] == asked[:2]  # the third is in the cache
    assert {(o["module"], o["limit_s"], o["leaves"]) for o in apart.orders} == {
        ("export.engines.ort_build", 77.0, ort.BUILT)
    }
    assert apart.orders[0]["providers"] == list(ort.PROVIDERS["tensorrt"])


def test_a_build_that_comes_to_nothing_leaves_the_cpu_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Forgetting(monkeypatch)
    apart = Apart(monkeypatch, trouble="TensorRT built no engine: it took longer than 77 s")
    options = EngineOptions(provider="tensorrt", fallback=True, cache=tmp_path)
    for _ in range(2):
        engine = OrtEngine(exported(SPEC), TENSORS, options)
        assert engine.provider == ort.CPU
        assert "longer than 77 s" in engine.degraded
    assert len(apart.orders) == 2
    with pytest.raises(EngineError, match="longer than 77 s"):
        OrtEngine(exported(SPEC), TENSORS, replace(options, fallback=False))


@pytest.mark.parametrize(
    ("providers", "said"), [([ort.CPU], ""), ([ort.TENSORRT, ort.CPU], ort.TENSORRT), ([ort.CPU, "X"], "X")]
)
def test_the_child_makes_the_session_that_is_ordered(tmp_path: Path, providers: list[str], said: str) -> None:
    if said in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has TensorRT")
    values = sidecar.read(exported(SPEC)).map.apply(TENSORS)
    (tmp_path / builds.MODEL).write_bytes(graphs.baked(exported(SPEC).read_bytes(), values))
    order = {"providers": providers, "special": {}, "threads": 1, "optimise": True}
    (tmp_path / builds.ORDER).write_text(json.dumps(order), encoding="utf-8")
    told: list[str] = []
    ordered = partial(
        builds.run, "export.engines.ort_build", tmp_path, leaves=ort.BUILT, limit_s=120.0, progress=told.append
    )
    if said:
        with pytest.raises(EngineError, match=f"built no engine.*{said}"):
            ordered()
    else:
        ordered()
    assert told == ["TensorRT's provider builds"]


def test_two_models_of_one_graph_never_share_a_cached_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's provider keys its cache by the graph alone; each model gets a folder of its own."""
    forgetting = Forgetting(monkeypatch)
    Apart(monkeypatch)
    options = EngineOptions(provider="tensorrt", fallback=True, precision="fp16", max_batch=8, cache=tmp_path)
    models = [TENSORS, build.initial_tensors(SPEC, seed=1), TENSORS]
    engines = [OrtEngine(exported(SPEC), tensors, options) for tensors in models]
    asked = [special[0] for providers, special in forgetting.asked if ort.TENSORRT in providers]
    folders = [special["trt_engine_cache_path"] for special in asked]
    assert folders[0] == folders[2] != folders[1]
    assert all(special["trt_profile_max_shapes"] == "acc:8x3x32,gyro:8x3x32,mask:8x2" for special in asked)
    assert all(special["trt_fp16_enable"] == "True" for special in asked)
    assert f"ort-{onnxruntime.__version__}_trt-100300_sm87_fp16_" in folders[0]
    x, mask = parity.noise(SPEC, 3, 0), np.ones((3, 2), np.float32)
    found = [engine.run(x, mask) for engine in engines]
    assert np.array_equal(found[0], found[2])
    assert not np.allclose(found[0], found[1])


def test_without_a_folder_nothing_is_cached_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    forgetting = Forgetting(monkeypatch)
    OrtEngine(exported(SPEC), TENSORS, EngineOptions(provider="tensorrt", fallback=True))
    assert forgetting.asked[0][1][0]["trt_engine_cache_enable"] == "False"


KEY = engine_cache.EngineKey(
    graph="a" * 64, model="b" * 64, ort="1.23.2", tensorrt="10.3.0", compute="87", precision="fp16", profile="x:1/1/8"
)


@pytest.mark.parametrize("field", ["graph", "model", "ort", "tensorrt", "compute", "precision", "profile"])
def test_everything_that_decides_what_an_engine_computes_is_in_its_key(field: str, tmp_path: Path) -> None:
    cache = engine_cache.EngineCache(tmp_path)
    other = replace(KEY, **{field: "0" + getattr(KEY, field)})
    cache.write(KEY, b"plan")
    assert cache.read(KEY) == b"plan"
    assert cache.read(other) is None
    assert cache.similar(other) == (b"plan" if field == "model" else None)


def test_weights_are_part_of_a_models_digest() -> None:
    one = {"w": np.arange(4, dtype=np.float32), "b": np.zeros(2, np.float32)}
    digests = {
        engine_cache.model_digest(b"graph", one),
        engine_cache.model_digest(b"grapf", one),
        engine_cache.model_digest(b"graph", {**one, "w": one["w"] + 1}),
        engine_cache.model_digest(b"graph", {**one, "w": one["w"].reshape(2, 2)}),
        engine_cache.model_digest(b"graph", {"v": one["w"], "b": one["b"]}),
    }
    assert len(digests) == 5
    assert engine_cache.model_digest(b"graph", dict(reversed(one.items()))) in digests


def test_a_damaged_engine_is_not_read_and_old_models_make_room(tmp_path: Path) -> None:
    cache = engine_cache.EngineCache(tmp_path, keep=2)
    keys = [replace(KEY, model=f"{i:064x}") for i in range(3)]
    for i, key in enumerate(keys):
        cache.write(key, bytes([i]) * 10)
        os.utime(tmp_path / key.path.parent, ns=(i, i))
    assert [cache.read(key) is None for key in keys] == [True, False, False]
    plan = tmp_path / keys[2].path / engine_cache.PLAN
    plan.write_bytes(plan.read_bytes()[:5])
    assert cache.read(keys[2]) is None
    assert cache.similar(keys[2]) == bytes([1]) * 10


def test_more_threads_say_the_same() -> None:
    x, mask = parity.noise(SPEC, 7, 0), np.ones((7, 2), np.float32)
    one, two = (OrtEngine(exported(SPEC), TENSORS, EngineOptions(threads=n)) for n in (1, 2))
    np.testing.assert_allclose(one.run(x, mask), two.with_tensors(TENSORS).run(x, mask), atol=1e-6)
    assert one.provider == ort.CPU


def test_it_needs_neither_torch_nor_onnx(tmp_path: Path) -> None:
    """A device that only predicts: the engine loads and runs in a process in which torch cannot be imported."""
    np.savez(tmp_path / "v.npz", **{n: s.params for n, s in TENSORS.items()})
    program = f"""
import sys
for name in ("torch", "onnx", "onnxscript"):
    sys.modules[name] = None  # an import of it fails
from pathlib import Path
import numpy as np
from edge_sdk.core import parity, registry
from edge_sdk.core.records import Segments
from edge_sdk.core.spec import FederationSpec
from export import sidecar
graph = Path({str(exported(SPEC))!r})
tensors = {{n: Segments(a) for n, a in np.load({str(tmp_path / "v.npz")!r}).items()}}
engine = registry.load("engines", "ort").open(graph, tensors).with_tensors(tensors)
spec = sidecar.read(graph).spec
parity.check_finite(engine, parity.noise(spec, 2, 0), rows=parity.masks(spec))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("plain", [True, False])
def test_later_sessions_say_the_same_with_and_without_the_optimiser(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    options = ort.session_options

    def note(threads: int, *, optimise: bool) -> onnxruntime.SessionOptions:
        asked.append(optimise)
        return options(threads, optimise=optimise)

    monkeypatch.setattr(OrtEngine, "_gains_nothing", lambda self: plain)
    monkeypatch.setattr(ort, "session_options", note)
    first = OrtEngine.open(exported(SPEC), TENSORS)
    other = build.initial_tensors(SPEC, seed=1)
    x = parity.noise(SPEC, 4, 0)
    again = first.with_tensors(other).with_tensors(TENSORS)
    assert asked == [True, not plain, not plain]
    parity.check(again, first, x, rows=parity.masks(SPEC), tolerance=1e-5)


def test_the_optimiser_is_left_out_only_where_it_is_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timed:
        """A session that takes so long on the test's clock."""

        def __init__(self, takes_ns: int) -> None:
            self.takes_ns = takes_ns

        def run(self, names: list[str], feeds: object) -> None:
            now[0] += self.takes_ns

    now = [0]
    engine = OrtEngine.open(exported(SPEC), TENSORS)
    monkeypatch.setattr(ort, "monotonic_ns", lambda: now[0])
    for optimised_ns, plain_ns, expected in ((100, 104, True), (100, 110, False), (100, 50, True)):
        engine.session = Timed(optimised_ns)
        monkeypatch.setattr(OrtEngine, "_made", lambda self, *, optimise, takes=plain_ns: Timed(takes))
        assert engine._gains_nothing() is expected

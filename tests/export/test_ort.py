"""ONNX Runtime: corrupt graphs, accelerators that are not there, and a device without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edge_sdk.core import parity
from edge_sdk.core.errors import EngineError
from edge_sdk.models import build
from export import sidecar
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


def test_an_accelerator_that_is_not_there_is_an_error() -> None:
    provider = "CUDAExecutionProvider"
    if provider in onnxruntime.get_available_providers() and ort._loads("libcuda.so.1"):
        pytest.skip("this machine has CUDA")
    with pytest.raises(EngineError, match=r"libcuda|onnxruntime-gpu"):
        OrtEngine(exported(SPEC), TENSORS, providers=(provider, ort.CPU))
    with pytest.raises(EngineError, match="Imaginary"):
        OrtEngine(exported(SPEC), TENSORS, providers=("ImaginaryExecutionProvider",))


def test_more_threads_say_the_same() -> None:
    x, mask = parity.noise(SPEC, 7, 0), np.ones((7, 2), np.float32)
    one, two = (OrtEngine(exported(SPEC), TENSORS, threads=n) for n in (1, 2))
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
    options = ort._options

    def note(threads: int, *, optimise: bool) -> onnxruntime.SessionOptions:
        asked.append(optimise)
        return options(threads, optimise=optimise)

    monkeypatch.setattr(OrtEngine, "_gains_nothing", lambda self: plain)
    monkeypatch.setattr(ort, "_options", note)
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

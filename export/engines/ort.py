"""ONNX Runtime: the engine of devices. Needs numpy and onnxruntime, no torch and no onnx.

New weights do not need a new export: the graph's initialisers are external, and a session over the same bytes takes
others (`SessionOptions.add_external_initializers`), in milliseconds. The running session is not touched.

ONNX Runtime falls back to the CPU without an error where an accelerator's libraries do not load, and claims to have a
GPU where there is none; the only truth is `session.get_providers()` afterwards, and it is compared with what was asked.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from edge_sdk.core.clock import monotonic_ns
from edge_sdk.core.errors import EngineError, ShapeMismatch
from edge_sdk.core.interfaces import Engine
from edge_sdk.core.records import Float32, ModelTensors
from export import sidecar
from export.sidecar import Sidecar

CPU = "CPUExecutionProvider"
LIBRARIES: Mapping[str, tuple[str, ...]] = {  # any one of them must load
    "CUDAExecutionProvider": ("libcuda.so.1",),
    "TensorrtExecutionProvider": ("libnvinfer.so.10", "libnvinfer.so.8"),
}
# TensorRT's engine cache is keyed by the graph without its weights: it would serve the old model after a swap, even
# where the environment turns it on.
OPTIONS: Mapping[str, dict[str, str]] = {"TensorrtExecutionProvider": {"trt_engine_cache_enable": "False"}}
_TRIALS = 9  # runs with and without the optimiser
_WORTH = 1.05  # the optimiser has to make a run faster by more than this
ERRORS = (
    state.EPFail, state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel,
    state.NotImplemented, state.RuntimeException, RuntimeError,
)  # fmt: skip


class OrtEngine(Engine):
    """A session over an exported graph with the weights of one model version.

    Args:
        graph: file that `export_onnx` wrote; its sidecar lies beside it.
        tensors: the model version.
        providers: in order of preference; the CPU has to be named where it may be used.
        threads: threads of one prediction.
    """

    def __init__(
        self, graph: Path, tensors: ModelTensors, *, providers: tuple[str, ...] = (CPU,), threads: int = 1
    ) -> None:  # fmt: skip
        description = sidecar.read(graph)
        probe(providers)
        data = sidecar.read_graph(graph, description)
        self._setup(description, data, providers=providers, threads=threads, plain=False)
        self._load(tensors)
        self._plain = providers == (CPU,) and self._gains_nothing()

    def _setup(
        self, description: Sidecar, data: bytes, *, providers: tuple[str, ...], threads: int, plain: bool
    ) -> None:  # fmt: skip
        self.info = description.info
        self._sidecar = description
        self._map = description.map
        self._bytes = data
        self._providers = providers
        self._threads = threads
        self._plain = plain  # sessions are made without the optimiser

    def _load(self, tensors: ModelTensors) -> None:
        # The session reads this memory for as long as it lives; it is ours alone.
        self._values = self._map.apply(tensors)
        self.session = self._made(optimise=not self._plain)
        self.provider = self.session.get_providers()[0]
        self._columns = tuple(enumerate(self.info.modalities))
        _check_inputs(self.session, self.info.modalities)

    @classmethod
    def open(cls, graph: Path, tensors: ModelTensors) -> OrtEngine:
        return cls(graph, tensors)

    def with_tensors(self, tensors: ModelTensors) -> OrtEngine:
        engine = object.__new__(type(self))  # shares graph, map and options: nothing is read or parsed again
        engine._setup(
            self._sidecar, self._bytes, providers=self._providers, threads=self._threads, plain=self._plain
        )  # fmt: skip
        engine._load(tensors)
        return engine

    def _made(self, *, optimise: bool) -> ort.InferenceSession:
        return _session(
            self._bytes, self._values, providers=self._providers, threads=self._threads, optimise=optimise
        )  # fmt: skip

    def _gains_nothing(self) -> bool:
        """Says whether this graph runs as fast without the optimiser, which takes nearly half of making a session.

        Found out once, when the first engine is opened, on one window: it helps convolutions over images a lot, and
        small networks over time series not at all.
        """
        feeds = {"mask": np.ones((1, len(self.info.modalities)), np.float32)}
        feeds |= {m: np.zeros((1, *self.info.shapes[m]), np.float32) for m in self.info.modalities}
        sessions = (self.session, self._made(optimise=False))
        best_ns = [2**62, 2**62]
        for _ in range(_TRIALS):
            for i, session in enumerate(sessions):  # in turn: what disturbs the machine disturbs both
                start_ns = monotonic_ns()
                session.run(["logits"], feeds)
                best_ns[i] = min(best_ns[i], monotonic_ns() - start_ns)
        return best_ns[1] <= _WORTH * best_ns[0]

    def run(self, x: Mapping[str, Float32], mask: Float32) -> Float32:
        feeds: dict[str, Float32] = {"mask": mask}
        for column, name in self._columns:
            feeds[name] = x[name] if name in x else self._absent(name, column, mask)
        try:
            logits: Float32 = self.session.run(["logits"], feeds)[0]
        except ERRORS as error:
            raise ShapeMismatch(f"the engine refuses its input: {error}") from error
        return logits

    def _absent(self, name: str, column: int, mask: Float32) -> Float32:
        """Returns zeros for a modality that was not given, which no row may then claim to have."""
        if mask[:, column].any():
            raise ShapeMismatch(f"modality {name!r} was not given, but the mask says that it is there")
        return np.zeros((len(mask), *self.info.shapes[name]), np.float32)


def probe(providers: tuple[str, ...]) -> None:
    """Raises EngineError, with the library that is missing, if a provider cannot work on this machine."""
    for provider in providers:
        names = LIBRARIES.get(provider, ())
        if names and not any(_loads(name) for name in names):
            raise EngineError(f"{provider} needs {' or '.join(names)}, which does not load here; use {CPU}")
        if provider not in ort.get_available_providers():
            raise EngineError(
                f"this onnxruntime has no {provider}; it has {', '.join(ort.get_available_providers())};"
                " onnxruntime-gpu brings the others"
            )


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _options(threads: int, *, optimise: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what matters comes back as an exception
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the cores alone
    return options


def _session(
    data: bytes, values: Mapping[str, Float32], *, providers: tuple[str, ...], threads: int, optimise: bool
) -> ort.InferenceSession:  # fmt: skip
    options = _options(threads, optimise=optimise)
    named = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()}
    options.add_external_initializers(list(named), list(named.values()))
    try:
        session = ort.InferenceSession(
            data, options, providers=list(providers), provider_options=[OPTIONS.get(p, {}) for p in providers]
        )
    except ERRORS as error:
        raise EngineError(f"onnxruntime {ort.__version__} cannot load the graph: {error}") from error
    dropped = [p for p in providers if p not in session.get_providers()]
    if dropped:
        raise EngineError(f"onnxruntime dropped {', '.join(dropped)} and would run on {session.get_providers()[0]}")
    return session


def _check_inputs(session: ort.InferenceSession, modalities: tuple[str, ...]) -> None:
    found = [i.name for i in session.get_inputs()]
    if sorted(found) != sorted((*modalities, "mask")) or [o.name for o in session.get_outputs()] != ["logits"]:
        raise EngineError(
            f"expected a graph with inputs {', '.join(modalities)}, mask and output logits, found {found}"
        )


__all__ = ["CPU", "OrtEngine", "probe"]

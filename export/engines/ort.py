"""ONNX Runtime: the engine of devices. Needs numpy and onnxruntime, no torch and no onnx.

New weights do not need a new export: the graph's initialisers are external, and a session over the same bytes takes
others (`SessionOptions.add_external_initializers`), in milliseconds. The running session is not touched.

ONNX Runtime falls back to the CPU without an error where an accelerator's libraries do not load, and claims to have a
GPU where there is none; the only truth is `session.get_providers()` afterwards, and it is compared with what was asked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from edge_sdk.core.clock import monotonic_ns
from edge_sdk.core.errors import EngineError, ShapeMismatch
from edge_sdk.core.interfaces import DEFAULT_OPTIONS, Engine, EngineOptions
from edge_sdk.core.records import Float32, ModelTensors
from export import builds, cuda, engine_cache, sidecar
from export.sidecar import Sidecar

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
PROVIDERS: Mapping[str, tuple[str, ...]] = {  # of EngineOptions → what is asked of ONNX Runtime, best first
    "cpu": (CPU,),
    "cuda": (CUDA, CPU),
    "tensorrt": (TENSORRT, CUDA, CPU),
}
NONE: Mapping[str, dict[str, str]] = {}
LIBRARIES: Mapping[str, tuple[str, ...]] = {CUDA: ("libcuda.so.1",), TENSORRT: cuda.NVINFER}  # any one must load
BUILT = "built"  # file of a cache folder that was filled
_TRIALS = 9  # runs with and without the optimiser
_WORTH = 1.05  # the optimiser has to make a run faster by more than this
ERRORS = (
    state.EPFail, state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel,
    state.NotImplemented, state.RuntimeException, RuntimeError,
)  # fmt: skip

log = logging.getLogger(__name__)


class OrtEngine(Engine):
    """A session over an exported graph with the weights of one model version.

    Args:
        graph: file that `export_onnx` wrote; its sidecar lies beside it.
        tensors: the model version.
        options: what it is to run on; with `fallback` the CPU takes over, and `degraded` says why.
    """

    def __init__(self, graph: Path, tensors: ModelTensors, options: EngineOptions = DEFAULT_OPTIONS) -> None:
        if options.provider not in PROVIDERS:
            raise EngineError(f"ort knows no provider {options.provider!r}; it knows {', '.join(PROVIDERS)}")
        if options.precision != "fp32" and options.provider != "tensorrt":
            raise EngineError(f"precision {options.precision} needs provider tensorrt, found {options.provider}")
        description = sidecar.read(graph)
        self._setup(description, sidecar.read_graph(graph, description), options=options, plain=False)
        try:
            probe(self._providers)
            self._load(tensors)
        except EngineError as error:
            if not options.fallback or self._providers == (CPU,):
                raise
            self._fall_back(str(error))
            self._load(tensors)
        self._plain = self._providers == (CPU,) and self._gains_nothing()

    def _setup(self, description: Sidecar, data: bytes, *, options: EngineOptions, plain: bool) -> None:
        self.info = description.info
        self._sidecar = description
        self._map = description.map
        self._bytes = data
        self._options = options
        self._providers = PROVIDERS[options.provider]
        self._plain = plain  # sessions are made without the optimiser

    def _fall_back(self, reason: str) -> None:
        """Takes the CPU in place of what was asked for."""
        self.degraded = f"runs on the CPU, not on {self._options.provider}: {reason}"
        self._providers = PROVIDERS["cpu"]

    def _load(self, tensors: ModelTensors) -> None:
        # The session reads this memory for as long as it lives; it is ours alone.
        self._values = self._map.apply(tensors)
        self.session = self._made(optimise=not self._plain)
        self.provider = self.session.get_providers()[0]
        self._columns = tuple(enumerate(self.info.modalities))
        _check_inputs(self.session, self.info.modalities)

    @classmethod
    def open(cls, graph: Path, tensors: ModelTensors, options: EngineOptions = DEFAULT_OPTIONS) -> OrtEngine:
        return cls(graph, tensors, options)

    @classmethod
    def takes_long(cls, options: EngineOptions) -> bool:
        return options.provider == "tensorrt"

    def with_tensors(self, tensors: ModelTensors) -> OrtEngine:
        engine = object.__new__(type(self))  # shares graph, map and options: nothing is read or parsed again
        engine._setup(self._sidecar, self._bytes, options=self._options, plain=self._plain)
        engine.degraded, engine._providers = self.degraded, self._providers
        engine._load(tensors)
        return engine

    def _made(self, *, optimise: bool) -> ort.InferenceSession:
        options = session_options(self._options.threads, optimise=optimise)
        if TENSORRT in self._providers:
            special, model = {TENSORRT: self._tensorrt()}, self._baked()
            self._fill_cache(model, special, optimise=optimise)
            return session_of(model, options, self._providers, special)
        named = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in self._values.items()}
        options.add_external_initializers(list(named), list(named.values()))
        return session_of(self._bytes, options, self._providers)

    def _fill_cache(self, model: bytes, special: Mapping[str, dict[str, str]], *, optimise: bool) -> None:
        """Has TensorRT's provider build its engine in a process of its own, unless this content was built before.

        The session that is made afterwards finds the engine in its cache. Without a cache there is no way to hand it
        over: the provider builds here, beside the predictions and without a limit.
        """
        cache = special[TENSORRT].get("trt_engine_cache_path")
        if cache is None or (Path(cache) / BUILT).exists():
            return
        order = {
            "providers": self._providers, "special": special, "threads": self._options.threads, "optimise": optimise,
        }  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="edge-sdk-build-") as name:
            (Path(name) / builds.MODEL).write_bytes(model)
            (Path(name) / builds.ORDER).write_text(json.dumps(order), encoding="utf-8")
            builds.run(
                "export.engines.ort_build", Path(name), leaves=BUILT, limit_s=self._options.build_limit_s,
                progress=lambda text: log.info("building the engine: %s", text),
            )  # fmt: skip
        (Path(cache) / BUILT).touch()

    def _baked(self) -> bytes:
        """Returns the graph with its weights inside: TensorRT's parser reads those of the file."""
        try:
            from export import graphs
        except ImportError as error:
            raise EngineError(f"provider tensorrt needs the package onnx: {error}; install edge-sdk[train]") from error
        return graphs.baked(self._bytes, self._values)

    def _tensorrt(self) -> dict[str, str]:
        """Returns the options of TensorRT's provider; its engine cache gets a folder for exactly this content."""
        profile = engine_cache.profile_of(self.info, self._options.max_batch)
        least, usual, most = (_shapes(profile, i) for i in range(3))
        options = {
            "trt_profile_min_shapes": least,
            "trt_profile_opt_shapes": usual,
            "trt_profile_max_shapes": most,
            "trt_fp16_enable": str(self._options.precision == "fp16"),
            "trt_engine_cache_enable": "False",  # its own key leaves the weights out; the environment may turn it on
        }
        if self._options.cache is not None:
            cache = engine_cache.EngineCache(self._options.cache)
            options["trt_engine_cache_enable"] = "True"
            options["trt_engine_cache_path"] = str(cache.folder(self._key(profile)))
            options["trt_timing_cache_enable"] = "True"  # how fast kernels are: the same for every model
            options["trt_timing_cache_path"] = str(self._options.cache)
        return options

    def _key(self, profile: engine_cache.Profile) -> engine_cache.EngineKey:
        return engine_cache.EngineKey(
            graph=hashlib.sha256(self._bytes).hexdigest(),
            model=engine_cache.model_digest(self._bytes, self._values),
            ort=ort.__version__,
            tensorrt=cuda.tensorrt_version(),
            compute=cuda.compute_capability(),
            precision=self._options.precision,
            profile=engine_cache.profile_text(profile),
        )

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
        if names and cuda.loads(names) is None:
            raise EngineError(f"{provider} needs {' or '.join(names)}, which does not load here; use {CPU}")
        if provider not in ort.get_available_providers():
            raise EngineError(
                f"this onnxruntime has no {provider}; it has {', '.join(ort.get_available_providers())};"
                " onnxruntime-gpu brings the others"
            )


def session_options(threads: int, *, optimise: bool) -> ort.SessionOptions:
    """Returns options for one prediction at a time that leaves the cores to others."""
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what matters comes back as an exception
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the cores alone
    return options


def session_of(
    data: bytes, options: ort.SessionOptions, providers: tuple[str, ...], special: Mapping[str, dict[str, str]] = NONE
) -> ort.InferenceSession:  # fmt: skip
    """Returns a session that really has all of these providers.

    Raises:
        EngineError: the graph is refused, or a provider was dropped without an error.
    """
    try:
        session = ort.InferenceSession(
            data, options, providers=list(providers), provider_options=[special.get(p, {}) for p in providers]
        )
    except ERRORS as error:
        raise EngineError(f"onnxruntime {ort.__version__} cannot load the graph: {error}") from error
    dropped = [p for p in providers if p not in session.get_providers()]
    if dropped:
        raise EngineError(f"onnxruntime dropped {', '.join(dropped)} and would run on {session.get_providers()[0]}")
    return session


def _shapes(profile: engine_cache.Profile, which: int) -> str:
    return ",".join(f"{name}:{engine_cache.shape_text(shapes[which])}" for name, shapes in profile.items())


def _check_inputs(session: ort.InferenceSession, modalities: tuple[str, ...]) -> None:
    found = [i.name for i in session.get_inputs()]
    if sorted(found) != sorted((*modalities, "mask")) or [o.name for o in session.get_outputs()] != ["logits"]:
        raise EngineError(
            f"expected a graph with inputs {', '.join(modalities)}, mask and output logits, found {found}"
        )


__all__ = ["BUILT", "CPU", "CUDA", "PROVIDERS", "TENSORRT", "OrtEngine", "probe", "session_of", "session_options"]

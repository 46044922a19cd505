"""TensorRT itself: an engine is built once for a graph, and refitted with the weights of every new version.

A refit takes milliseconds where a build takes minutes. Every version gets an engine object of its own, deserialised
from the same plan, so that the one that serves is never touched. Some releases of TensorRT drop biases on a refit
without an error: what comes out is compared with ONNX Runtime on the CPU, and where it differs the engine is built.

Written against the documented API of TensorRT 8.6 to 10. It has not met a real TensorRT yet; the tests run it against
a stand-in that says nothing about kernels, speed or memory.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.core import parity
from edge_sdk.core.errors import EngineError, ParityError, ShapeMismatch
from edge_sdk.core.interfaces import DEFAULT_OPTIONS, Engine, EngineOptions
from edge_sdk.core.records import Float32, ModelTensors
from export import cuda, engine_cache, graphs, sidecar
from export.engines.ort import OrtEngine
from export.sidecar import Sidecar
from export.to_tensorrt import Order, build_plan

TOLERANCES: Mapping[str, float] = {"fp32": 1e-3, "fp16": 2e-2}  # of a refit, relative to the logits
_PROBES = 4  # windows that a refit is checked with

log = logging.getLogger(__name__)


class TensorRtEngine(Engine):
    """A TensorRT engine with the weights of one model version.

    Args:
        graph: file that `export_onnx` wrote; its sidecar lies beside it.
        tensors: the model version.
        options: precision, largest batch, where built engines are kept, how long a build may take.
    """

    provider = "TensorRT"

    def __init__(self, graph: Path, tensors: ModelTensors, options: EngineOptions = DEFAULT_OPTIONS) -> None:
        if options.precision not in TOLERANCES:
            raise EngineError(f"tensorrt runs {' or '.join(TOLERANCES)}, not {options.precision}")
        description = sidecar.read(graph)
        data = sidecar.read_graph(graph, description)
        description.map.apply(tensors)  # refuses other models before minutes are spent on them
        self._setup(description, data, options, library())
        self._truth = OrtEngine(graph, tensors)
        values = description.map.apply(tensors)
        key = self._key(values)
        cache = None if options.cache is None else engine_cache.EngineCache(options.cache)
        if not self._from_cache(cache, key, values):
            self._built(values, cache, key)

    def _setup(self, description: Sidecar, data: bytes, options: EngineOptions, trt: Any) -> None:
        self.info = description.info
        self._sidecar = description
        self._bytes = data
        self._options = options
        self._trt = trt
        self._profile = engine_cache.profile_of(self.info, options.max_batch)
        self._lock = threading.Lock()  # an execution context is for one thread at a time

    @classmethod
    def open(cls, graph: Path, tensors: ModelTensors, options: EngineOptions = DEFAULT_OPTIONS) -> TensorRtEngine:
        return cls(graph, tensors, options)

    @classmethod
    def takes_long(cls, options: EngineOptions) -> bool:
        return True

    def with_tensors(self, tensors: ModelTensors) -> TensorRtEngine:
        values = self._sidecar.map.apply(tensors)
        engine = object.__new__(type(self))
        engine._setup(self._sidecar, self._bytes, self._options, self._trt)
        engine._truth = self._truth.with_tensors(tensors)
        try:
            engine._refitted(self._plan, values)
        except EngineError as error:
            log.warning("a refit came to nothing, the engine is built anew: %s", error)
            cache = None if self._options.cache is None else engine_cache.EngineCache(self._options.cache)
            engine._built(values, cache, self._key(values))
        return engine

    def run(self, x: Mapping[str, Float32], mask: Float32) -> Float32:
        inputs = {"mask": cuda.contiguous(mask)}
        for column, name in enumerate(self.info.modalities):
            inputs[name] = cuda.contiguous(x[name]) if name in x else self._absent(name, column, mask)
        for name, array in inputs.items():
            expected = self._profile[name][2][1:]
            if array.shape[1:] != expected or len(array) != len(mask):
                raise ShapeMismatch(
                    f"the engine refuses its input: {name} has shape {array.shape}, built for (B, {expected})"
                )
        step = self._options.max_batch
        with self._lock:
            parts = [
                self._execute({name: a[i : i + step] for name, a in inputs.items()}) for i in range(0, len(mask), step)
            ]
        return np.concatenate(parts)

    def _absent(self, name: str, column: int, mask: Float32) -> Float32:
        if mask[:, column].any():
            raise ShapeMismatch(f"modality {name!r} was not given, but the mask says that it is there")
        return np.zeros((len(mask), *self.info.shapes[name]), np.float32)

    def _execute(self, inputs: Mapping[str, Float32]) -> Float32:
        for name, array in inputs.items():
            if not self._context.set_input_shape(name, array.shape):
                raise ShapeMismatch(f"the engine refuses its input: {name} {array.shape} is outside its profile")
            self._buffers[name].put(array, self._stream)
        if not self._context.execute_async_v3(self._stream.handle):
            raise EngineError("TensorRT could not run the engine")
        logits = np.empty((len(inputs["mask"]), len(self.info.classes)), np.float32)
        self._buffers["logits"].get(logits, self._stream)
        self._stream.wait()
        return logits

    def _key(self, values: Mapping[str, Float32]) -> engine_cache.EngineKey:
        return engine_cache.EngineKey(
            graph=hashlib.sha256(self._bytes).hexdigest(),
            model=engine_cache.model_digest(self._bytes, values),
            ort="",
            tensorrt=self._trt.__version__,
            compute=cuda.compute_capability(),
            precision=self._options.precision,
            profile=engine_cache.profile_text(self._profile),
        )

    def _from_cache(
        self, cache: engine_cache.EngineCache | None, key: engine_cache.EngineKey, values: Mapping[str, Float32]
    ) -> bool:
        """Takes this very engine from the cache, or one of other weights and refits it; False: there is none of use."""
        if cache is None:
            return False
        try:
            plan = cache.read(key)
            if plan is not None:
                self._load(plan)
                self._prove()
                return True
            plan = cache.similar(key)
            if plan is not None:
                self._refitted(plan, values)
                return True
        except EngineError as error:
            log.warning("a cached engine is of no use and is built anew: %s", error)
        return False

    def _built(
        self, values: Mapping[str, Float32], cache: engine_cache.EngineCache | None, key: engine_cache.EngineKey
    ) -> None:
        order = Order(self._profile, self._options.precision)
        plan = build_plan(
            graphs.baked(self._bytes, values), order, limit_s=self._options.build_limit_s,
            progress=lambda text: log.info("building the engine: %s", text),
        )  # fmt: skip
        self._load(plan)
        self._prove()
        if cache is not None:
            cache.write(key, plan)

    def _load(self, plan: bytes) -> None:
        """Makes an engine object of a plan and the memory it works in."""
        runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"TensorRT {self._trt.__version__} cannot read the engine: it is damaged, or was built on another board"
                " or by another release; build it here"
            )
        found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        if found != {*self._profile, "logits"}:
            raise EngineError(f"the engine has inputs and outputs {sorted(found)}: it was built from another graph")
        context = engine.create_execution_context()
        if context is None:
            raise EngineError("TensorRT has no memory for another engine")
        self._plan, self._engine, self._context = plan, engine, context
        self._stream = cuda.Stream()
        sizes = {name: int(np.prod(most)) for name, (_, _, most) in self._profile.items()}
        sizes["logits"] = self._options.max_batch * len(self.info.classes)
        self._buffers: dict[str, cuda.Buffer] = {}
        weakref.finalize(self, _free, self._buffers, self._stream)
        for name, size in sizes.items():
            self._buffers[name] = cuda.Buffer(4 * size)
            context.set_tensor_address(name, self._buffers[name].address)

    def _refitted(self, plan: bytes, values: Mapping[str, Float32]) -> None:
        """Makes an engine object of a plan and gives it other weights.

        Raises:
            EngineError: it cannot be refitted.
            ParityError: it can, but says something else than ONNX Runtime with these weights.
        """
        self._load(plan)
        refitter = self._trt.Refitter(self._engine, self._trt.Logger(self._trt.Logger.ERROR))
        for name in refitter.get_all_weights():
            if name in values and not refitter.set_named_weights(name, self._trt.Weights(values[name])):
                raise EngineError(f"TensorRT does not take the weights {name!r}")
        missing = refitter.get_missing_weights()
        if missing or not refitter.refit_cuda_engine():
            raise EngineError(f"TensorRT cannot refit the engine; it lacks {missing or 'nothing that it names'}")
        self._prove()

    def _prove(self) -> None:
        """Compares the engine with ONNX Runtime on the CPU; the weights of both should be the same."""
        spec = self._sidecar.spec
        tolerance = TOLERANCES[self._options.precision]
        report = parity.compare(
            self, self._truth, parity.noise(spec, _PROBES, 0), rows=parity.masks(spec), tolerance=tolerance
        )
        if not report.ok:
            raise ParityError(
                f"TensorRT says something else than ONNX Runtime with the same weights: off by {report.max_rel:.3g} of"
                f" the logits, {tolerance:g} is allowed"
            )


def library() -> Any:
    """Returns the package tensorrt; EngineError if it is not here."""
    try:
        import tensorrt
    except ImportError as error:
        raise EngineError(
            f"the Python package tensorrt is missing ({error}); JetPack has it as python3-libnvinfer, visible in an"
            " environment made with --system-site-packages"
        ) from error
    return tensorrt


def _free(buffers: Mapping[str, cuda.Buffer], stream: cuda.Stream) -> None:
    for buffer in buffers.values():
        buffer.close()
    stream.close()


__all__ = ["TOLERANCES", "TensorRtEngine", "library"]

"""A stand-in for NVIDIA's package: the calls that `export` makes, with ONNX Runtime in place of kernels.

It shows that the control flow is right and nothing else: no kernel, no speed, no memory of a GPU. What a test wants to
go wrong is named in TENSORRT_STAND_IN, and the board that engines are built for and read on in TENSORRT_BOARD.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

__version__ = "10.3.0"


def _wrong() -> str:
    return os.environ.get("TENSORRT_STAND_IN", "")


def _board() -> str:
    return os.environ.get("TENSORRT_BOARD", "sm87")


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Logger(ILogger):
    def __init__(self, severity: int) -> None:
        self.severity = severity

    def log(self, severity: int, text: str) -> None:
        """Says nothing."""


class IProgressMonitor:
    """Base of what is told how far a build is."""


class NetworkDefinitionCreationFlag:
    EXPLICIT_BATCH = 0


class MemoryPoolType:
    WORKSPACE = "workspace"


class BuilderFlag:
    FP16, INT8, REFIT, TF32 = "fp16", "int8", "refit", "tf32"


class Weights:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array


class _Error:
    def __init__(self, node: int, text: str) -> None:
        self._node, self._text = node, text

    def node(self) -> int:
        return self._node

    def desc(self) -> str:
        return self._text


class _Network:
    model = b""


class OnnxParser:
    def __init__(self, network: _Network, logger: Any) -> None:
        self._network = network
        self._errors: list[_Error] = []

    def parse(self, data: bytes) -> bool:
        proto = onnx.ModelProto.FromString(data)
        assert not any(i.data_location == onnx.TensorProto.EXTERNAL for i in proto.graph.initializer)
        unknown = _wrong().partition("unsupported ")[2]
        self._errors = [_Error(i, "no importer") for i, n in enumerate(proto.graph.node) if n.op_type == unknown]
        self._network.model = data
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, i: int) -> _Error:
        return self._errors[i]


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self.shapes[name] = (least, usual, most)


class _Config:
    progress_monitor: Any = None

    def __init__(self) -> None:
        self.flags = {BuilderFlag.TF32}
        self.profile = _Profile()

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        assert size > 0

    def add_optimization_profile(self, profile: _Profile) -> None:
        self.profile = profile

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)


class Builder:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> _Network:
        assert flags == 0  # as release 10 wants it
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytearray | None:
        with Path(os.environ["TENSORRT_BUILDS"]).open("a") as builds:
            builds.write(f"build {os.getpid()} {os.nice(0)}\n")
        config.progress_monitor.phase_start("Building", None, 2)
        config.progress_monitor.step_complete("Building", 0)
        if _wrong() == "hang":
            time.sleep(600)
        if _wrong() == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if _wrong() == "memory":
            raise MemoryError("host")
        if _wrong() == "nothing":
            self._logger.log(ILogger.ERROR, "Could not find any implementation for node: out of memory")
            return None
        if _wrong() == "crash":
            raise RuntimeError("the vendor's library is unwell")
        config.progress_monitor.step_complete("Building", 1)
        config.progress_monitor.phase_finish("Building")
        head = {"board": _board(), "flags": sorted(config.flags), "shapes": config.profile.shapes}
        head["digest"] = hashlib.sha256(network.model).hexdigest()
        return bytearray(json.dumps(head).encode() + b"\n" + network.model)


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        head, _, model = plan.partition(b"\n")
        try:
            told = json.loads(head)
        except ValueError:
            return None
        if told["board"] != _board() or told["digest"] != hashlib.sha256(model).hexdigest():
            return None
        return _Engine(told, onnx.ModelProto.FromString(model))


class _Engine:
    made: ClassVar[int] = 0

    def __init__(self, told: dict[str, Any], proto: onnx.ModelProto) -> None:
        self.told, self.proto = told, proto
        self._names = [i.name for i in proto.graph.input] + [o.name for o in proto.graph.output]
        self.num_io_tensors = len(self._names)
        self.load()
        _Engine.made += 1

    def load(self) -> None:
        self.session = onnxruntime.InferenceSession(self.proto.SerializeToString(), providers=["CPUExecutionProvider"])

    def get_tensor_name(self, i: int) -> str:
        return self._names[i]

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.told["shapes"][name]
        self._shapes[name] = shape
        return all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if _wrong() == "cannot run":
            return False
        feeds = {name: _memory(self._addresses[name], shape).copy() for name, shape in self._shapes.items()}
        logits = self._engine.session.run(["logits"], feeds)[0]
        _memory(self._addresses["logits"], logits.shape)[...] = logits
        return True


def _memory(address: int, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * size).from_address(address)).reshape(shape)


class Refitter:
    def __init__(self, engine: _Engine, logger: Any) -> None:
        self._engine = engine
        self._initializers = {i.name: i for i in engine.proto.graph.initializer if i.data_type == 1}
        self._set: dict[str, np.ndarray] = {}

    def get_all_weights(self) -> list[str]:
        return sorted(self._initializers)

    def get_missing_weights(self) -> list[str]:
        return []

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        assert weights.array.shape == tuple(self._initializers[name].dims)
        if not (_wrong() == "drops biases" and weights.array.ndim == 1):
            self._set[name] = weights.array
        return True

    def refit_cuda_engine(self) -> bool:
        if _wrong() == "cannot refit" or BuilderFlag.REFIT not in self._engine.told["flags"]:
            return False
        for name, array in self._set.items():
            self._initializers[name].CopyFrom(numpy_helper.from_array(array, name))
        self._engine.load()
        return True

"""From a graph to a TensorRT engine: built in a process of its own, with progress and a time limit.

The child (`export.builds`) is this module: it is handed a folder with `model.onnx` and `order.json`, and leaves
`engine.plan`.

Written against the documented API of TensorRT 8.6 to 10 (https://docs.nvidia.com/deeplearning/tensorrt/latest/
inference-library/python-api-docs.html). It has not met a real TensorRT yet; the tests run it against a stand-in.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from edge_sdk.core.errors import EngineError
from edge_sdk.core.interfaces import GraphInfo
from edge_sdk.core.records import ModelTensors
from edge_sdk.core.spec import FederationSpec
from export import builds, sidecar
from export.builds import MODEL, ORDER, Progress, silent
from export.engine_cache import PLAN, Profile, profile_of

if TYPE_CHECKING:  # torch: the child of a build has no use for it
    from edge_sdk.learn.records import Needs

WORKSPACE_MB = 512  # scratch memory of a kernel; small boards share theirs with everything else
_TAIL = 600  # characters of what TensorRT said that are repeated


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be built."""

    profile: Profile
    precision: str  # "fp32" | "fp16" | "int8" (a graph that is quantised already)
    workspace_mb: int = WORKSPACE_MB


def build_plan(model: bytes, order: Order, *, limit_s: float, progress: Progress = silent) -> bytes:
    """Returns a built engine.

    Args:
        model: ONNX file with the weights inside.
        order: shapes and precision.
        limit_s: after which the build is stopped.
        progress: is told how far it is.

    Raises:
        EngineError: an operator is not supported, memory or time ran out, or TensorRT is not there.
    """
    with tempfile.TemporaryDirectory(prefix="edge-sdk-build-") as name:
        folder = Path(name)
        (folder / MODEL).write_bytes(model)
        (folder / ORDER).write_text(json.dumps(asdict(order)), encoding="utf-8")
        builds.run("export.to_tensorrt", folder, leaves=PLAN, limit_s=limit_s, progress=progress)
        return (folder / PLAN).read_bytes()


def export_plan(
    spec: FederationSpec,
    needs: Needs,
    tensors: ModelTensors,
    path: Path,
    *,
    precision: str = "fp32",
    max_batch: int = 64,
    graph: Path | None = None,
    limit_s: float = 1800.0,
    progress: Progress = silent,
) -> GraphInfo:
    """Writes an engine for this board as a file.

    Args:
        spec: the federation.
        needs: what its method needs of the model.
        tensors: the version.
        path: file to write.
        precision: "fp32" or "fp16".
        max_batch: rows that the engine takes at once.
        graph: an exported graph of this federation, which saves exporting it again.
        limit_s: after which the build is stopped.
        progress: is told how far it is.
    """
    from export.to_onnx import export_standalone  # torch: the child of a build has no use for it

    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / MODEL
        info = export_standalone(spec, needs, tensors, plain, graph=graph)
        order = Order(profile_of(info, max_batch), precision)
        sidecar.replace(path, build_plan(plain.read_bytes(), order, limit_s=limit_s, progress=progress))
    return info


def main(folder: Path) -> int:
    """Builds what the folder orders; the child's side."""
    return builds.serve(partial(_ordered, folder))


def _ordered(folder: Path) -> None:
    plain = json.loads((folder / ORDER).read_text(encoding="utf-8"))
    profile = {name: (tuple(a), tuple(b), tuple(c)) for name, (a, b, c) in plain["profile"].items()}
    order = Order(profile, plain["precision"], plain["workspace_mb"])
    try:
        (folder / PLAN).write_bytes(_build((folder / MODEL).read_bytes(), order))
    except ImportError as error:
        raise EngineError(
            f"the Python package tensorrt is missing ({error}); JetPack has it as python3-libnvinfer"
        ) from error


def _build(model: bytes, order: Order) -> bytes:
    import tensorrt as trt

    ten = int(trt.__version__.split(".")[0]) >= 10
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0 if ten else 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    builds.say(progress="parsing")
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise EngineError(_refused(model, parser))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order.workspace_mb << 20)
    config.add_optimization_profile(_profile(builder, order.profile))
    if order.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # ten bits of mantissa do not pass for float32
    else:
        config.set_flag(trt.BuilderFlag.FP16)
    if order.precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    else:
        config.set_flag(trt.BuilderFlag.REFIT)  # the weights of quantised graphs are not refitted: they are built anew
    if ten:
        config.progress_monitor = _monitor(trt)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = "; ".join(logger.errors)[-_TAIL:] or "without a reason"
        raise EngineError(f"the build failed: {said}")
    return bytes(plan)


def _profile(builder: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for name, (least, usual, most) in profile.items():
        made.set_shape(name, least, usual, most)
    return made


def _refused(model: bytes, parser: Any) -> str:
    """Returns which operators TensorRT's parser does not take."""
    nodes = onnx.ModelProto.FromString(model).graph.node
    texts = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        node = error.node()
        where = f"operator {nodes[node].op_type} ({nodes[node].name}): " if 0 <= node < len(nodes) else ""
        texts.append(f"{where}{error.desc()}")
    return "the graph is not supported: " + ("; ".join(texts) or "without a reason")


def _logger(trt: Any) -> Any:
    """Returns a logger that keeps errors, made here because its base class is TensorRT's."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(text)

    return Logger()


def _monitor(trt: Any) -> Any:
    """Returns what TensorRT tells how far it is."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            builds.say(progress=f"{phase_name} {step + 1}/{self._steps.get(phase_name, 0)}")
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

__all__ = ["WORKSPACE_MB", "Order", "Progress", "build_plan", "export_plan", "main", "silent"]

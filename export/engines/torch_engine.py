"""torch itself behind the engine interface: the reference that other engines are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from edge_sdk.core.errors import EngineError, ShapeMismatch
from edge_sdk.core.interfaces import DEFAULT_OPTIONS, Engine, EngineOptions
from edge_sdk.core.records import Float32, ModelTensors
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn import params
from edge_sdk.learn.records import Needs
from edge_sdk.models import build
from export import sidecar

NO_NEEDS = Needs()


class TorchEngine(Engine):
    """The federation's model in evaluation mode with the weights of one model version.

    Args:
        spec: the federation.
        needs: what the method needs of the model.
        tensors: the model version; modules that the forward pass does not read may be missing.
        options: the CPU or CUDA; with `fallback` the CPU takes over, and `degraded` says why.
    """

    def __init__(
        self, spec: FederationSpec, needs: Needs, tensors: ModelTensors, options: EngineOptions = DEFAULT_OPTIONS
    ) -> None:
        self._spec, self._needs, self._options = spec, needs, options
        self.degraded = _trouble(options)
        self._device = torch.device("cpu" if self.degraded else options.provider)
        self.provider = "torch" if self._device.type == "cpu" else f"torch {self._device.type}"
        self._model = build.build(spec, needs)
        self.info = sidecar.graph_info(spec, params.layout_digest(params.model_layout(self._model.named())))
        missing = [m for m in self._model.named() if m not in tensors and not m.startswith("head.")]
        if missing:
            raise ShapeMismatch(f"modules {', '.join(missing)} are missing")
        params.load(self._model.named(), tensors)
        self._model.to(self._device).eval()

    @classmethod
    def open(cls, graph: Path, tensors: ModelTensors, options: EngineOptions = DEFAULT_OPTIONS) -> TorchEngine:
        description = sidecar.read(graph)
        return cls(description.spec, Needs(**description.needs), tensors, options)

    def with_tensors(self, tensors: ModelTensors) -> TorchEngine:
        return TorchEngine(self._spec, self._needs, tensors, self._options)

    def run(self, x: Mapping[str, Float32], mask: Float32) -> Float32:
        for column, name in enumerate(self.info.modalities):
            if name not in x and mask[:, column].any():
                raise ShapeMismatch(f"modality {name!r} was not given, but the mask says that it is there")
        try:
            with torch.inference_mode():
                there = {m: _tensor(a).to(self._device) for m, a in x.items()}
                logits = self._model(there, _tensor(mask).to(self._device)).cpu()
        except RuntimeError as error:
            raise ShapeMismatch(f"the model refuses its input: {error}") from error
        out: Float32 = logits.numpy()
        return out


def _trouble(options: EngineOptions) -> str:
    """Returns "" if torch can run on what is asked for, else why the CPU takes over; EngineError if it must not."""
    if options.provider not in ("cpu", "cuda") or options.precision != "fp32":
        raise EngineError(f"torch runs fp32 on cpu or cuda, not {options.precision} on {options.provider}")
    if options.provider == "cpu" or torch.cuda.is_available():
        return ""
    reason = "runs on the CPU, not on cuda: torch finds no GPU"
    if not options.fallback:
        raise EngineError(f"torch finds no GPU here (torch {torch.__version__}); use provider cpu, or set fallback")
    return reason


def _tensor(array: Float32) -> torch.Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # torch warns of read-only memory


__all__ = ["NO_NEEDS", "TorchEngine"]

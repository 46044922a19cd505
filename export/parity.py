"""Parity of an engine with torch on the same model version (`edge_sdk.core.parity` does the comparison)."""

from __future__ import annotations

from collections.abc import Mapping

from edge_sdk.core import parity
from edge_sdk.core.interfaces import Engine
from edge_sdk.core.parity import ParityReport
from edge_sdk.core.records import Float32, ModelTensors
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn.records import Needs
from export.engines.torch_engine import TorchEngine

TOLERANCE = 1e-4  # relative to the logits; float32 in another order of operations stays below 1e-5


def check(
    engine: Engine,
    spec: FederationSpec,
    needs: Needs,
    *,
    tensors: ModelTensors,
    windows: Mapping[str, Float32] | None = None,
    tolerance: float = TOLERANCE,
) -> ParityReport:
    """Compares an engine with torch on `tensors`, under the full mask and each single-modality mask.

    Args:
        engine: what is to be checked.
        spec: the federation.
        needs: what the method needs of the model.
        tensors: the version that the engine should hold.
        windows: modality → float32 (B, *shape); 16 windows of seeded noise by default.
        tolerance: largest error, relative to max(1, largest logit).

    Raises:
        ParityError: the engine says something else than torch.
    """
    x = parity.noise(spec, 16, 0) if windows is None else windows
    reference = TorchEngine(spec, needs, tensors)
    return parity.check(engine, reference, x, rows=parity.masks(spec), tolerance=tolerance)


__all__ = ["TOLERANCE", "check"]

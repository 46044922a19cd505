"""What torch says of a model: the truth that a new engine is compared with. Imported only where there is torch.

One torch model is kept and given each version's tensors; encoders that do not see one another run once for all masks.
Building the model anew for each version took as long as making the engine.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from edge_sdk.core import parity
from edge_sdk.core.records import Float32, ModelTensors
from edge_sdk.core.spec import FederationSpec
from edge_sdk.learn import params
from edge_sdk.methods.base import find
from edge_sdk.models import build


class TorchReference:
    """Logits of a spec's model, version after version; for one thread at a time.

    Args:
        spec: the federation's spec.
    """

    def __init__(self, spec: FederationSpec) -> None:
        self._model = build.build(spec, find(spec.method.name).needs)
        self._model.eval()
        self._flat = params.Flat(self._model.named())

    def __call__(self, tensors: ModelTensors, x: Mapping[str, Float32], rows: parity.Masks) -> parity.Logits:
        """Returns logits (B, C) of these tensors under every mask."""
        self._flat.load(tensors)
        n = len(next(iter(x.values())))
        masks = [torch.from_numpy(np.repeat(row, n, axis=0)) for row in rows.values()]
        with torch.inference_mode():
            logits = self._model.under({m: torch.from_numpy(a) for m, a in x.items()}, masks)
            return {name: out.numpy() for name, out in zip(rows, logits, strict=True)}


__all__ = ["TorchReference"]

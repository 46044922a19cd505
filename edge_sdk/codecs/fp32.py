"""`fp32`: the values as they are, little-endian float32."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from edge_sdk.codecs.steps import Buffer, Packed, Rows, TensorStep, finite
from edge_sdk.core.errors import CodecError
from edge_sdk.core.records import Float32


class Fp32(TensorStep):
    """Four bytes per value."""

    name: ClassVar[str] = "fp32"
    lossless = True

    def encode(self, x: Float32, rows: Rows) -> tuple[Packed, Float32]:
        if not finite(x):
            raise CodecError("fp32: tensors hold NaN or Inf; expected finite values")
        return x.astype("<f4", copy=False).view(np.uint8), np.zeros(0, np.float32)

    def decode(self, packed: Buffer, side: Float32, rows: Rows) -> Float32:
        return np.frombuffer(packed, "<f4").astype(np.float32)

    def packed_bytes(self, rows: Rows) -> tuple[int, int]:
        return 4 * rows.size, 4 * rows.size


STEP = Fp32()

__all__ = ["STEP", "Fp32"]

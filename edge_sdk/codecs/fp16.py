"""`fp16`: IEEE half precision, little-endian; values beyond ±65504 are refused rather than sent as infinity."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from edge_sdk.codecs.steps import Buffer, Packed, Rows, TensorStep, finite
from edge_sdk.core.errors import CodecError
from edge_sdk.core.records import Float32


class Fp16(TensorStep):
    """Two bytes per value, rounded to nearest even."""

    name: ClassVar[str] = "fp16"

    def encode(self, x: Float32, rows: Rows) -> tuple[Packed, Float32]:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            half = x.astype("<f2")
        if not finite(half.astype(np.float32)):
            raise CodecError("fp16: tensors hold NaN, Inf or values beyond ±65504; use fp32 or int8")
        return half.view(np.uint8), np.zeros(0, np.float32)

    def decode(self, packed: Buffer, side: Float32, rows: Rows) -> Float32:
        return np.frombuffer(packed, "<f2").astype(np.float32)

    def packed_bytes(self, rows: Rows) -> tuple[int, int]:
        return 2 * rows.size, 2 * rows.size


STEP = Fp16()

__all__ = ["STEP", "Fp16"]

"""`delta`: the change against a base version instead of the tensors themselves."""

from __future__ import annotations

from typing import ClassVar

from edge_sdk.codecs.steps import ReferenceStep
from edge_sdk.core.records import Float32


class Delta(ReferenceStep):
    """x − base on the way out, base + x on the way in (float32, one rounding each)."""

    name: ClassVar[str] = "delta"

    def encode(self, x: Float32, base: Float32) -> Float32:
        return x - base

    def decode(self, x: Float32, base: Float32) -> Float32:
        return base + x


STEP = Delta()

__all__ = ["STEP", "Delta"]

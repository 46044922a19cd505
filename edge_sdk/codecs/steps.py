"""What a step of a codec chain has to do: three kinds, each stateless, registered in the group `edge_sdk.codecs`.

    [ReferenceStep]  TensorStep  ByteStep …        as in "delta|int8|zstd"

A tensor step turns the flat `params` of one module into `packed` bytes (which the byte steps then compress) and a few
`side` values (scales), which travel as they are. How many side values there are follows from the rows alone, so that
nothing in a received header can make the receiver reserve more than its own model needs.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.core.errors import CodecError
from edge_sdk.core.interfaces import CodecStep
from edge_sdk.core.records import Array, Float32, Int64, ModuleLayout, TensorSpec

Buffer = bytes | memoryview
Packed = bytes | NDArray[np.uint8] | NDArray[np.int8]

_BLOCK = 131_072  # elements; 512 KiB of float32 stay in a second-level cache (measured: fastest of 8 Ki … 1 Mi)


@dataclass(frozen=True, slots=True)
class Rows:
    """How the params of one module divide into rows that share a scale.

    A tensor of two or more dimensions has one row per index of axis 0 (an output channel), any other tensor is one row.
    """

    size: int  # elements of the segment
    starts: Int64  # (R,) first element of each row
    lengths: Int64  # (R,) elements of each row, all >= 1
    blocks: tuple[tuple[int, int], ...]  # row ranges of about _BLOCK elements, for work that stays in the cache

    @property
    def count(self) -> int:
        """R, the number of rows."""
        return len(self.starts)

    def span(self, first: int, stop: int) -> tuple[int, int]:
        """Returns the element range of rows [first, stop)."""
        return int(self.starts[first]), int(self.starts[stop - 1] + self.lengths[stop - 1])

    @staticmethod
    def of(layout: ModuleLayout) -> Rows:
        """Returns the rows of a module's params; CodecError if the layout has gaps."""
        tensors = sorted((t for t in layout.tensors if t.segment == "params"), key=lambda t: t.offset)
        lengths: list[int] = []
        end = 0
        for tensor in tensors:
            if tensor.offset != end:
                raise CodecError(f"tensor {tensor.name} starts at {tensor.offset}, expected {end}; remake the layout")
            size, count = _rows_of(tensor)
            lengths += [size] * count
            end += size * count
        if end != layout.params:
            raise CodecError(f"tensors of the module hold {end} params, its layout says {layout.params}")
        sizes = np.array(lengths, np.int64)
        starts = np.cumsum(sizes) - sizes
        return Rows(end, starts, sizes, _blocks(sizes))


def _rows_of(tensor: TensorSpec) -> tuple[int, int]:
    """Returns (elements per row, rows) of one tensor; an empty tensor has no rows."""
    total = int(np.prod(tensor.shape, dtype=np.int64))
    count = tensor.shape[0] if len(tensor.shape) >= 2 and total else min(1, total)
    return (total // count, count) if count else (0, 0)


def _blocks(lengths: Int64) -> tuple[tuple[int, int], ...]:
    ends = np.cumsum(lengths)
    blocks: list[tuple[int, int]] = []
    first = 0
    while first < len(lengths):
        before = int(ends[first] - lengths[first])
        stop = max(first + 1, int(np.searchsorted(ends, before + _BLOCK, side="right")))
        blocks.append((first, stop))
        first = stop
    return tuple(blocks)


class ReferenceStep(CodecStep):
    """Expresses tensors relative to a base that both sides hold; first in a chain."""

    @abstractmethod
    def encode(self, x: Float32, base: Float32) -> Float32:
        """Returns what is left of x (P,) once the base (P,) is known."""

    @abstractmethod
    def decode(self, x: Float32, base: Float32) -> Float32:
        """Returns the tensors (P,) from what `encode` left."""


class TensorStep(CodecStep):
    """Turns float32 params into bytes; exactly one per chain."""

    lossless: bool = False  # True: decode(encode(x)) is bit-identical to x

    @abstractmethod
    def encode(self, x: Float32, rows: Rows) -> tuple[Packed, Float32]:
        """Returns (packed bytes, side values float32 (side_count,)); CodecError for values that are not finite."""

    @abstractmethod
    def decode(self, packed: Buffer, side: Float32, rows: Rows) -> Float32:
        """Returns new float32 (P,); WireFormatError for bytes that `encode` cannot have made."""

    @abstractmethod
    def packed_bytes(self, rows: Rows) -> tuple[int, int]:
        """Returns the least and the greatest number of packed bytes for these rows."""

    def side_count(self, rows: Rows) -> int:
        """Returns the number of side values for these rows."""
        return 0


class ByteStep(CodecStep):
    """Compresses bytes without loss; any number at the end of a chain."""

    @abstractmethod
    def encode(self, data: bytes) -> bytes:
        """Returns the compressed bytes."""

    @abstractmethod
    def decode(self, data: Buffer, size: int) -> bytes:
        """Returns exactly `size` bytes and never reserves more; WireFormatError otherwise."""


def finite(x: Array) -> bool:
    """Returns whether every value of a float array is finite; one pass at memory speed in the usual case."""
    if not x.size:  # most models keep no statistics
        return True
    flat = x.reshape(-1)
    with np.errstate(all="ignore"):
        if np.isfinite(np.dot(flat, flat)):
            return True
    return bool(np.isfinite(flat).all())  # the squares may have overflowed


__all__ = ["Buffer", "ByteStep", "Packed", "ReferenceStep", "Rows", "TensorStep", "finite"]

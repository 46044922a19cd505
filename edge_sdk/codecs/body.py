"""The tensors of an object: params through the steps of a chain, stats and counters as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_sdk.codecs.headers import ModulePart
from edge_sdk.codecs.steps import Buffer, ByteStep, ReferenceStep, Rows, TensorStep
from edge_sdk.core import registry
from edge_sdk.core.errors import CodecError, ConfigError, ShapeMismatch, WireFormatError
from edge_sdk.core.interfaces import CodecStep
from edge_sdk.core.records import Array, Float32, Int64, ModelLayout, ModelTensors, Segments

_SLACK = 64 * 1024  # bytes that a byte step may add to what it cannot compress


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a chain in order."""

    reference: ReferenceStep | None
    tensor: TensorStep
    compress: tuple[ByteStep, ...]


def parse_steps(text: str) -> Steps:
    """Returns the steps that a chain text names; ConfigError if they do not make a chain."""
    steps: list[CodecStep] = [registry.load("codecs", name.strip()) for name in text.split("|")]
    first = steps[0]
    reference = first if isinstance(first, ReferenceStep) else None
    rest = steps if reference is None else steps[1:]
    tensor = rest[0] if rest else None
    compress = tuple(step for step in rest[1:] if isinstance(step, ByteStep))
    if not isinstance(tensor, TensorStep) or len(compress) != len(rest) - 1:
        raise ConfigError(
            f"codec chain {text!r}: expected [delta|] one of fp32, fp16, int8 [|zstd], in this order;"
            " for example delta|int8|zstd"
        )
    return Steps(reference, tensor, compress)


@dataclass(frozen=True, slots=True)
class Body:
    """Encoded tensors, described."""

    modules: tuple[ModulePart, ...]
    sizes: tuple[int, ...]  # bytes of the packed part: before the byte steps, then after each
    parts: tuple[Buffer, ...]  # packed part, then the plain part in pieces
    decoded: dict[str, Float32]  # params as a receiver will see them; own memory


class BodyCodec:
    """Packs and unpacks the tensors of one model.

    Args:
        steps: of the chain; the reference step is the caller's.
        layout: the model's modules.
    """

    def __init__(self, steps: Steps, layout: ModelLayout) -> None:
        self._tensor, self._compress = steps.tensor, steps.compress
        self._layout = layout
        self._rows = {name: Rows.of(module) for name, module in layout.items()}

    def encode(self, params: Mapping[str, Float32], tensors: ModelTensors) -> Body:
        """Returns these params (already relative to a base, if any) with the stats and counters of `tensors`."""
        modules: list[ModulePart] = []
        packed: list[Buffer] = []
        plain: list[bytes] = []
        decoded: dict[str, Float32] = {}
        for name in sorted(params):
            x, rows, rest = params[name], self._rows[name], tensors[name]
            raw, side = self._tensor.encode(x, rows)
            view = raw if isinstance(raw, bytes) else raw.data.cast("B")
            decoded[name] = x.copy() if self._tensor.lossless else self._tensor.decode(view, side, rows)
            packed.append(view)
            plain += [_little(side, "<f4"), _little(rest.stats, "<f4"), _little(rest.counters, "<i8")]
            modules.append(ModulePart(name, len(x), len(rest.stats), len(rest.counters), len(view)))
        sizes, squeezed = self._squeeze(packed)
        return Body(tuple(modules), sizes, (*squeezed, *plain), decoded)

    def decode(
        self, modules: tuple[ModulePart, ...], sizes: tuple[int, ...], rest: memoryview, tail: int
    ) -> tuple[dict[str, Segments], memoryview]:
        """Returns the tensors, and the `tail` bytes after them; nothing is reserved before every length agrees."""
        self._check_modules(modules)
        self._check_sizes(modules, sizes)
        plain = sum(4 * (self._tensor.side_count(self._rows[m.name]) + m.stats) + 8 * m.counters for m in modules)
        if len(rest) != sizes[-1] + plain + tail:
            raise WireFormatError(f"object: {len(rest)} bytes after the header, which says {sizes[-1] + plain + tail}")
        packed = memoryview(self._expand(rest[: sizes[-1]], sizes))
        reader = _Reader(rest[sizes[-1] :])
        out: dict[str, Segments] = {}
        start = 0
        for m in modules:
            rows = self._rows[m.name]
            side = reader.float32(self._tensor.side_count(rows))
            params = self._tensor.decode(packed[start : start + m.packed], side, rows)
            out[m.name] = Segments(params, reader.float32(m.stats), reader.int64(m.counters))
            start += m.packed
        return out, reader.rest()

    def check(self, tensors: ModelTensors) -> None:
        """Raises ShapeMismatch for tensors that do not fit the layout, CodecError for stats that are not finite."""
        for name, segments in tensors.items():
            layout = self._layout.get(name)
            if layout is None:
                raise ShapeMismatch(f"module {name}: not part of this model, which has {', '.join(self._layout)}")
            _check_flat(segments.params, np.float32, layout.params, f"{name}.params")
            _check_flat(segments.stats, np.float32, layout.stats, f"{name}.stats")
            _check_flat(segments.counters, np.int64, layout.counters, f"{name}.counters")
            if not np.isfinite(segments.stats).all():
                raise CodecError(f"{name}.stats hold NaN or Inf; expected finite values")

    def _squeeze(self, pieces: list[Buffer]) -> tuple[tuple[int, ...], list[Buffer]]:
        """Returns the sizes before and after each byte step, and what is left in one piece or in many."""
        sizes = [sum(len(piece) for piece in pieces)]
        if not self._compress or not sizes[0]:
            return tuple(sizes * (1 + len(self._compress))), pieces
        packed = b"".join(pieces)
        for step in self._compress:
            packed = step.encode(packed)
            sizes.append(len(packed))
        return tuple(sizes), [packed]

    def _expand(self, data: Buffer, sizes: tuple[int, ...]) -> Buffer:
        if sizes[0] == 0:
            return data
        for step, size in zip(reversed(self._compress), reversed(sizes[:-1]), strict=True):
            data = step.decode(data, size)
        return data

    def _check_modules(self, modules: tuple[ModulePart, ...]) -> None:
        names = [m.name for m in modules]
        if names != sorted(set(names)):
            raise WireFormatError("modules: names must be sorted and different")
        for m in modules:
            layout = self._layout.get(m.name)
            if layout is None:
                raise ShapeMismatch(f"module {m.name}: not part of this model, which has {', '.join(self._layout)}")
            expected = (layout.params, layout.stats, layout.counters)
            if (m.params, m.stats, m.counters) != expected:
                found = (m.params, m.stats, m.counters)
                raise ShapeMismatch(f"module {m.name}: params, stats, counters {found}, expected {expected}")

    def _check_sizes(self, modules: tuple[ModulePart, ...], sizes: tuple[int, ...]) -> None:
        for m in modules:
            least, most = self._tensor.packed_bytes(self._rows[m.name])
            if not least <= m.packed <= most:
                raise WireFormatError(f"module {m.name}: {m.packed} packed bytes, expected {least} to {most}")
        packed = sum(m.packed for m in modules)
        if len(sizes) != 1 + len(self._compress) or sizes[0] != packed:
            raise WireFormatError(
                f"sizes: expected {1 + len(self._compress)} sizes from {packed} on, found {sizes[:4]}"
            )
        if any(size > 2 * packed + _SLACK for size in sizes) or (not packed and any(sizes)):
            raise WireFormatError(f"sizes: {sizes[:4]} cannot come from {packed} packed bytes")


class _Reader:
    """Takes arrays off the front of some bytes whose total length was checked."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def _take(self, size: int) -> memoryview:
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def float32(self, count: int) -> Float32:
        return np.frombuffer(self._take(4 * count), "<f4").astype(np.float32)

    def int64(self, count: int) -> Int64:
        return np.frombuffer(self._take(8 * count), "<i8").astype(np.int64)

    def rest(self) -> memoryview:
        return self._data


def _little(a: Array, dtype: str) -> bytes:
    return a.astype(dtype, copy=False).tobytes()


def _check_flat(a: Array, dtype: type[np.generic], size: int, what: str) -> None:
    if a.dtype != dtype or a.shape != (size,):
        raise ShapeMismatch(f"{what}: expected {np.dtype(dtype)} ({size},), found {a.dtype} {a.shape}")


__all__ = ["Body", "BodyCodec", "Steps", "parse_steps"]

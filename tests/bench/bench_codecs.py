"""How fast updates become bytes, beside bare numpy quantisation and a plain copy of the same memory.

Two models: 11.7 M parameters (ResNet-18 sized) and one whose float32 update is 204 kB, 51 kB at int8. Random normal
deltas compress worse than trained ones, so the ratios here are on the low side.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard

from edge_sdk.codecs import chunks, wire
from edge_sdk.codecs.chain import Chain
from edge_sdk.core.records import Float32, ModelLayout, Update
from tests.helpers.codec_examples import make_update, module, random_tensors

LARGE: ModelLayout = {
    "encoder.cam": module(
        {f"{i}.weight": (512, 512, 3, 3) for i in range(4)}
        | {f"{i}.scale": (512,) for i in range(8)}
        | {f"{i}.mid": (256, 256, 3, 3) for i in range(3)}
        | {f"{i}.small": (64, 64, 3, 3) for i in range(8)}
    ),
    "fusion": module({"weight": (100, 1024), "bias": (100,)}),
}
SMALL: ModelLayout = {
    "encoder.acc": module({"0.w": (32, 6, 5), "0.b": (32,), "1.w": (64, 32, 5), "1.b": (64,), "2.w": (100, 120)}),
    "encoder.gyr": module({"0.w": (32, 6, 5), "0.b": (32,), "1.w": (64, 32, 5), "1.b": (64,), "2.w": (100, 120)}),
    "fusion": module({"weight": (6, 640), "bias": (6,)}),
}
Row = dict[str, Any]


def best(job: Callable[[], Any], repeats: int) -> float:
    """Returns the shortest of several times, s: the one that other work disturbed least."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return min(times)


def bare_encode(x: Float32, residual: Float32) -> bytes:
    """The work of `delta|int8|zstd` as one writes it down: whole-array passes, rows of 512, no header, no checks."""
    x = x + residual
    rows = x[: x.size // 512 * 512].reshape(-1, 512)
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    q = np.rint(rows / scales).astype(np.int8)
    residual = rows - q * scales
    return zstandard.ZstdCompressor(level=1).compress(q.tobytes() + scales.tobytes())


def bare_decode(data: bytes, size: int) -> Float32:
    """The same way back."""
    rows = size // 512
    raw = zstandard.ZstdDecompressor().decompress(data)
    q = np.frombuffer(raw, np.int8, rows * 512).reshape(rows, 512)
    return q * np.frombuffer(raw, np.float32, rows, rows * 512)[:, None]


def row(name: str, value: float, unit: str, reference: str, ratio: float) -> Row:
    """Returns one row of the report."""
    return {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio}


def measure(label: str, layout: ModelLayout, repeats: int) -> list[Row]:
    """Measures one model."""
    update = make_update(random_tensors(layout, 0, 1e-3), payload={})
    flat: Float32 = np.concatenate([s.params for s in update.tensors.values()])
    residual, copy = flat * np.float32(0.01), np.empty_like(flat)
    packed = bare_encode(flat, residual)
    bare = (best(lambda: bare_encode(flat, residual), repeats), best(lambda: bare_decode(packed, flat.size), repeats))
    memcpy_s = best(lambda: np.copyto(copy, flat), repeats)
    rows = chain_rows(label, Chain("delta|int8|zstd", layout), update, repeats, ("bare numpy + zstd, same work", *bare))
    for text in ("delta|int8", "fp16|zstd", "fp32|zstd"):
        rows += chain_rows(label, Chain(text, layout), update, repeats, ("copy of the float32", memcpy_s, memcpy_s))
    chain = Chain("delta|int8|zstd", layout)
    data = chain.encode_update(update).data
    both_s = best(lambda: chain.decode_update(chain.encode_update(update).data), repeats)
    rows.append(
        row(f"codec {chain.text} {label} both ways", both_s * 1e3, "ms", "bare numpy + zstd", sum(bare) / both_s)
    )
    return rows + transport_rows(label, data, update, repeats, flat.nbytes / 1e6)


def chain_rows(label: str, chain: Chain, update: Update, repeats: int, limit: tuple[str, float, float]) -> list[Row]:
    """Measures one chain both ways beside a limit (its name, seconds to encode, seconds to decode), and its size."""
    encoded = chain.encode_update(update)
    encode_s = best(lambda: chain.encode_update(update, encoded.residual), repeats)
    decode_s = best(lambda: chain.decode_update(encoded.data), repeats)
    megabytes, name = encoded.raw_bytes / 1e6, f"codec {chain.text} {label}"
    reference, bare_encode_s, bare_decode_s = limit
    return [
        row(f"{name} encode", megabytes / encode_s, "MB/s fp32", reference, bare_encode_s / encode_s),
        row(f"{name} decode", megabytes / decode_s, "MB/s fp32", reference, bare_decode_s / decode_s),
        row(
            f"{name} size",
            len(encoded.data) / 1e3,
            "kB",
            "float32 bytes over this",
            encoded.raw_bytes / len(encoded.data),
        ),
    ]


def transport_rows(label: str, data: bytes, update: Update, repeats: int, megabytes: float) -> list[Row]:
    """Measures chunking there and back, and the digest of a version."""
    hash_rate = len(data) / 1e6 / best(lambda: wire.object_digest(data), repeats)
    parts = [bytes(part) for part in chunks.split(data, "update", bytes(16))]  # as a network would bring them
    split_s = best(lambda: chunks.split(data, "update", bytes(16)), repeats)
    through = len(data) / 1e6 / (split_s + best(lambda: chunks.join(parts), repeats))
    digest = megabytes / best(lambda: wire.tensors_digest(update.tensors), repeats)
    return [
        row(f"chunks split and join {label}", through, "MB/s", "blake2b alone (needed twice)", through / hash_rate),
        row(f"version digest {label}", digest, "MB/s fp32", "blake2b alone", digest / hash_rate),
    ]


def run() -> list[Row]:
    """Measures both models."""
    return measure("11.7M", LARGE, 5) + measure("51k", SMALL, 30)


__all__ = ["run"]

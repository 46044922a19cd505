"""Uniform quantisation of small tables: each row with its own range, b bits a value.

q = round((x − min) / range · (2^b − 1)),   x̂ = min + q · range / (2^b − 1),   |x − x̂| ≤ range / (2 (2^b − 1))
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
Ranges = NDArray[np.float32]


def packed_bytes(values: int, bits: int) -> int:
    """Returns the bytes that a row of so many values takes."""
    return -(-values * bits // 8)


def pack(table: NDArray[np.floating], bits: int) -> tuple[Codes, Ranges]:
    """Returns codes uint8 (R, packed bytes) and ranges float32 (R, 2), minimum and maximum, of a table (R, D).

    Args:
        table: finite.
        bits: 1 to 8 per value.
    """
    low, high = table.min(1), table.max(1)
    ranges = np.stack([low, high], axis=1).astype(np.float32)
    steps = (1 << bits) - 1
    lower, span = ranges[:, :1].astype(np.float64), np.diff(ranges.astype(np.float64), axis=1)
    scaled = np.divide(table - lower, span, out=np.zeros(table.shape), where=span > 0)
    codes = np.rint(np.clip(scaled, 0.0, 1.0) * steps).astype(np.uint8)  # (R, D)
    planes = np.unpackbits(codes[:, :, None], axis=2)[:, :, 8 - bits :]  # (R, D) -> (R, D, b), most significant first
    return np.packbits(planes.reshape(len(table), -1), axis=1), ranges


def unpack(codes: Codes, ranges: Ranges, *, values: int, bits: int) -> NDArray[np.float64]:
    """Returns the table (R, D) that codes and ranges stand for; `values` is D. What codes lack counts as zeros."""
    whole = np.zeros((len(codes), packed_bytes(values, bits)), np.uint8)
    whole[:, : codes.shape[1]] = codes[:, : whole.shape[1]]
    planes = np.unpackbits(whole, axis=1)[:, : values * bits].reshape(len(codes), values, bits)
    padded = np.concatenate([np.zeros((len(codes), values, 8 - bits), np.uint8), planes], axis=2)
    numbers = np.packbits(padded, axis=2)[:, :, 0].astype(np.float64)  # (R, D, 8) -> (R, D)
    span = np.diff(ranges.astype(np.float64), axis=1)
    return ranges[:, :1] + numbers * (span / ((1 << bits) - 1))


__all__ = ["Codes", "Ranges", "pack", "packed_bytes", "unpack"]

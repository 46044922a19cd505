"""Seeds of random streams, keyed by what they are for and never by the order in which they are asked for."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # constants of splitmix64


def derive(*key: object) -> int:
    """Returns a seed in [0, 2^63) that depends on every part of the key: (seed, device, purpose, task number)."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def scramble(numbers: NDArray[np.uint64], seed: int = 0) -> NDArray[np.uint64]:
    """Returns 64 random bits for every number (splitmix64): the same for the same number and seed, everywhere."""
    z = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    for shift, factor in zip((30, 27), _MIX, strict=True):
        z = (z ^ (z >> np.uint64(shift))) * factor
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


__all__ = ["derive", "scramble"]

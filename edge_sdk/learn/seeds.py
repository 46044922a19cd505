"""Seeds of random streams, keyed by what they are for and never by the order in which they are asked for."""

from __future__ import annotations

import hashlib


def derive(*key: object) -> int:
    """Returns a seed in [0, 2^63) that depends on every part of the key: (seed, device, purpose, task number)."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


__all__ = ["derive"]

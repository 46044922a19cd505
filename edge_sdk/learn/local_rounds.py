"""How many local rounds a device has done, for terms that only its first ones have; kept in a client rule's memory."""

from __future__ import annotations

import numpy as np

from edge_sdk.learn.records import Memory


def within(memory: Memory, key: str, limit: int) -> bool:
    """Returns True while fewer than `limit` rounds are done; always where the limit is 0.

    Args:
        memory: the rule's.
        key: where the number of rounds lies in it.
        limit: rounds.
    """
    return not limit or int(memory.get(key, np.zeros(1, np.int64))[0]) < limit


def count(memory: Memory, key: str, *limits: int) -> None:
    """Counts one more round, unless no limit asks for the number."""
    if any(limits):
        memory[key] = memory.get(key, np.zeros(1, np.int64)) + 1


__all__ = ["count", "within"]

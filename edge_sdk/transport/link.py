"""How a client of the memory transport reaches its broker.

The link model: each direction is a queue with a rate; a lost transmission is sent again after `resend_s`, and
holds up what is behind it (TCP keeps the order); a lost acknowledgement makes the sender send again, so the message
arrives twice (QoS 1). Same seed, same fate.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """How one client reaches the broker."""

    latency_s: float = 0.0  # one way; a publish waits for there and back
    up_bytes_per_s: float = float("inf")
    down_bytes_per_s: float = float("inf")
    loss: float = 0.0  # probability that one transmission, or its acknowledgement, is lost; [0, 1)
    resend_s: float = 1.0  # after which a loss is noticed
    offline: tuple[tuple[float, float], ...] = ()  # (from, to) in s after start(), ascending

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.resend_s < 0 or min(self.up_bytes_per_s, self.down_bytes_per_s) <= 0:
            raise ValueError(f"times must not be negative and rates must be positive, found {self}")
        if not 0 <= self.loss < 1:
            raise ValueError(f"loss must lie in [0, 1), found {self.loss}")
        edges = [t for span in self.offline for t in span]
        if edges != sorted(edges) or any(t < 0 for t in edges):
            raise ValueError(f"offline spans must be ascending and not overlap, found {self.offline}")


__all__ = ["Link"]

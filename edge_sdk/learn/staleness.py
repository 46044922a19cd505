"""How much an update loses by being stale: s(τ) of FedAsync, shared by the asynchronous server rules."""

from __future__ import annotations


def constant(tau: float) -> float:
    """Returns 1 whatever the staleness."""
    return 1.0


def polynomial(tau: float, a: float) -> float:
    """Returns (τ + 1)^−a."""
    return float((tau + 1.0) ** -a)


def hinge(tau: float, a: float, b: float) -> float:
    """Returns 1 up to τ = b, then 1 / (a(τ − b) + 1)."""
    return 1.0 if tau <= b else 1.0 / (a * (tau - b) + 1.0)


__all__ = ["constant", "hinge", "polynomial"]

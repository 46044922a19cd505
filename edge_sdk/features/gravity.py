"""Which way is down: a sensor's axes turned until gravity points along +z."""

from __future__ import annotations

import numpy as np

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array, Float32


def align_gravity(values: Array) -> Float32:
    """Turns the sensor's axes until the mean acceleration points along +z; the smallest turn that does.

    Args:
        values: (3 · k, length): acceleration x, y, z first, then other vectors in the same axes (gyroscope …).

    Returns:
        float32 (3 · k, length); unchanged where the mean acceleration is too small to have a direction.
    """
    if values.ndim != 2 or len(values) % 3 or not values.size:
        raise DataError(f"vectors have 3 channels each, (3 · k, length), found {values.shape}")
    vectors = values.reshape(-1, 3, values.shape[1]).astype(np.float64)  # (k, 3, length)
    mean = vectors[0].mean(axis=1)
    norm = float(np.linalg.norm(mean))
    if norm < 1e-6:
        return values.astype(np.float32)
    x, y, z = mean / norm
    if z < -1 + 1e-9:  # upside down: every half turn about a level axis does; take x
        turn = np.diag([1.0, -1.0, -1.0])
    else:  # Rodrigues' formula for the turn that takes (x, y, z) to (0, 0, 1)
        skew = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])
        turn = np.eye(3) + skew + skew @ skew / (1 + z)
    return (turn @ vectors).reshape(values.shape).astype(np.float32)


__all__ = ["align_gravity"]

"""A running mean of model versions, for those who use a model and do not train it.

    m ← (1 − w) m + w θ_t,   w = max(weight, 1 / (t + 1)) at version t

Asynchronous training swings from version to version; the mean does not. It is nothing that travels: whoever sees the
versions keeps it. Versions that were not seen are taken to have been like the next one that was.
"""

from __future__ import annotations

import numpy as np

from edge_sdk.core.records import Float32, ModelTensors, Segments, VersionId


class RunningMean:
    """The mean of the versions of one lineage so far.

    Args:
        weight: of the newest version, (0, 1]; 1 is that version itself.
    """

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._newest: VersionId | None = None
        self._mean: dict[str, Segments] = {}

    def take(self, version: VersionId, tensors: ModelTensors) -> ModelTensors:
        """Takes a version in and returns the mean, with memory of its own; the newest one again changes nothing.

        Running statistics are averaged as parameters are, counters are the newest. The mean begins anew with another
        lineage, an older number, or a model of other modules.
        """
        share = self._share(version) if self._mean.keys() == tensors.keys() else 1.0
        before, self._newest = self._mean, version
        if share == 1.0:
            self._mean = {m: Segments(s.params.copy(), s.stats.copy(), s.counters.copy()) for m, s in tensors.items()}
        elif share > 0.0:
            self._mean = {
                m: Segments(
                    _towards(before[m].params, s.params, share), _towards(before[m].stats, s.stats, share),
                    s.counters.copy(),
                )
                for m, s in tensors.items()
            }  # fmt: skip
        return self._mean

    def _share(self, version: VersionId) -> float:
        """Returns the weight of a version and of the unseen ones before it together."""
        newest = self._newest
        if newest is None or newest.lineage != version.lineage or version.number < newest.number:
            return 1.0
        numbers = np.arange(newest.number + 1, version.number + 1)
        return float(1.0 - np.prod(1.0 - np.maximum(self._weight, 1.0 / (numbers + 1.0))))


def _towards(mean: Float32, values: Float32, share: float) -> Float32:
    moved: Float32 = mean + np.float32(share) * (values - mean)
    return moved


__all__ = ["RunningMean"]

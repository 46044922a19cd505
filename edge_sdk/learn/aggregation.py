"""Weights of synchronous aggregation that several methods share, and the arithmetic that carries them out.

    θ_b ← keep_b θ_b + Σ_k w_{b,k} θ_{k,b}        for every block b: a module, or one tensor of it

`stats` follow the weights of their module, `counters` take the largest of the cohort: the newest wins. Sums run over
the devices in sorted order, so that a cohort gives the same bits in whatever order its updates came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from edge_sdk.core.errors import ConfigError, ShapeMismatch
from edge_sdk.core.records import Array, ModelLayout, ModelTensors, Segments, TensorSpec
from edge_sdk.learn.records import Cohort, Member, Weights

MEAN_KERNEL = "torch-mean-1"  # named in the journal, as `blending.KERNEL` is


def normalised(values: Mapping[str, float]) -> dict[str, float]:
    """Returns values / their sum; equal shares where the sum is not positive."""
    total = sum(values.values())
    if total > 0:
        return {name: value / total for name, value in values.items()}
    return dict.fromkeys(values, 1.0 / max(1, len(values)))


def by_samples(member: Member) -> float:
    """Returns n_k: FedAvg's weight before it is normalised."""
    return float(member.num_samples)


def owners(cohort: Cohort) -> dict[str, tuple[Member, ...]]:
    """Returns module → the members that trained it, sorted by device; only modules that somebody trained."""
    modules = sorted({name for member in cohort.members for name in member.tensors})
    return {name: tuple(m for m in cohort.members if name in m.tensors) for name in modules}


def modality_wise(cohort: Cohort, value: Callable[[Member], float] = by_samples) -> Weights:
    """Returns, per module, values normalised over the members that trained it in this round (modality-wise FedAvg).

    With every module trained by everybody this is FedAvg; a module trained by nobody keeps its global weights.

    Args:
        cohort: the round's updates.
        value: a member's weight before it is normalised; n_k by default.
    """
    return Weights({name: normalised({m.device: value(m) for m in own}) for name, own in owners(cohort).items()})


def blocks(cohort: Cohort, module: str, segment: str) -> tuple[str, ...]:
    """Returns the blocks "module:tensor" of one segment of a module, "params" or "stats".

    Raises:
        ConfigError: the cohort does not say how the module is laid out.
    """
    if module not in cohort.layout:
        raise ConfigError(f"the rule weighs {module!r} tensor by tensor, and the cohort came without its layout")
    return tuple(f"{module}:{t.name}" for t in cohort.layout[module].tensors if t.segment == segment)


def averaged_statistics(cohort: Cohort) -> Weights:
    """Returns n_k-weighted means of running statistics alone, for rules whose other weights may leave [0, 1].

    A variance must not be extrapolated: it could become negative.
    """
    shares = modality_wise(cohort).by_block
    with_stats = [name for name in shares if cohort.start[name].stats.size]
    return Weights({block: shares[name] for name in with_stats for block in blocks(cohort, name, "stats")})


def made(cohort: Cohort, module: str, params: NDArray[np.float64]) -> Segments:
    """Returns a module that a rule has made itself: its params, n_k-weighted means of statistics, newest counters."""
    members = [m for m in cohort.members if module in m.tensors]
    shares = normalised({m.device: by_samples(m) for m in members})
    before = cohort.start[module]
    stats = sum((shares[m.device] * m.tensors[module].stats.astype(np.float64) for m in members), 0.0 * before.stats)
    counters = np.max([before.counters, *(m.tensors[module].counters for m in members)], axis=0)
    return Segments(params.astype(np.float32), np.asarray(stats, np.float32), counters)


def combine(
    theta: Mapping[str, Segments], layout: ModelLayout, members: Mapping[str, ModelTensors], weights: Weights
) -> None:
    """Carries a round's weights out in place.

    Args:
        theta: the global model; its arrays are changed, and must be writable.
        layout: of the model: where the tensors of a module lie.
        members: device → full values of the modules that its update carries.
        weights: what the rule decided.

    Raises:
        ShapeMismatch: an unknown block, or a device that does not carry it; nothing has been changed then.
    """
    for block, shares in weights.by_block.items():
        _check(block, shares, layout, members)
    with torch.inference_mode():
        for block, shares in weights.by_block.items():
            _combine_block(block, shares, weights.keep.get(block, 0.0), theta=theta, layout=layout, members=members)
    for name in {block.partition(":")[0] for block in weights.by_block}:
        for device in sorted(members):
            if name in members[device]:
                np.maximum(theta[name].counters, members[device][name].counters, out=theta[name].counters)


def _check(block: str, shares: Mapping[str, float], layout: ModelLayout, members: Mapping[str, ModelTensors]) -> None:
    module, _, tensor = block.partition(":")
    if module not in layout or (tensor and tensor not in {t.name for t in layout[module].tensors}):
        raise ShapeMismatch(f"the rule weighs {block!r}, which the model does not have")
    lacking = [device for device in shares if module not in members.get(device, {})]
    if lacking:
        raise ShapeMismatch(f"the rule weighs {block!r} of {lacking[0]!r}, whose update does not carry it")


def _combine_block(
    block: str, shares: Mapping[str, float], keep: float, *, theta: Mapping[str, Segments], layout: ModelLayout,
    members: Mapping[str, ModelTensors],
) -> None:  # fmt: skip
    module, _, tensor = block.partition(":")
    spec = next((t for t in layout[module].tensors if t.name == tensor), None)
    for segment in ("params", "stats") if spec is None else (spec.segment,):
        if segment == "counters":
            continue
        total = _part(theta[module], segment, spec).mul_(keep)
        for device in sorted(shares):
            total.add_(_part(members[device][module], segment, spec), alpha=shares[device])


def _part(values: Segments, segment: str, spec: TensorSpec | None) -> torch.Tensor:
    arrays: dict[str, Array] = {"params": values.params, "stats": values.stats}
    array = arrays[segment]
    if not array.flags.writeable:
        array = array.copy()  # torch warns of memory that it might write to
    flat = torch.from_numpy(array)
    if spec is None:
        return flat
    return flat[spec.offset : spec.offset + int(np.prod(spec.shape, dtype=np.int64))]


def checked(weights: Weights) -> Weights:
    """Returns the weights, found to be finite; ConfigError names the block where they are not."""
    for block, shares in weights.by_block.items():
        numbers = [*shares.values(), weights.keep.get(block, 0.0)]
        if not np.isfinite(numbers).all():
            raise ConfigError(f"the rule gave no usable weight for {block!r}: {numbers}")
    return weights


__all__ = [
    "MEAN_KERNEL",
    "averaged_statistics",
    "blocks",
    "by_samples",
    "checked",
    "combine",
    "made",
    "modality_wise",
    "normalised",
    "owners",
]

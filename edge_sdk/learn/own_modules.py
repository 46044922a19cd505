"""Modules that stay on their device, in the place of shared ones: kept in a client rule's memory."""

from __future__ import annotations

from edge_sdk.core.records import ModelTensors, Segments
from edge_sdk.learn import params
from edge_sdk.learn.records import ClientContext, Memory


def packed(tensors: ModelTensors, prefix: str) -> Memory:
    """Returns modules as entries of a client's memory."""
    return {
        f"{prefix}{name}/{segment}": values
        for name, s in tensors.items()
        for segment, values in (("params", s.params), ("stats", s.stats), ("counters", s.counters))
    }


def unpacked(memory: Memory, names: tuple[str, ...], prefix: str) -> ModelTensors:
    """Returns those of the modules that are in a client's memory."""
    return {
        name: Segments(*(memory[f"{prefix}{name}/{segment}"] for segment in params.SEGMENTS))
        for name in names
        if f"{prefix}{name}/params" in memory
    }


def load(ctx: ClientContext, names: tuple[str, ...], prefix: str) -> None:
    """Gives the live model the device's own values, for the modules of which it has any."""
    own = unpacked(ctx.memory, names, prefix)
    params.load({name: ctx.model.module(name) for name in own}, own)


def save(ctx: ClientContext, names: tuple[str, ...], prefix: str) -> None:
    """Keeps the live model's values of these modules."""
    ctx.memory.update(packed(params.read({name: ctx.model.module(name) for name in names}), prefix))


__all__ = ["load", "packed", "save", "unpacked"]

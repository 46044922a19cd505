"""What an observer is told of an update that became part of the model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coordinator import events
from coordinator.publish import wire_bytes
from coordinator.store import Entry, Received
from edge_sdk.codecs.chain import raw_bytes
from edge_sdk.codecs.chunks import MAX_CHUNK, PREAMBLE_BYTES
from edge_sdk.core.records import Update


def applied(
    entry: Entry | Received, update: Update, *, rates: Mapping[str, float], staleness: int, count: int,
    figures: Mapping[str, float], latency_s: float, norms: Mapping[str, float] | None = None,
) -> events.UpdateApplied:  # fmt: skip
    """Returns the event of one update.

    Args:
        entry: what the store keeps of it.
        update: decoded.
        rates: module (or block) → rate or weight that was used.
        staleness: server version − base version.
        count: updates applied so far, this one included.
        figures: what the method says of its state.
        norms: module → Euclidean norm of its change.
        latency_s: last chunk seen → reply handed to the transport; 0 where the reply came before the decision.
    """
    scalars = {name: float(value.item()) for name, value in update.payload.items() if np.size(value) == 1}
    return events.UpdateApplied(
        device=entry.key.device, sequence=entry.key.sequence, base=entry.base.number, staleness=staleness,
        rates=dict(rates), version=entry.version,
        bytes_up=wire_bytes(len(entry.body), -(-len(entry.body) // (MAX_CHUNK - PREAMBLE_BYTES))),
        raw_bytes=raw_bytes(update.tensors), modalities=entry.modalities, num_samples=entry.num_samples,
        num_steps=entry.num_steps, applied=count, train_s=update.train_s, wait_s=update.wait_s,
        payload=scalars, figures=dict(figures), norms=dict(norms or {}), latency_s=latency_s,
    )  # fmt: skip


__all__ = ["applied"]

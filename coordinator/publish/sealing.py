"""From a model to what travels: encoded, decoded again, named by the digest of what devices will hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge_sdk.codecs import chunks, wire
from edge_sdk.codecs.chain import Chain
from edge_sdk.codecs.chunks import PREAMBLE_BYTES
from edge_sdk.core.messages import Published
from edge_sdk.core.records import Array, ModelTensors, ModelVersion, VersionId


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model to publish."""

    number: int
    updates: int  # applied so far
    tensors: ModelTensors  # own memory
    extras: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Sealed:
    """An encoded version that has its name."""

    published: Published
    tensors: ModelTensors  # as devices decode them
    data: bytes


def seal(
    chain: Chain, snapshot: Snapshot, *, lineage: str, slot: int, base: ModelVersion | None
) -> Sealed:  # fmt: skip
    """Returns a snapshot as it will travel; a job for `Compute`."""
    encoded = chain.roundtrip_model(snapshot.tensors, base)
    version = VersionId(lineage, snapshot.number, wire.tensors_digest(encoded.decoded))
    data = chain.seal_model(encoded, version, snapshot.extras)
    published = Published(
        version, len(data), chunks.count_of(len(data)), slot, wire.object_digest(data), chain.text,
        None if base is None else base.id,
    )  # fmt: skip
    return Sealed(published, encoded.decoded, data)


def wire_bytes(size: int, count: int) -> int:
    """Returns what an object of `size` bytes takes in `count` chunks, preambles included."""
    return size + count * PREAMBLE_BYTES


__all__ = ["Sealed", "Snapshot", "seal", "wire_bytes"]

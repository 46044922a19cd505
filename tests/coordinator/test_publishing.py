"""Publishing: cadence, slots, key frames and deltas, and devices that train from what they can decode."""

from itertools import pairwise

import pytest

from coordinator import events
from coordinator.config import PublishConfig
from edge_sdk.codecs import chunks, wire
from edge_sdk.codecs.chain import Chain, peek_model
from edge_sdk.core.records import ModelTensors, VersionId
from edge_sdk.core.spec import FederationSpec
from edge_sdk.transport.topics import Topics
from tests.helpers.field import Field, config_of, play, spec_of


def down(text: str) -> FederationSpec:
    return spec_of().model_copy(update={"codec": spec_of().codec.model_copy(update={"down": text})})


def in_slot(world: Field, slot: int) -> bytes:
    """Returns the object that the broker retains in a slot."""
    topics = Topics(world.spec.name)
    parts = [p for t, p in sorted(world.broker.retained.items()) if t.startswith(topics.model_chunk(slot, 0)[:-1])]
    return chunks.join(parts)


def test_the_four_newest_versions_lie_in_four_slots() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        for number in range(1, 7):
            await device.contribute()
            await world.published(number)
        assert [peek_model(in_slot(world, slot)).id.number for slot in range(4)] == [4, 5, 6, 3]
        assert device.head is not None
        assert (device.head.newest.id.number, device.head.newest.slot) == (6, 2)

    play(script)


def test_versions_go_out_at_the_cadence_and_slots_are_held() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        for _ in range(40):
            await device.contribute()
            await world.clock.sleep(0.5)
        numbers = [e.version for e in world.of(events.Published)]
        assert numbers[0] == 0
        gaps = {b - a for a, b in pairwise(numbers[1:])}
        assert gaps <= {4, 5}  # one in 2 s: min_interval_s; a slot is free again after 8 s

    play(script, config=config_of(publish=PublishConfig(min_interval_s=2.0, min_hold_s=8.0)))


def test_every_so_many_updates() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        for _ in range(7):
            await device.contribute()
            await world.settle()
        assert [e.version for e in world.of(events.Published)] == [0, 3, 6]

    play(script, config=config_of(publish=PublishConfig(every_updates=3, min_interval_s=0.0, min_hold_s=0.0)))


@pytest.mark.parametrize("text", ["fp32|zstd", "fp16", "int8|zstd", "delta|int8|zstd"])
def test_devices_train_from_exactly_what_the_coordinator_holds_as_base(text: str) -> None:
    """With a lossy broadcast the base is not θ: an update that changes nothing must still mix with what was sent."""
    spec = down(text)

    async def script(world: Field) -> None:
        device = await world.peer()
        held: dict[VersionId, ModelTensors] = {}
        for number in range(1, 6):
            head = await world.published(number - 1)
            data = chunks.join(await world.center.publisher.chunks_of(head.newest.id, ()))
            header = peek_model(data)
            base = None if header.base is None else held[header.base]
            version = Chain(header.chain, device.layout).decode_model(data, base)
            held[version.id] = version.tensors
            kept = world.center._store.tensors(version.id)
            assert wire.tensors_digest(kept) == version.id.digest == head.newest.id.digest
            assert (await device.contribute()).kind == "accepted"
        deltas = [v for v in held if world.center.publisher.stored(v).published.base]  # type: ignore[union-attr]
        assert len(deltas) == (3 if text.startswith("delta") else 0)  # versions 0 and 4 are key frames

    config = config_of(publish=PublishConfig(min_interval_s=0.0, min_hold_s=0.0, key_every=4))
    play(script, config=config, spec=spec)


def test_a_large_version_travels_in_many_chunks() -> None:
    spec = spec_of().model_copy(
        update={"model": spec_of().model.model_copy(update={"fusion": "mlp", "feature_dim": 96, "hidden": 512})}
    )

    async def script(world: Field) -> None:
        device = await world.peer()
        await device.contribute()
        head = await world.published(1)
        assert head.newest.chunks > 3
        fetched = await device.model(head.newest.id)
        assert wire.tensors_digest(fetched.tensors) == head.newest.id.digest
        slot = Chain(spec.codec.down, device.layout).decode_model(in_slot(world, head.newest.slot))
        assert slot.id == fetched.id

    play(script, spec=spec)

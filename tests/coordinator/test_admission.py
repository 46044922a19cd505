"""Every way in which an update can be wrong, and the reason that its device hears."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coordinator import events
from coordinator.config import AdmissionConfig, PublishConfig
from edge_sdk.codecs import headers, wire
from edge_sdk.codecs.chain import Chain
from edge_sdk.core.messages import Task
from edge_sdk.core.records import Update, VersionId
from edge_sdk.models import build
from tests.helpers.field import Field, Peer, config_of, play, spec_of

Wrong = Callable[[Peer, Update, Task], Update]


def _base(**changes: Any) -> Wrong:
    return lambda peer, update, task: replace(update, base=replace(task.base, **changes))


WRONG: dict[str, tuple[Wrong, str]] = {
    "base of another lineage": (_base(lineage="f" * 32), "unknown_base"),
    "base with another digest": (_base(digest="f" * 32), "unknown_base"),
    "base from the future": (_base(number=7), "unknown_base"),
    "another spec": (lambda p, u, t: replace(u, spec_digest="0" * 32), "spec_changed"),
    "a task nobody gave": (lambda p, u, t: replace(u, task="0123"), "unknown_task"),
    "no samples": (lambda p, u, t: replace(u, num_samples=0), "malformed"),
    "more samples than there are": (lambda p, u, t: replace(u, num_samples=10**12), "malformed"),
    "more steps than there is time": (lambda p, u, t: replace(u, num_steps=10**12), "malformed"),
    "a modality that was not in the task": (lambda p, u, t: replace(u, modalities=("acc", "smell")), "malformed"),
    "a payload that the method does not declare": (
        lambda p, u, t: replace(u, payload={"distance.acc": np.float32(0.5).reshape(())}), "payload",
    ),
    "from somebody else": (lambda p, u, t: replace(u, key=replace(u.key, device="d9")), "unknown_device"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_update_is_refused_with_its_reason_and_changes_nothing(what: str) -> None:
    change, reason = WRONG[what]

    async def script(world: Field) -> None:
        device = await world.peer()
        task = await device.task()
        before = wire.params_digest(world.center.tensors)
        reply = await device.deliver(change(device, device.update(task), task))
        assert (reply.kind, reply.reason) == ("rejected", reason)
        assert reply.version == world.center.version()
        assert wire.params_digest(world.center.tensors) == before
        assert [e.reason for e in world.of(events.UpdateRejected)] == [reason]
        assert (await device.contribute()).kind == "accepted"

    play(script)


def test_values_that_are_not_finite_are_refused() -> None:
    """The codec refuses to make such bytes, so they are put in afterwards."""
    spec = spec_of().model_copy(update={"codec": spec_of().codec.model_copy(update={"up": "fp32"})})

    async def script(world: Field) -> None:
        device = await world.peer()
        update = device.update(await device.task())
        data = bytearray(device.encode(update))
        header, rest = headers.unframe(bytes(data), headers.UpdateHeader, headers.UPDATE_MAGIC, headers.Limits())
        start = len(data) - len(rest)
        data[start : start + 4] = np.array([np.nan], "<f4").tobytes()
        await device.send(bytes(data), update.key)
        assert (await device.reply()).reason in ("non_finite", "malformed")
        assert header.key == update.key

    play(script, spec=spec)


def test_shapes_of_another_model_are_refused() -> None:
    other = spec_of().model_copy(update={"model": spec_of().model.model_copy(update={"feature_dim": 7})})

    async def script(world: Field) -> None:
        device = await world.peer()
        task = await device.task()
        liar = Peer(device.transport, other, "d1", world.clock)
        update = replace(liar.update(task), spec_digest=world.spec.digest)
        reply_to = update.key
        await device.send(liar.encode(update), reply_to)
        assert (await device.reply()).reason == "shape"

    play(script)


def test_another_codec_is_refused() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        update = device.update(await device.task())
        await device.send(Chain("fp32", build.layout(world.spec)).encode_update(update).data, update.key)
        assert (await device.reply()).reason == "malformed"

    play(script)


def test_bytes_that_end_early_are_refused() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        update = device.update(await device.task())
        await device.send(device.encode(update)[:-5], update.key)
        assert (await device.reply()).reason == "malformed"

    play(script)


def test_an_object_with_a_wrong_digest_is_refused() -> None:
    async def script(world: Field) -> None:
        from edge_sdk.codecs import chunks

        device = await world.peer()
        update = device.update(await device.task())
        lie = "0" * 32
        for part in chunks.split(device.encode(update), "update", chunks.update_key(update.key, lie), digest=lie):
            await device.transport.publish(device.topics.update("d1"), bytes(part))
        reply = await device.reply()
        assert (reply.kind, reply.reason, reply.key) == ("rejected", "malformed", update.key)

    play(script)


def test_junk_on_every_topic_is_survived() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        for junk in (b"", b"\0", b"EDSK" + bytes(200), b"\xc1" * 50, b"\x80", bytes(200_000)):
            for topic in (device.topics.update("d1"), device.topics.fetch("d1"), device.topics.status("d1")):
                await device.transport.publish(topic, junk)
        await device.say()
        assert (await device.contribute()).kind == "accepted"

    play(script)


def test_a_change_far_larger_than_usual_is_refused_and_one_a_little_larger_is_not() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        for _ in range(12):
            await device.contribute(value=0.01)
        assert (await device.contribute(value=0.2)).reason == "norm"
        assert (await device.contribute(value=0.05)).kind == "accepted"

    play(script, config=config_of(admission=AdmissionConfig(enrolment="open", norm_factor=10.0)))


def test_a_device_that_is_too_quick_is_slowed_down_and_the_others_are_not() -> None:
    async def script(world: Field) -> None:
        device, other = await world.peer("d1"), await world.peer("d2")
        reasons = [(await device.contribute()).reason for _ in range(4)]
        assert reasons == ["", "", "rate", "rate"]
        assert (await other.contribute()).kind == "accepted"
        await world.clock.sleep(30.0)
        assert (await device.contribute()).kind == "accepted"

    play(script, config=config_of(admission=AdmissionConfig(enrolment="open", updates_per_minute=2.0)))


def test_a_refusal_is_repeated_even_when_the_update_would_pass_by_now() -> None:
    """The device has put the update back into its residual: applying it later would count it twice."""

    async def script(world: Field) -> None:
        device = await world.peer()
        await device.contribute()
        update = device.update(await device.task())
        assert (await device.deliver(update)).reason == "rate"
        await world.clock.sleep(120.0)
        assert (await device.deliver(update)).reason == "rate"

    play(script, config=config_of(admission=AdmissionConfig(enrolment="open", updates_per_minute=1.0)))


def test_too_stale_is_refused() -> None:
    async def script(world: Field) -> None:
        slow, fast = await world.peer("slow"), await world.peer("fast")
        task = await slow.task()
        for _ in range(3):
            await fast.contribute()
        assert (await slow.deliver(slow.update(task))).reason == "stale"

    play(script, config=config_of(admission=AdmissionConfig(enrolment="open", max_staleness=2)))


def test_a_base_is_held_while_a_task_names_it_and_expires_over_budget() -> None:
    async def run(world: Field) -> str:
        slow, fast = await world.peer("slow"), await world.peer("fast")
        task = await slow.task()
        for _ in range(12):
            await fast.contribute()
            await world.settle()
        return (await slow.deliver(slow.update(task))).reason

    roomy = config_of(publish=PublishConfig(min_interval_s=0.0, min_hold_s=0.0, versions=2))
    tight = config_of(publish=PublishConfig(min_interval_s=0.0, min_hold_s=0.0, versions=2, base_budget_mb=0.001))
    assert play(run, config=roomy) == ""
    assert play(run, config=tight) == "base_expired"


def test_a_base_without_a_digest_is_no_base() -> None:
    async def script(world: Field) -> None:
        device = await world.peer()
        task = await device.task()
        unnamed = VersionId(task.base.lineage, 0, "")
        assert (await device.deliver(replace(device.update(task), base=unnamed))).reason == "unknown_base"

    play(script)

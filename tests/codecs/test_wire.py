from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.codecs import arrays, wire
from edge_sdk.core import messages as m
from edge_sdk.core.errors import CodecError, WireFormatError
from edge_sdk.core.records import Segments, UpdateKey, VersionId
from tests.helpers.codec_examples import BASE, KEY, LAYOUT, SPEC, random_tensors

PLAN = m.Plan(("acc", "gyr"), 5, 0.01, 64, "fused")
PUBLISHED = m.Published(BASE, 1000, 1, 3, "ee" * 16, "fp32|zstd")
MESSAGES: list[Any] = [
    m.Task("t-1", "train", BASE, PLAN, 7, 60.0, {"d": wire.pack_array(np.arange(3.0))}),
    m.Status("jetson-7", "online", 2**64 - 1, "", ("acc",), "0.1.0", "orin", ("no gyroscope",)),
    m.Fetch("task"),
    m.Fetch("model", version=BASE, chunks=(0, 5, 9)),
    m.Fetch("update", key=KEY, digest="aa" * 16),
    m.Reply("accepted", KEY, version=BASE),
    m.Reply("rejected", KEY, "norm", "norm 3.2 over 2.0", BASE),
    m.Reply("missing", KEY, chunks=(1, 2)),
    m.Head(PUBLISHED, SPEC, best=PUBLISHED, state="paused"),
    m.Prediction("jetson-7", "walking", 0.75, 10**18, 10**6, ("acc",), None),
    m.LabelMessage("läuft", 10**18, 10**18 + 1, 5),
    m.SpecMessage('{"name":"f"}', SPEC, "c0ffee", {"updates": 3, "acc": [0.5, None, True], "by": {"acc": 0.25}}),
]


def plain(message: Any) -> dict[str, Any]:
    data: dict[str, Any] = msgpack.unpackb(wire.encode(message))
    return data


@pytest.mark.parametrize("message", MESSAGES, ids=lambda x: type(x).__name__)
def test_every_message_comes_back_as_it_was(message: Any) -> None:
    assert wire.decode(type(message), wire.encode(message)) == message


def test_fields_at_their_default_do_not_travel() -> None:
    assert plain(m.Fetch("task")) == {"want": "task"}


def changed(message: Any, path: str, value: Any) -> bytes:
    data = plain(message)
    inner = data
    *outer, last = path.split(".")
    for key in outer:
        inner = inner[key]
    inner[last] = value
    return bytes(msgpack.packb(data))


TASK, FETCH, STATUS, SPEC_MESSAGE = MESSAGES[0], MESSAGES[4], MESSAGES[1], MESSAGES[-1]
BAD_FIELDS = [
    (TASK, "kind", "destroy", "Task.kind"),
    (TASK, "id", 5, "Task.id"),
    (TASK, "id", "x" * 257, "Task.id"),
    (TASK, "number", -1, "Task.number"),
    (TASK, "number", True, "Task.number"),
    (TASK, "number", 2**63, "Task.number"),
    (TASK, "deadline_s", float("nan"), "Task.deadline_s"),
    (TASK, "deadline_s", float("inf"), "Task.deadline_s"),
    (TASK, "deadline_s", "60", "Task.deadline_s"),
    (TASK, "deadline_s", True, "Task.deadline_s"),
    (TASK, "plan", None, "Task.plan"),
    (TASK, "plan.modalities", "acc", "Task.plan.modalities"),
    (TASK, "plan.modalities", [1], "Task.plan.modalities[0]"),
    (TASK, "plan.modalities", ["a"] * 1025, "1025"),
    (TASK, "plan.secret", 1, "unknown field 'secret'"),
    (TASK, "base.digest", "AB" * 16, "Task.base.digest"),
    (TASK, "base.lineage", "", "Task.base.lineage"),
    (TASK, "base.number", 1.0, "Task.base.number"),
    (TASK, "extras", {"d": "text"}, "Task.extras.d"),
    (TASK, "extras", {str(i): b"" for i in range(65)}, "Task.extras"),
    (FETCH, "key.device", "a/b", "Fetch.key.device"),
    (FETCH, "key.device", "a\n", "Fetch.key.device"),
    (FETCH, "key.device", "", "Fetch.key.device"),
    (FETCH, "key.incarnation", -1, "Fetch.key.incarnation"),
    (FETCH, "digest", "zz" * 16, "Fetch.digest"),
    (STATUS, "state", "asleep", "Status.state"),
    (STATUS, "spec_digest", "abc", "Status.spec_digest"),
    (SPEC_MESSAGE, "stats", {"a": float("inf")}, "SpecMessage.stats.a"),
    (SPEC_MESSAGE, "stats", {"a": b"x"}, "SpecMessage.stats.a"),
    (SPEC_MESSAGE, "stats", {"a": [[[[[[[[[[1]]]]]]]]]]}, "nested"),
]


@pytest.mark.parametrize(("message", "path", "value", "named"), BAD_FIELDS, ids=lambda v: str(v)[:24])
def test_a_wrong_field_is_refused_by_name(message: Any, path: str, value: Any, named: str) -> None:
    with pytest.raises(WireFormatError) as caught:
        wire.decode(type(message), changed(message, path, value))
    assert named in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("message", MESSAGES, ids=lambda x: type(x).__name__)
def test_a_missing_field_is_refused_by_name(message: Any) -> None:
    for field in dataclasses.fields(message):
        data = plain(message)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            del data[field.name]
            with pytest.raises(WireFormatError, match=rf"{type(message).__name__}\.{field.name}: missing"):
                wire.decode(type(message), msgpack.packb(data))


def test_a_sender_hears_of_its_own_mistake() -> None:
    with pytest.raises(WireFormatError, match=r"Fetch\.key\.device"):
        wire.encode(m.Fetch("update", key=UpdateKey("a b", 1, 1)))
    with pytest.raises(WireFormatError, match=r"VersionId|lineage"):
        wire.encode(m.Reply("accepted", version=VersionId("lineage", 1, "aa" * 16)))
    with pytest.raises(WireFormatError, match=r"Prediction\.confidence"):
        wire.encode(dataclasses.replace(MESSAGES[9], confidence=float("nan")))


def test_a_message_of_more_than_96_kib_is_refused_both_ways() -> None:
    task = dataclasses.replace(TASK, extras={"d": bytes(wire.MAX_MESSAGE)})
    with pytest.raises(WireFormatError, match="at most 98304"):
        wire.encode(task)
    with pytest.raises(WireFormatError, match="at most 98304"):
        wire.decode(m.Task, bytes(wire.MAX_MESSAGE + 1))


HOSTILE = [
    b"", b"\xc1", b"\x00", b"\xc0", b"\x90", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xffab", b"\x91" * 90_000, b"\x81\xa4want" * 10_000, b"\x81\x01\x02", b"\x81\x90\x01",
    b"\x81\xa4want\xa2\xff\xfe", b"\x81\xa4want\xd4\x05\x00", b"\x81\xa4want\xd6\xff\x00\x00\x00\x00",
    b"\x82\xa4want\xa4task\xa4want\xa4task", b"\x81\xa4want\xa4task" + b"\x00",
    b"\x81\xa4want" + b"\xdc\x04\x00" * 30_000,
]  # fmt: skip


@pytest.mark.parametrize("payload", HOSTILE, ids=lambda p: p[:8].hex())
def test_hostile_msgpack_is_refused_in_little_memory(payload: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(WireFormatError):
        wire.decode(m.Fetch, payload)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000_000


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_random_changes_of_messages_are_refused_or_valid(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(MESSAGES))
    raw = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for payload in (bytes(raw), bytes(raw[:cut])):
        try:
            found = wire.decode(type(message), payload)
        except WireFormatError:
            continue
        assert wire.decode(type(message), wire.encode(found)) == found


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(MESSAGES), st.data())
def test_any_value_in_any_field_is_refused_or_valid(message: Any, data: st.DataObject) -> None:
    content = plain(message)
    content[data.draw(st.sampled_from(sorted(content)))] = data.draw(json_like)
    try:
        found = wire.decode(type(message), msgpack.packb(content))
    except WireFormatError:
        return
    assert wire.decode(type(message), wire.encode(found)) == found


@pytest.mark.parametrize("dtype", sorted(arrays.DTYPES.values()))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4)])
def test_arrays_come_back_as_they_were(dtype: str, shape: tuple[int, ...]) -> None:
    a = (np.arange(np.prod(shape, dtype=int)) % 2).astype(dtype).reshape(shape)
    b = wire.unpack_array(wire.pack_array(a))
    assert b.dtype == a.dtype
    assert b.shape == a.shape
    assert np.array_equal(a, b)
    assert b.flags.writeable


def test_a_big_endian_array_travels_little_endian() -> None:
    assert wire.pack_array(np.array([1], ">i4")) == bytes.fromhex("06010000 01000000 01000000")


@pytest.mark.parametrize("a", [np.array(["a"]), np.array([None]), np.array([1j]), np.zeros((1,) * 9)], ids=str)
def test_arrays_that_do_not_travel_are_refused(a: np.ndarray[Any, Any]) -> None:
    with pytest.raises(CodecError):
        wire.pack_array(a)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "010000",
        "00000000",  # no such type
        "0d000000",
        "01000100",  # third byte
        "01090000" + "01000000" * 9,
        "01010000",  # no size
        "01010000 02000000 00000000",  # one value of two
        "01010000 01000000 00000000 00",  # a byte too many
        "01020000 ffffffff ffffffff",
        "02080000" + "ffffffff" * 8,
        "01030000 00000000 ffffffff ffffffff",  # empty, with sizes that overflow
        "0c010000 01000000 02",  # neither true nor false
    ],
)
def test_hostile_arrays_are_refused(text: str) -> None:
    with pytest.raises(WireFormatError):
        wire.unpack_array(bytes.fromhex(text))


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_random_bytes_are_an_array_or_refused(data: bytes) -> None:
    try:
        a = wire.unpack_array(data)
    except WireFormatError:
        return
    assert wire.pack_array(a) == data


def test_digests_follow_sorted_names_and_not_the_order_of_insertion() -> None:
    tensors = random_tensors(LAYOUT)
    backwards = dict(reversed(tensors.items()))
    assert wire.tensors_digest(tensors) == wire.tensors_digest(backwards)
    assert wire.params_digest(tensors) == wire.params_digest(backwards)
    assert wire.tensors_digest(tensors) != wire.params_digest(tensors)


def test_digests_have_known_values() -> None:
    two = {
        "b": Segments(np.array([2.0], np.float32)),
        "a": Segments(np.array([1.0], np.float32)),
    }
    known = wire.object_digest(bytes.fromhex("0000803f 00000040"))
    assert wire.params_digest(two) == wire.tensors_digest(two) == known
    more = two | {"a": Segments(two["a"].params, np.array([3.0], np.float32), np.array([4]))}
    full = bytes.fromhex("0000803f 00000040 00004040 0400000000000000")
    assert wire.tensors_digest(more) == wire.object_digest(full)
    assert wire.params_digest(more) == known
    assert wire.object_digest(b"") == "cae66941d9efbd404e4d88758ea67670"

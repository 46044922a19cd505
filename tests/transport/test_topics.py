from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.core.errors import ConfigError, WireFormatError
from edge_sdk.transport.topics import Parsed, Topics, check_filter, matches, packet_bytes

T = Topics("gait-1")


def test_every_topic_stands_where_the_protocol_says() -> None:
    assert T.spec == "edge/1/gait-1/spec"
    assert T.head == "edge/1/gait-1/model/head"
    assert T.model_chunk(3, 17) == "edge/1/gait-1/model/3/17"
    assert [T.status("d1"), T.task("d1"), T.update("d1"), T.fetch("d1"), T.reply("d1"), T.prediction("d1")] == [
        f"edge/1/gait-1/device/d1/{k}" for k in ("status", "task", "update", "fetch", "reply", "prediction")
    ]
    assert T.label("d1") == "edge/1/gait-1/device/d1/label"
    assert T.all_chunks(2) == "edge/1/gait-1/model/2/+"


def test_parse_is_the_inverse() -> None:
    assert T.parse(T.spec) == Parsed("spec")
    assert T.parse(T.head) == Parsed("head")
    assert T.parse(T.model_chunk(3, 0)) == ("model", "", 3, 0)
    for kind, topic in {
        "status": T.status("A_b-9"),
        "task": T.task("A_b-9"),
        "update": T.update("A_b-9"),
        "fetch": T.fetch("A_b-9"),
        "reply": T.reply("A_b-9"),
        "prediction": T.prediction("A_b-9"),
        "label": T.label("A_b-9"),
    }.items():
        assert T.parse(topic) == Parsed(kind, device="A_b-9")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "edge/1/gait-1",
        "edge/1/gait-1/",
        "edge/1/gait-1/specs",
        "edge/1/gait-10/spec",
        "edge/2/gait-1/spec",
        "edge/1/gait-1/model/3",
        "edge/1/gait-1/model/x/0",
        "edge/1/gait-1/model/3/01",
        "edge/1/gait-1/model/3/-1",
        "edge/1/gait-1/model/3/" + "9" * 40,
        "edge/1/gait-1/model/٣/0",
        "edge/1/gait-1/device/d1",
        "edge/1/gait-1/device/d1/status/x",
        "edge/1/gait-1/device/d1/other",
        "edge/1/gait-1/device//status",
        "edge/1/gait-1/device/d1\n/status",
        "edge/1/gait-1/device/" + "d" * 65 + "/status",
    ],
)
def test_what_is_no_topic_is_refused(topic: str) -> None:
    with pytest.raises(WireFormatError, match="gait-1"):
        T.parse(topic)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "ä", "d\n", "x" * 65])
def test_identifiers(name: str) -> None:
    with pytest.raises(ConfigError):
        Topics(name)
    with pytest.raises(ConfigError):
        T.task(name)


@given(st.text(max_size=80))
def test_parse_never_fails_otherwise(text: str) -> None:
    for topic in (text, f"{T.root}/{text}", f"{T.root}/device/{text}", f"{T.root}/model/{text}"):
        try:
            T.parse(topic)
        except WireFormatError:
            continue


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("+/+", "/a", True),
        ("+", "/a", False),
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/d", False),
    ],
)
def test_matches(topic_filter: str, topic: str, expected: bool) -> None:
    check_filter(topic_filter)
    assert matches(topic_filter, topic) is expected


def test_filters_cover_their_topics_and_no_others() -> None:
    assert matches(T.all_updates, T.update("d1"))
    assert not matches(T.all_updates, T.reply("d1"))
    assert any(matches(f, T.fetch("d1")) for f in T.coordinator_filters)
    assert not any(matches(f, T.task("d2")) for f in T.device_filters("d1"))


@pytest.mark.parametrize(
    ("payload", "header"), [(0, 2), (121, 2), (122, 2), (123, 3), (16_377, 3), (16_379, 4), (2_097_147, 5)]
)
def test_packet_size(payload: int, header: int) -> None:
    # "t": 2 + 1 bytes, packet id 2; a remaining length of 127 needs one byte, of 128 two
    assert packet_bytes("t", bytes(payload)) == header + 5 + payload

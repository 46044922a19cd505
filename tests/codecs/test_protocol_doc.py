"""`docs/protocol.md` is true: a decoder written from its text alone reads its examples, and so do we."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from edge_sdk.codecs import arrays, chunks, headers, schema, wire
from edge_sdk.codecs.chain import Chain
from edge_sdk.core import messages, records
from edge_sdk.core.errors import Reason
from edge_sdk.core.messages import Fetch, Plan, Reply, Task
from edge_sdk.core.records import UpdateKey, VersionId
from tests.helpers.codec_examples import module

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLES = {
    name: bytes.fromhex(block)
    for name, block in re.findall(r"<!-- example: ([\w-]+) -->\n```hex\n(.*?)```", TEXT, re.DOTALL)
}
LAYOUT = {"fusion": module({"bias": (2,), "weight": (2, 3)})}
VERSION = VersionId("00112233445566778899aabbccddeeff", 4, "2b7b76879d53dd5e550ca68ce651c336")
KEY = UpdateKey("jetson-7", 258, 3)
BIAS, WEIGHT = [0.0, 1.0], [[0.5, 0.0, -0.5], [1.0, 2.0, 3.0]]


def blake(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def test_there_are_examples_of_everything() -> None:
    assert set(EXAMPLES) == {
        "fetch-task", "task", "chunk-preamble", "update-object", "model-object", "array", "reply-accepted",
    }  # fmt: skip


def test_messages() -> None:
    task = Task("t-9", "train", VERSION, Plan(("acc", "gyr"), 5, 0.01, 64), 9, 60.0)
    for name, message in (
        ("fetch-task", Fetch("task")),
        ("task", task),
        ("reply-accepted", Reply("accepted", KEY, version=VERSION)),
    ):
        assert wire.decode(type(message), EXAMPLES[name]) == message
        assert wire.encode(message) == EXAMPLES[name]


def test_array() -> None:
    expected = np.array([[0.5], [1.25]], np.float32)
    assert np.array_equal(wire.unpack_array(EXAMPLES["array"]), expected)
    assert wire.pack_array(expected) == EXAMPLES["array"]


def test_preamble_by_the_text() -> None:
    preamble, data = EXAMPLES["chunk-preamble"], EXAMPLES["update-object"]
    fields = struct.unpack("<4sBBH16sIIQ16sII", preamble)
    key = blake(f"update/jetson-7/258/3/{blake(data).hex()}".encode())
    crc = zlib.crc32(preamble[:60] + data)
    assert fields == (b"EDSK", 1, 1, 0, key, 0, 1, len(data), blake(data), len(data), crc)
    assert len(data) == 426
    assert chunks.split(data, "update", chunks.update_key(KEY, wire.object_digest(data))) == [preamble + data]


def sections(data: bytes, magic: bytes) -> tuple[dict[str, Any], bytes]:
    found, length = struct.unpack_from("<4sI", data)
    assert found == magic
    header: dict[str, Any] = msgpack.unpackb(data[8 : 8 + length])
    return header, data[8 + length :]


def test_update_by_the_text() -> None:
    header, rest = sections(EXAMPLES["update-object"], b"EDSU")
    assert header["kind"] == "delta"
    assert header["chain"] == "delta|int8"
    assert header["sizes"] == [8]
    q = struct.unpack_from("<8b", rest)
    bias, *rows = struct.unpack_from("<3f", rest, 8)
    scales = [bias, bias, rows[0], rows[0], rows[0], rows[1], rows[1], rows[1]]
    assert [np.float32(a) * np.float32(s) for a, s in zip(q, scales, strict=True)] == [0, 0.5, 0, 0.25, 0, 0, 0, -0.5]
    assert struct.unpack_from("<2f", rest, 20) == (0.5, 1.25)
    assert len(rest) == 28


def test_update_by_the_chain() -> None:
    update = Chain("delta|int8", LAYOUT).decode_update(EXAMPLES["update-object"])
    assert (update.key, update.base, update.task, update.num_steps) == (KEY, VERSION, "t-9", 20)
    assert update.tensors["fusion"].params.tolist() == [0, 0.5, 0, 0.25, 0, 0, 0, -0.5]
    assert update.payload["distances"].tolist() == [0.5, 1.25]
    assert Chain("delta|int8", LAYOUT).encode_update(update).data == EXAMPLES["update-object"]


def test_model_by_the_text_and_by_the_chain() -> None:
    header, rest = sections(EXAMPLES["model-object"], b"EDSM")
    values = [*BIAS, *WEIGHT[0], *WEIGHT[1]]
    assert struct.unpack("<8f", rest) == tuple(values)
    assert blake(rest).hex() == header["id"]["digest"] == VERSION.digest
    assert VERSION.digest in TEXT.split("## 6")[0].split("### 5.3")[1]
    version = Chain("fp32", LAYOUT).decode_model(EXAMPLES["model-object"])
    assert version.id == VERSION
    assert Chain("fp32", LAYOUT).encode_model(version) == EXAMPLES["model-object"]


RECORDS = [
    *(getattr(messages, name) for name in messages.__all__ if name not in ("PROTOCOL", "QUERY")),
    records.VersionId,
    records.UpdateKey,
    headers.UpdateHeader,
    headers.ModelHeader,
    headers.ModulePart,
    headers.ArrayPart,
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
def test_every_field_is_described_where_its_record_is(record: type) -> None:
    start = TEXT.index(f"**{record.__name__}**")
    section = TEXT[start : TEXT.find("\n**", start + 1)]
    described = set(re.findall(r"`(\w+)`", section))
    for field in dataclasses.fields(record):
        assert field.name in described, f"{record.__name__}.{field.name} is not in docs/protocol.md"


def test_every_choice_reason_step_and_type_is_described() -> None:
    for choices in schema._CHOICES.values():
        assert all(f"`{choice}`" in TEXT for choice in choices)
    assert all(f"`{reason.value}`" in TEXT for reason in Reason)
    assert all(f"| `{step}` |" in TEXT for step in ("delta", "fp32", "fp16", "int8", "zstd"))
    for code, dtype in arrays.DTYPES.items():
        assert f"| {code} | {np.dtype(dtype).name}" in TEXT


def test_the_limits_are_those_of_the_program() -> None:
    for number in (chunks.MAX_CHUNK, chunks.MAX_COUNT, chunks.MIN_PAYLOAD, headers.MAX_HEADER, schema.MAX_ITEMS):
        assert f"{number:,}" in TEXT
    assert f"{wire.MAX_MESSAGE:,}" in TEXT
    assert f"{chunks.MAX_CHUNK - chunks.PREAMBLE_BYTES:,}" in TEXT

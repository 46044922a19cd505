from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.codecs import chunks, wire
from edge_sdk.codecs.tasks import TaskReader, encode
from edge_sdk.core.errors import WireFormatError
from edge_sdk.core.messages import Plan, Task
from edge_sdk.core.records import VersionId

SMALL = Task("t1", "train", VersionId("a" * 32, 1, "b" * 32), Plan(("acc",), 1, 0.1, 8), 3, 60.0)


def large(values: int = 100_000) -> Task:
    block = np.arange(values, dtype=np.float32)
    return replace(SMALL, extras={"personal.fusion": wire.pack_array(block)})


def test_a_small_task_is_one_message() -> None:
    assert encode("d1", SMALL) == [wire.encode(SMALL)]
    assert TaskReader().read(wire.encode(SMALL), 0) == SMALL


def test_a_large_task_comes_in_chunks_in_any_order_and_twice() -> None:
    parts = encode("d1", large())
    assert len(parts) == 5
    assert all(chunks.is_chunk(part) and len(part) <= chunks.MAX_CHUNK for part in parts)
    reader = TaskReader()
    assert [reader.read(part, 0) for part in [*parts[::-1][:-1], parts[1], parts[4]]] == [None] * 6
    assert reader.read(parts[0], 0) == large()


def test_the_same_task_sent_again_later_is_another_object() -> None:
    first, again = encode("d1", large()), encode("d1", replace(large(), deadline_s=30.0))
    reader = TaskReader()
    assert reader.read(first[0], 0) is None
    results = [reader.read(part, 0) for part in again]
    assert results[-1] == replace(large(), deadline_s=30.0)


def test_what_is_incomplete_is_dropped_with_the_connection() -> None:
    parts = encode("d1", large())
    reader = TaskReader()
    for part in parts[:-1]:
        reader.read(part, 0)
    reader.forget()
    assert reader.read(parts[-1], 0) is None


def test_a_damaged_chunk_is_refused() -> None:
    part = bytearray(encode("d1", large())[0])
    part[-1] ^= 1
    with pytest.raises(WireFormatError, match="CRC"):
        TaskReader().read(bytes(part), 0)


def test_a_chunk_of_something_else_is_no_task() -> None:
    data = wire.encode(SMALL)
    (part,) = chunks.split(data[:-1], "task", chunks.task_key("d1", "t1", "0" * 32))
    with pytest.raises(WireFormatError):
        TaskReader().read(part, 0)

"""Writes the hostile files beside it: bytes that claim to be updates, versions, chunks or messages, and lie.

`<kind>_<what>.bin`, kind being the parser that must refuse it. Each file breaks one rule and keeps all others,
checksums included, so that no earlier check hides the one that is meant. Run it again after a change of the format.

    python -m tests.hostile.make_hostile
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import zstandard

from edge_sdk.codecs import chunks, wire
from edge_sdk.codecs.chain import Chain
from edge_sdk.core.messages import Fetch
from tests.helpers.codec_examples import KEY, LAYOUT, make_update, make_version, random_tensors

HERE = Path(__file__).resolve().parent
UP, DOWN = "delta|int8|zstd", "fp32|zstd"
Change = Callable[[dict[str, Any]], None]


def update_object() -> bytes:
    """A correct update."""
    return Chain(UP, LAYOUT).encode_update(make_update()).data


def model_object() -> bytes:
    """A correct version."""
    return Chain(DOWN, LAYOUT).encode_model(make_version(random_tensors(LAYOUT, 1)))


def reheaded(data: bytes, change: Change) -> bytes:
    """Returns an object with its header changed and everything else as it was."""
    (length,) = struct.unpack_from("<I", data, 4)
    header = msgpack.unpackb(data[8 : 8 + length])
    change(header)
    packed = msgpack.packb(header)
    return data[:4] + struct.pack("<I", len(packed)) + packed + data[8 + length :]


def put(*path: str | int, value: Any) -> Change:
    """Returns a change that sets one value of the header."""

    def change(header: Any) -> None:
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = value

    return change


def bomb() -> bytes:
    """An update whose packed part is a zstd frame of 256 MiB of zeros that states its true size."""
    data = update_object()
    frame = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 28))
    (length,) = struct.unpack_from("<I", data, 4)
    old = msgpack.unpackb(data[8 : 8 + length])["sizes"][1]
    swapped = data[: 8 + length] + frame + data[8 + length + old :]

    def change(header: dict[str, Any]) -> None:
        header["sizes"][1] = len(frame)

    return reheaded(swapped, change)


def scaled(value: float) -> bytes:
    """An update whose first int8 scale is `value`."""
    data = update_object()
    (length,) = struct.unpack_from("<I", data, 4)
    offset = 8 + length + msgpack.unpackb(data[8 : 8 + length])["sizes"][1]
    return data[:offset] + struct.pack("<f", value) + data[offset + 4 :]


def chunk(offset: int, layout: str, value: int) -> bytes:
    """The first chunk of an object of 5,000 bytes with one number changed and a right CRC."""
    raw = bytearray(chunks.split(bytes(5000), "update", chunks.update_key(KEY, "aa" * 16), chunk_bytes=1088)[0])
    struct.pack_into("<" + layout, raw, offset, value)
    struct.pack_into("<I", raw, 60, zlib.crc32(raw[64:], zlib.crc32(raw[:60])))
    return bytes(raw)


def message(**changes: Any) -> bytes:
    """A Fetch with changed fields."""
    return bytes(msgpack.packb(msgpack.unpackb(wire.encode(Fetch("update", key=KEY, digest="aa" * 16))) | changes))


def files() -> dict[str, bytes]:
    """Returns every hostile file by name."""
    update, model = update_object(), model_object()
    twin = update_object()
    return {
        "update_zstd_bomb": bomb(),
        "update_nan_scale": scaled(float("nan")),
        "update_negative_scale": scaled(-1.0),
        "update_truncated": update[:-1],
        "update_trailing_byte": update + b"\0",
        "update_header_length": update[:4] + struct.pack("<I", 2**32 - 1) + update[8:],
        "update_negative_samples": reheaded(update, put("num_samples", value=-512)),
        "update_huge_module": reheaded(update, put("modules", 0, "params", value=2**62)),
        "update_wrong_shape": reheaded(update, put("modules", 2, "params", value=101)),
        "update_unknown_module": reheaded(update, put("modules", 2, "name", value="head.acc")),
        "update_module_twice": reheaded(update, put("modules", 1, "name", value="encoder.acc")),
        "update_lying_size": reheaded(update, put("sizes", 0, value=2**40)),
        "update_lying_compressed_size": reheaded(update, put("sizes", 1, value=17)),
        "update_huge_payload": reheaded(update, put("payload", 0, "shape", value=[2**31, 2**31, 2**31])),
        "update_unknown_type": reheaded(update, put("payload", 0, "type", value=99)),
        "update_other_chain": reheaded(update, put("chain", value="fp32")),
        "update_traversal_device": reheaded(update, put("key", "device", value="../../etc/passwd")),
        "update_infinite_time": reheaded(update, put("train_s", value=float("inf"))),
        "update_extra_field": reheaded(twin, put("__reduce__", value="os.system")),
        "model_wrong_digest": model[:-1] + bytes([model[-1] ^ 1]),
        "model_lacks_a_module": reheaded(model, lambda header: header["modules"].pop()),
        "model_unexpected_base": reheaded(model, lambda header: header.update(base=dict(header["id"]))),
        "chunk_count_lie": chunk(28, "I", 4_000_000_000),
        "chunk_total_lie": chunk(32, "Q", 2**63),
        "chunk_number_beyond": chunk(24, "I", 5),
        "chunk_protocol_2": chunk(4, "B", 2),
        "message_deep": b"\x91" * 50_000,
        "message_wide": b"\xdd\xff\xff\xff\xff",
        "message_nested_wide": b"\x81\xa4want" + b"\xdc\x04\x00" * 5_000,
        "message_field_twice": b"\x82\xa4want\xa4task\xa4want\xa5model",
        "message_negative_incarnation": message(key=dataclasses.asdict(KEY) | {"incarnation": -1}),
        "message_extension": b"\x81\xa4want\xc7\x04\x05evil",
        "message_not_text": b"\x81\xa4want\xa4\xff\xfe\xfd\xfc",
    }


def main() -> None:
    """Writes them all."""
    for name, data in files().items():
        (HERE / f"{name}.bin").write_bytes(data)


if __name__ == "__main__":
    main()

"""`zstd`: Zstandard at level 1, within 1 % of order-0 entropy on quantised updates and twenty times faster than 19."""

from __future__ import annotations

from typing import ClassVar

import zstandard

from edge_sdk.codecs.steps import Buffer, ByteStep
from edge_sdk.core.errors import WireFormatError

_LEVEL = 1


class Zstd(ByteStep):
    """One frame that states its content size."""

    name: ClassVar[str] = "zstd"

    def encode(self, data: bytes) -> bytes:
        return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=False).compress(data)

    def decode(self, data: Buffer, size: int) -> bytes:
        try:
            stated = zstandard.get_frame_parameters(data).content_size
            if stated != size:
                raise WireFormatError(f"zstd: the frame states {stated} bytes of content, expected {size}")
            if not size and bytes(data) != self.encode(b""):  # the library does not look behind a size of 0
                raise WireFormatError("zstd: an empty frame with something in it")
            # A decompressor is not safe to share between threads, and one is made in microseconds.
            out = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise WireFormatError(f"zstd: not a valid frame: {error}") from error
        if len(out) != size:
            raise WireFormatError(f"zstd: {len(out)} bytes of content, expected {size}")
        return out


STEP = Zstd()

__all__ = ["STEP", "Zstd"]

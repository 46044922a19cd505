"""Lines of text as a sensor: transcripts and notes from a file that grows, a named pipe, standard input, or MQTT.

Each line is one sample of token numbers, (length,), 0 where the line is shorter. Its time is when the line was read: a
pipe tells at once, a file is looked at every POLL_S, and a message comes when its broker sends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from edge_sdk.core.config import BrokerConfig, parse
from edge_sdk.core.errors import ConfigError
from edge_sdk.core.interfaces import Driver
from edge_sdk.core.records import Array, Chunk
from edge_sdk.core.spec import Model
from edge_sdk.features import byte_tokens, load_tokenizer
from edge_sdk.features.words import Tokenizer
from sensors.lines import MAX_LINE, POLL_S, FileLines, Line, Lines
from sensors.topic_lines import TopicLines

CUT = 1  # Chunk.flags: the line was longer than MAX_LINE, or had more tokens than fit
AFTER_LOST = 2  # Chunk.flags: messages before it were refused


class Options(Model):
    """Keys of `[sensors.<modality>.options]`."""

    path: str = ""  # file or named pipe; "-": standard input
    topic: str = Field(default="", max_length=65_535)  # or an MQTT topic
    broker: BrokerConfig = BrokerConfig()  # where the topic is; the same keys as `[broker]`
    follow: bool = True  # at the end of a file wait for more; false: the sensor is exhausted
    from_start: bool = True  # false: only lines that are written from now on
    length: int = Field(default=256, ge=0)  # tokens per line; 0: as many as the line has, for the feature `text`
    tokenizer: str = Field(default="bytes", min_length=1)  # "bytes", or a folder with a tokenizer of transformers

    @model_validator(mode="after")
    def _one_source(self) -> Options:
        if bool(self.path) == bool(self.topic):
            raise ValueError("either path (a file, a pipe, or - for standard input) or topic (of MQTT) is required")
        return self


class TextDriver(Driver):
    """Delivers one chunk per line that is not blank."""

    def __init__(self, stream: str, options: Mapping[str, Any]) -> None:
        super().__init__(stream, options)
        where = f"sensors.{stream}.options"
        self._options = o = parse(options, Options, where)
        self._tokens: Tokenizer = byte_tokens
        if o.tokenizer != "bytes":
            if not Path(o.tokenizer).is_dir():
                raise ConfigError(
                    f"{where}:tokenizer: {o.tokenizer!r} is neither 'bytes' nor a folder with a tokenizer"
                )
            self._tokens = load_tokenizer(o.tokenizer, f"{where}:tokenizer")
        self.lines: Lines = (
            TopicLines(o.topic, o.broker, stream)
            if o.topic
            else FileLines(o.path, f"{where}.path", follow=o.follow, from_start=o.from_start)
        )
        self._seq = 0
        self._last_ns = -(2**62)

    def open(self) -> None:
        self._seq = 0
        self.lines.open()

    def read(self, timeout_s: float) -> Chunk | None:
        line = self.lines.next(timeout_s)
        return None if line is None else self._chunk(line)

    def close(self) -> None:
        self.lines.close()

    def _chunk(self, line: Line) -> Chunk:
        tokens = self._tokens(line.data.decode("utf-8", errors="replace").strip())
        length = self._options.length or len(tokens)
        data: Array = np.zeros((1, length), np.int32)
        kept = tokens[:length]
        data[0, : len(kept)] = kept
        self._last_ns = max(self.now_ns(), self._last_ns + 1)
        chunk = Chunk(
            stream=self.stream,
            seq=self._seq,
            t_ns=self._last_ns,
            data=data,
            t_err_ns=self.lines.err_ns,
            flags=CUT * (line.cut or len(tokens) > length) | AFTER_LOST * line.after_lost,
        )
        self._seq += 1
        return chunk


__all__ = ["AFTER_LOST", "CUT", "MAX_LINE", "POLL_S", "TextDriver"]

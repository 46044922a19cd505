"""Text as tokens: what a modality with the feature `text` holds. transformers is imported when the first is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_sdk.core.errors import ConfigError, PluginError
from edge_sdk.core.records import Array, Float32

Tokenizer = Callable[[str], list[int]]  # a line → token numbers, special ones included


def byte_tokens(text: str) -> list[int]:
    """Returns the UTF-8 bytes, each plus 1: 1 … 256; 0 is padding. What a text sensor delivers."""
    return [byte + 1 for byte in text.encode("utf-8")]


def from_byte_tokens(tokens: Array) -> str:
    """Returns the text of byte tokens, (n,); bytes that are no UTF-8 (a character cut in two) become U+FFFD."""
    inside = tokens[(tokens > 0) & (tokens <= 256)]
    return (inside - 1).astype(np.uint8).tobytes().decode("utf-8", errors="replace")


def load_tokenizer(source: str, where: str, length: int | None = None) -> Tokenizer:
    """Returns a tokenizer of transformers; looks into a folder, else into the hub's cache, else at the hub.

    Args:
        source: folder, or name on the hub. Code of the hub is never run.
        where: the configuration key, for errors.
        length: tokens to which a text is cut, special ones kept; None: nothing is cut.

    Raises:
        ConfigError: there is no such tokenizer.
        PluginError: transformers is not installed.
    """
    folder = Path(source).is_dir()
    if not folder and (source.startswith(("/", ".", "~")) or source.count("/") > 1):
        raise ConfigError(f"{where}: there is no folder {source!r}")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise PluginError(
            f"{where}: the tokenizer {source!r} needs transformers: pip install 'edge-sdk[text]'"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if folder:
            raise ConfigError(f"{where}: {source} holds no tokenizer: {_line(error)}") from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as failure:
            raise ConfigError(
                f"{where}: {source!r} is no folder and cannot be had from the hub: {_line(failure)}; {by_hand(source)}"
            ) from failure
    return lambda text: list(tokenizer(text, truncation=length is not None, max_length=length)["input_ids"])


def by_hand(source: str) -> str:
    """Returns how to bring what the hub calls `source` to a machine that does not reach it."""
    folder = source.rpartition("/")[2]
    return (
        f"where the hub can be reached, run: hf download {source} --local-dir {folder}; copy the folder here and give "
        f"its path (./{folder}) in the place of the name"
    )


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def token_rows(tokens: list[int], length: int) -> Float32:
    """Returns float32 (2, length): the numbers, then 1 where there is a token; both 0 behind the last."""
    out = np.zeros((2, length), np.float32)  # every number up to 2²⁴ is exact
    kept = tokens[:length]
    out[0, : len(kept)] = kept
    out[1, : len(kept)] = 1.0
    return out


__all__ = ["Tokenizer", "by_hand", "byte_tokens", "from_byte_tokens", "load_tokenizer", "token_rows"]

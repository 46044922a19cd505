"""A tokenizer of eight words, saved as transformers saves one."""

from __future__ import annotations

from pathlib import Path

import pytest

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three")


def save_tokenizer(folder: Path) -> Path:
    """Returns the folder; skips the test where transformers is not installed."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `text`)")
    vocab = {word: number for number, word in enumerate(WORDS)}
    transformers.BertTokenizerFast(vocab=vocab).save_pretrained(folder)
    return folder

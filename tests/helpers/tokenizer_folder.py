"""A tokenizer of eight words, saved as transformers saves one, whatever its release."""

from __future__ import annotations

from pathlib import Path

import pytest

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three")


def save_tokenizer(folder: Path) -> Path:
    """Returns the folder; skips the test where transformers is not installed."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `text`)")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    numbers = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(w, numbers[w]) for w in ("[CLS]", "[SEP]")]
    )
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    saved.save_pretrained(folder)
    return folder

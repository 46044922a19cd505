"""Text: bytes there and back, and tokenizers of transformers from a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk import features
from edge_sdk.core.errors import ConfigError, PluginError
from tests.helpers.tokenizer_folder import WORDS, save_tokenizer


@given(st.text(), st.integers(0, 9))
def test_byte_tokens_and_back(text: str, padding: int) -> None:
    tokens = np.array([*features.byte_tokens(text), *[0] * padding], np.int32)
    assert features.from_byte_tokens(tokens) == text


def test_what_is_no_text() -> None:
    assert features.from_byte_tokens(np.array([-5, 196, 0, 300])) == "�"


def test_rows_of_tokens() -> None:
    rows = features.token_rows([5, 2**24, 3], 5)
    assert rows.tolist() == [[5, 2**24, 3, 0, 0], [1, 1, 1, 0, 0]]
    assert rows.dtype == np.float32
    assert features.token_rows([1, 2, 3], 2).tolist() == [[1, 2], [1, 1]]


def test_a_tokenizer_cuts_and_keeps_its_special_tokens(tmp_path: Path) -> None:
    tokenizer = features.load_tokenizer(str(save_tokenizer(tmp_path)), "here", 4)
    assert tokenizer("one two") == [WORDS.index(w) for w in ("[CLS]", "one", "two", "[SEP]")]
    assert tokenizer("one two three one") == [WORDS.index(w) for w in ("[CLS]", "one", "two", "[SEP]")]
    assert len(features.load_tokenizer(str(tmp_path), "here")("one " * 9)) == 11


@pytest.mark.parametrize("source", ["/no/such", "./there", "a/b/c"])
def test_a_folder_that_is_not_there(source: str) -> None:
    with pytest.raises(ConfigError, match=f"modality note: feature.tokenizer: there is no folder '{source}'"):
        features.load_tokenizer(source, "modality note: feature.tokenizer")


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (extra `text`)")
    with pytest.raises(ConfigError, match=r"here: .* holds no tokenizer"):
        features.load_tokenizer(str(tmp_path), "here")


def test_without_the_library_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PluginError, match=r"pip install 'edge-sdk\[text\]'"):
        features.load_tokenizer(str(tmp_path), "here")

"""Lines from files, pipes and standard input; the pipes are real."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.core.errors import ConfigError, SensorUnavailable
from edge_sdk.core.records import Chunk
from edge_sdk.features import byte_tokens
from sensors.lines import FileLines
from sensors.text import CUT, MAX_LINE, POLL_S, TextDriver
from tests.helpers.tokenizer_folder import save_tokenizer


def words(chunk: Chunk) -> str:
    assert chunk.data.shape[0] == 1
    return bytes(int(token) - 1 for token in chunk.data[0] if token).decode()


def everything(driver: TextDriver) -> list[Chunk]:
    """Reads to the end of a source that has one."""
    chunks = []
    for _ in range(10_000):
        try:
            chunk = driver.read(0.0)
        except EOFError:
            return chunks
        if chunk is not None:
            chunks.append(chunk)
    raise AssertionError("no end")


def next_line(driver: TextDriver) -> str:
    for _ in range(100):
        chunk = driver.read(0.1)
        if chunk is not None:
            return words(chunk)
    raise AssertionError("nothing came")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text("one\n\n  two  \nthree", encoding="utf-8")
    return path


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_a_finite_file_ends_with_its_last_line(notes: Path) -> None:
    driver = TextDriver("note", {"path": str(notes), "follow": False, "length": 8})
    driver.open()
    chunks = everything(driver)
    assert [words(c) for c in chunks] == ["one", "two", "three"]
    assert [c.seq for c in chunks] == [0, 1, 2]
    assert chunks[0].data.tolist() == [[112, 111, 102, 0, 0, 0, 0, 0]]
    assert chunks[0].t_ns < chunks[1].t_ns < chunks[2].t_ns
    assert all(c.t_err_ns == POLL_S * 1e9 and c.flags == 0 for c in chunks)
    driver.close()


def test_a_growing_file_is_followed(notes: Path) -> None:
    driver = TextDriver("note", {"path": str(notes), "from_start": False})
    driver.open()
    assert driver.read(0.0) is None
    with notes.open("a", encoding="utf-8") as file:
        file.write("\nfour\nfi")
        file.flush()
        assert next_line(driver) == "four"
        assert driver.read(0.0) is None  # half a line is none
        file.write("ve\n")
    assert next_line(driver) == "five"
    driver.close()


@pytest.mark.parametrize("how", ["truncated", "replaced"])
def test_a_rotated_file_is_read_from_its_beginning(notes: Path, how: str) -> None:
    driver = TextDriver("note", {"path": str(notes)})
    driver.open()
    assert [next_line(driver), next_line(driver)] == ["one", "two"]
    assert driver.read(0.0) is None
    if how == "replaced":
        notes.rename(notes.with_suffix(".1"))
        assert driver.read(0.0) is None  # gone for a moment
    notes.write_text("new\n", encoding="utf-8")
    assert next_line(driver) == "new"
    driver.close()


def test_a_pipe_survives_its_writers(pipe: Path) -> None:
    driver = TextDriver("note", {"path": str(pipe)})
    driver.open()  # waits for no writer
    assert driver.read(0.0) is None
    for line in ("hello", "again"):
        writer = threading.Thread(target=pipe.write_text, args=(line + "\n",))
        writer.start()
        assert next_line(driver) == line
        writer.join()
        assert driver.read(0.0) is None
    driver.close()


def test_standard_input_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    out, into = os.pipe()
    kept = os.dup(0)
    try:
        os.dup2(out, 0)
        driver = TextDriver("note", {"path": "-"})
        driver.open()
        os.write(into, "grüße\nlast".encode())
        os.close(into)
        assert [words(c) for c in everything(driver)] == ["grüße", "last"]
        driver.close()
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(out)


def test_long_lines_are_cut_and_say_so(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"x" * (3 * MAX_LINE) + b"\nshort\n" + b"y" * 20 + b"\n")
    driver = TextDriver("note", {"path": str(path), "follow": False, "length": 10})
    driver.open()
    got = everything(driver)
    assert [(words(c), c.flags) for c in got] == [("x" * 10, CUT), ("short", 0), ("y" * 10, CUT)]
    driver.close()


@given(st.binary(max_size=2000))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_lines(data: bytes) -> None:
    driver = TextDriver("note", {"path": "-", "length": 4096})
    assert isinstance(driver.lines, FileLines)
    out, into = os.pipe()
    driver.lines.take(out)
    os.write(into, data)
    os.close(into)
    chunks = everything(driver)
    expected = [line for line in data.split(b"\n") if line.strip()]
    assert len(chunks) == len(expected)
    for chunk, line in zip(chunks, expected, strict=True):
        assert words(chunk) == line.decode("utf-8", errors="replace").strip()
    driver.close()


def test_opened_again_it_starts_anew(notes: Path) -> None:
    driver = TextDriver("note", {"path": str(notes), "follow": False})
    for _ in range(2):
        driver.open()
        assert [c.seq for c in everything(driver)] == [0, 1, 2]
    driver.close()
    driver.close()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    driver = TextDriver("note", {"path": str(tmp_path / "nothing")})
    with pytest.raises(SensorUnavailable, match=r"no such file or pipe .*mkfifo"):
        driver.open()
    for options in ({}, {"path": "-", "topic": "notes"}):
        with pytest.raises(ConfigError, match=r"sensors\.note\.options.*either path .* or topic"):
            TextDriver("note", options)
    with pytest.raises(ConfigError, match="neither 'bytes' nor a folder"):
        TextDriver("note", {"path": "-", "tokenizer": "bert"})


def test_byte_tokens() -> None:
    assert byte_tokens("") == []
    assert byte_tokens("\x00é") == [1, 196, 170]


def test_a_tokenizer_from_a_folder(notes: Path, tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "tk")
    driver = TextDriver("note", {"path": str(notes), "follow": False, "length": 6, "tokenizer": str(folder)})
    driver.open()
    first = everything(driver)[0]
    assert np.array_equal(first.data, [[2, 5, 3, 0, 0, 0]])
    driver.close()

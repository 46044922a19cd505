"""Pickles: arrays and plain containers are read, whatever protocol wrote them; everything else is refused unrun."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.core.errors import DataError
from edge_sdk.datasets.pickles import read_pickle

CONTENT = (
    {"a": ["x", "y"], "b": [np.arange(3, dtype=np.float32), np.zeros((2, 2))]},
    {"a", "b"},
    OrderedDict(a=1),
    defaultdict(list, a=[1.5, None, True]),
    np.float64(2.5),
    np.array(["text", "more"]),
    np.array([np.ones(2), np.ones(3)], object),
    b"bytes",
    (frozenset({1}), -(2**70)),
)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "content.pkl"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_numbers_text_and_containers(tmp_path: Path, protocol: int) -> None:
    found = read_pickle(written(tmp_path, pickle.dumps(CONTENT, protocol)))
    assert len(found) == len(CONTENT)
    np.testing.assert_array_equal(found[0]["b"][0], CONTENT[0]["b"][0])
    assert found[0]["b"][1].shape == (2, 2)
    assert found[0]["a"] == ["x", "y"]
    assert (found[1], found[2], found[3], found[4]) == (CONTENT[1], CONTENT[2], CONTENT[3], 2.5)
    assert found[5].tolist() == ["text", "more"]
    assert [len(part) for part in found[6]] == [2, 3]
    assert found[7:] == CONTENT[7:]


def test_reads_what_python_2_wrote(tmp_path: Path) -> None:
    """A list of a str with a byte above 127 and an array, as numpy 1 under Python 2 pickled them by protocol 2."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x02\x85"
        b"cnumpy\ndtype\nq\x04U\x02f4K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x08\x00\x00\x80?\x00\x00\x00@tb"
    )
    found = read_pickle(written(tmp_path, b"\x80\x02]q\x00(U\x04caf\xe9" + array + b"e."))
    assert found[0] == "café"
    assert found[1].tolist() == [1.0, 2.0]


class Runs:
    """Pickles to a call of something."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize(
    "hostile",
    [
        Runs(os.system, "touch ran"),
        Runs(subprocess.Popen, "touch ran"),
        Runs(eval, "open('ran', 'w')"),
        Runs(getattr, dict, "__subclasses__"),
        Runs(np.load, "ran"),
        Runs(np.ctypeslib.load_library, "ran", "."),
        Path("a class of somebody's"),
    ],
    ids=lambda hostile: hostile.call.__qualname__ if isinstance(hostile, Runs) else str(hostile),
)
def test_nothing_else_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, pickle.dumps(({"a": [1]}, hostile)))
    with pytest.raises(DataError, match=r"content\.pkl: not a pickle of arrays and plain containers only"):
        read_pickle(path)
    assert not (tmp_path / "ran").exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = pickle.dumps(CONTENT)
    for content in (
        whole[: len(whole) // 2],
        b"",
        b"not a pickle",
        b"\x80\x04\x95" + b"\xff" * 8,
        whole[:30] + whole[60:],
    ):
        with pytest.raises(DataError, match=r"content\.pkl"):
            read_pickle(written(tmp_path, content))
    forged = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R."
    with pytest.raises(DataError, match="text encoded as 'zlib'"):
        read_pickle(written(tmp_path, forged))

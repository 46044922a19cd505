"""MATLAB files as scipy writes them, and as it does not: other byte order, smaller storage, wrong sizes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.io import savemat

from edge_sdk.core.errors import DataError
from edge_sdk.datasets.matlab import read_mat

REAL = [np.dtype(name) for name in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mat") / "recording.mat"


@settings(max_examples=60)
@given(data=st.data(), compressed=st.booleans())
def test_reads_what_scipy_writes(file: Path, data: st.DataObject, compressed: bool) -> None:
    dtype = data.draw(st.sampled_from(REAL))
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 4)) | st.tuples(*[st.integers(1, 3)] * 3))
    values = data.draw(arrays(dtype, shape))
    savemat(file, {"title": "a text", "other": np.eye(2), "d_iner": values}, do_compression=compressed)
    found = read_mat(file, "d_iner")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)


def element(order: str, kind: int, data: bytes) -> bytes:
    return struct.pack(order + "II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(order: str, *, kind: int = 6, shape: tuple[int, ...] = (2, 3), stored: int = 2, flags: int = 0) -> bytes:
    """Returns a variable `v` with the values 0 … 5 stored as bytes, as MATLAB does where they fit."""
    return element(
        order, 14,
        element(order, 6, struct.pack(order + "II", kind | flags, 0))
        + element(order, 5, struct.pack(order + f"{len(shape)}i", *shape))
        + struct.pack(order + "I", 1 << 16 | 1) + b"v\0\0\0"  # a name of one byte inside the tag
        + element(order, stored, bytes(range(6))),
    )  # fmt: skip


def mat(order: str, *elements: bytes) -> bytes:
    return (
        b"MATLAB 5.0 MAT-file".ljust(124)
        + struct.pack(order + "H", 0x0100)
        + {"<": b"IM", ">": b"MI"}[order]
        + b"".join(elements)
    )


@pytest.mark.parametrize("order", "<>")
def test_reads_both_byte_orders_and_values_stored_in_a_smaller_type(file: Path, order: str) -> None:
    packed = zlib.compress(matrix(order))
    for content in (matrix(order), struct.pack(order + "II", 15, len(packed)) + packed):
        file.write_bytes(mat(order, content))
        found = read_mat(file, "v")
        assert found.dtype == np.float64
        assert found.tolist() == [[0, 2, 4], [1, 3, 5]]  # column by column


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (2, 4)}, r"6 numbers for an array of shape \(2, 4\)"),
        ({"shape": (-2, -3)}, "6 numbers for an array of shape"),
        ({"shape": (6,)}, "6 numbers for an array of shape"),
        ({"kind": 4}, "expected an array of real numbers"),  # text
        ({"kind": 2}, "expected an array of real numbers"),  # struct
        ({"flags": 0x0800}, "expected an array of real numbers"),  # complex
        ({"stored": 16}, "expected an array of real numbers"),
    ],
)
def test_other_variables_are_named(file: Path, options: dict[str, Any], message: str) -> None:
    file.write_bytes(mat("<", matrix("<", **options)))
    with pytest.raises(DataError, match=rf"recording\.mat: v: {message}"):
        read_mat(file, "v")


def test_files_that_are_none_or_cut_short(file: Path) -> None:
    whole = mat("<", matrix("<"))
    for content, message in (
        (b"", "not a MATLAB file of level 5"),
        (b"MATLAB 7.3 MAT-file".ljust(126) + b"\0\0", "not a MATLAB file of level 5"),
        (whole[:-9], "v: the file is cut short"),
        (mat("<"), "found no such variable"),
        (mat("<", element("<", 15, b"not compressed")), "v: Error -3 while decompressing"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_mat(file, "v")

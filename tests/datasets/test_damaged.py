"""Files with wrong bytes: every reader returns something or says DataError, and nothing else ever comes out."""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from edge_sdk.core.errors import DataError
from edge_sdk.datasets.archive import read_npz
from edge_sdk.datasets.matlab import read_mat
from edge_sdk.datasets.mnist_files import read_digits
from edge_sdk.datasets.pickles import read_pickle
from edge_sdk.datasets.pictures import read_image
from edge_sdk.datasets.waves import read_wave
from tests.helpers.idx import idx, write_mnist
from tests.helpers.sounds import tone, write_wave


def mat(*, compressed: bool) -> bytes:
    file = io.BytesIO()
    savemat(file, {"title": "text", "d_iner": np.arange(60.0).reshape(10, 6)}, do_compression=compressed)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, x_a=np.arange(50.0), y=np.array(["u", "v"]))
    return file.getvalue()


def jpeg() -> bytes:
    import cv2

    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", image)[1])


def wav(folder: Path) -> bytes:
    return write_wave(folder / "a.wav", tone(300, rate_hz=8000, seconds=0.02), rate_hz=8000).read_bytes()


def pickled(protocol: int) -> bytes:
    return pickle.dumps(({"a": [np.arange(4.0), "x"]}, {"b"}, np.float32(3)), protocol)


Reader = Callable[[Path], object]
READERS: dict[str, tuple[Callable[[Path], bytes], Reader]] = {
    "mat": (lambda folder: mat(compressed=False), lambda path: read_mat(path, "d_iner")),
    "mat, compressed": (lambda folder: mat(compressed=True), lambda path: read_mat(path, "d_iner")),
    "npz": (lambda folder: npz(), read_npz),
    "pickle 2": (lambda folder: pickled(2), read_pickle),
    "pickle 5": (lambda folder: pickled(5), read_pickle),
    "image": (lambda folder: jpeg(), lambda path: read_image(path, 16)),
    "wav": (wav, lambda path: read_wave(path, rate_hz=8000)),
}


def complaint_of(read: Reader, path: Path) -> str | None:
    """Returns what a DataError says; None if the file is read."""
    try:
        read(path)
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", READERS)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wrong=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=12),
    cut=st.none() | st.integers(0, 1 << 16),
)
@example(wrong=[], cut=None)
def test_only_data_errors_come_out(tmp_path: Path, kind: str, wrong: list[tuple[int, int]], cut: int | None) -> None:
    make, read = READERS[kind]
    content = bytearray(make(tmp_path))
    for position, value in wrong:
        content[position % len(content)] = value
    if cut is not None:
        del content[cut % len(content) :]
    path = tmp_path / "damaged"
    path.write_bytes(content)
    complaint = complaint_of(read, path)
    assert complaint is None or str(path) in complaint
    assert complaint is None or wrong or cut is not None


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wrong=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=3),
    packed=st.booleans(),
)
def test_idx_files(tmp_path: Path, wrong: list[tuple[int, int]], packed: bool) -> None:
    folder = write_mnist(tmp_path, train=2, test=2, packed=False)
    content = bytearray(gzip.compress(idx(np.zeros((2, 28, 28)))) if packed else idx(np.zeros((2, 28, 28))))
    for position, value in wrong:
        content[position % min(40, len(content))] = value
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    complaint = complaint_of(lambda path: read_digits(path, "train", partial=True), folder)
    assert complaint is None or "train-" in complaint

"""Recordings: bit-identical round trips, and quiet survival of what a crash leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_sdk.core.clock import NS
from edge_sdk.core.errors import ConfigError, DataError
from edge_sdk.core.records import Chunk
from edge_sdk.recording import FrameReader, FrameWriter, Reader, ReplayOptions, ReplayTime, Writer, describe, restore
from tests.helpers.streams import chunk


def same(a: Chunk, b: Chunk) -> bool:
    fields = ("stream", "seq", "t_ns", "period_ns", "t_err_ns", "gap_before", "flags")
    if any(getattr(a, f) != getattr(b, f) for f in fields) or (a.times_ns is None) != (b.times_ns is None):
        return False
    if a.times_ns is not None and not np.array_equal(a.times_ns, b.times_ns):
        return False
    return a.data.dtype.newbyteorder("=") == b.data.dtype and a.data.tobytes() == b.data.astype(a.data.dtype).tobytes()


dtypes = st.sampled_from(["<f4", "<f8", "<i2", "|u1", "<i4", ">f4", "|b1"])
arrays = dtypes.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5)))


@settings(max_examples=50, deadline=None)
@given(arrays=st.lists(arrays, min_size=1, max_size=4), timed=st.booleans(), gap=st.booleans(), t=st.integers(0, 2**62))
def test_round_trip_is_bit_identical(
    tmp_path_factory: pytest.TempPathFactory, arrays: list[np.ndarray], timed: bool, gap: bool, t: int
) -> None:
    folder = tmp_path_factory.mktemp("recording")
    chunks = [
        Chunk(
            stream=f"s{i % 2}",
            seq=i,
            t_ns=t + i,
            data=a,
            period_ns=0 if timed else 7,
            times_ns=np.arange(len(a), dtype=np.int64) + t if timed else None,
            t_err_ns=3,
            gap_before=gap,
            flags=i,
        )
        for i, a in enumerate(arrays)
    ]
    with Writer(folder, start_ns=t) as writer:
        for c in chunks:
            writer.append(c)
    reader = Reader(folder)
    back = [c for stream in reader.streams for c in reader.chunks(stream)]
    assert len(back) == len(chunks)
    assert all(same(a, b) for a, b in zip(sorted(chunks, key=lambda c: c.stream), back, strict=True))


def record(folder: Path, *, chunks: int = 10) -> Path:
    with Writer(folder, start_ns=0, start_utc_ns=5, utc_err_ns=6) as writer:
        for i in range(chunks):
            writer.append(chunk("acc", i * 10, 10, seq=i))
        writer.label(0.0, 1.5, "walk, slowly")
        writer.label(1.5, 2.0, "sit")
    return folder


def test_meta_duration_and_labels(tmp_path: Path) -> None:
    reader = Reader(record(tmp_path / "r"))
    assert reader.streams == ("acc",)
    assert reader.duration_ns == 2 * NS
    assert reader.meta["start_utc_ns"] == 5
    assert reader.labels() == [(0, 1_500_000_000, "walk, slowly"), (1_500_000_000, 2 * NS, "sit")]


def test_duration_without_a_clean_end(tmp_path: Path) -> None:
    folder = record(tmp_path / "r")
    meta = json.loads((folder / "meta.json").read_text())
    del meta["duration_ns"]
    (folder / "meta.json").write_text(json.dumps(meta))
    assert Reader(folder).duration_ns == 2 * NS


@pytest.mark.parametrize("cut", [1, 15, 16, 40, 150])
def test_torn_tail_is_ignored_and_counted(tmp_path: Path, cut: int) -> None:
    folder = record(tmp_path / "r")
    file = folder / "acc.rec"
    whole = file.read_bytes()
    size = len(whole) - (record(tmp_path / "shorter", chunks=9) / "acc.rec").stat().st_size
    file.write_bytes(whole[:-cut])
    frames = FrameReader(file)
    kept = list(Reader(folder).chunks("acc", frames))
    assert [c.seq for c in kept] == list(range(9))
    assert frames.lost_bytes == size - cut
    assert frames.damaged == 0


def test_damaged_frame_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = record(tmp_path / "r")
    file = folder / "acc.rec"
    data = bytearray(file.read_bytes())
    end = (record(tmp_path / "shorter", chunks=4) / "acc.rec").stat().st_size
    data[end - 1] ^= 1  # last byte of the fourth frame
    file.write_bytes(data)
    frames = FrameReader(file)
    assert [c.seq for c in Reader(folder).chunks("acc", frames)] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert (frames.damaged, frames.lost_bytes) == (1, 0)


def test_lengths_that_lie_take_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "x.rec"
    file.write_bytes(b"EDGEREC1FRM1" + b"\x05\0\0\0" + b"\xff\xff\xff\xff" + b"\0\0\0\0" + b"body")
    frames = FrameReader(file)
    assert list(frames) == []
    assert frames.lost_bytes == 20


@pytest.mark.parametrize(
    "header",
    [{"dtype": "|O", "shape": [1]}, {"dtype": "<f4", "shape": [10**12]}, {"dtype": "<f4", "shape": [-1]}],
    ids=["objects", "huge", "negative"],
)
def test_lying_array_headers_are_refused(header: dict[str, object]) -> None:
    with pytest.raises(DataError):
        restore(header, b"1234")


def test_arrays_survive_without_shape() -> None:
    layout, data = describe(np.float32(3.5).reshape(()))
    assert restore(layout, bytes(data)) == 3.5


def test_what_is_no_recording_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"meta\.json"):
        Reader(tmp_path)
    (tmp_path / "meta.json").write_text('{"format": 99, "start_ns": 0}')
    with pytest.raises(DataError, match="99"):
        Reader(tmp_path)
    (tmp_path / "f.rec").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"f\.rec"):
        list(FrameReader(tmp_path / "f.rec"))


def test_unknown_stream_and_second_recording(tmp_path: Path) -> None:
    folder = record(tmp_path / "r")
    with pytest.raises(DataError, match="there are: acc"):
        list(Reader(folder).chunks("gyro"))
    with pytest.raises(DataError, match="already"):
        Writer(folder, start_ns=0)


def test_stream_names_are_no_paths(tmp_path: Path) -> None:
    with Writer(tmp_path / "r", start_ns=0) as writer, pytest.raises(DataError, match="file name"):
        writer.append(chunk("../acc", 0, 1))


def test_bad_label_lines_are_named(tmp_path: Path) -> None:
    folder = record(tmp_path / "r")
    with (folder / "labels.csv").open("a") as file:
        file.write("3.0,2.0,run\n")
    with pytest.raises(DataError, match=r"labels\.csv:4.*end after it starts"):
        Reader(folder).labels()
    (folder / "labels.csv").write_text("start_s,end_s,label\n1,x,run\n")
    with pytest.raises(DataError, match=r"labels\.csv:2"):
        Reader(folder).labels()


def test_appending_goes_on_after_a_restart(tmp_path: Path) -> None:
    for i in range(2):
        file = FrameWriter(tmp_path / "x.rec")
        file.append({"i": i})
        assert file.size == (tmp_path / "x.rec").stat().st_size
        file.close()
    assert [header["i"] for header, _ in FrameReader(tmp_path / "x.rec")] == [0, 1]


def test_replay_time_is_aligned_and_laps_too(tmp_path: Path) -> None:
    reader = Reader(record(tmp_path / "r"))
    time = ReplayTime.of(ReplayOptions(path=tmp_path, align_s=1.28, loop=True), reader, 5 * NS)
    assert time.base_ns == 5_120_000_000
    assert time.lap_ns == 2_560_000_000
    assert time.at(100, 2) == 5_120_000_000 + 2 * 2_560_000_000 + 100
    time = ReplayTime.of(ReplayOptions(path=tmp_path, start_s=0.5, epoch_ns=9), reader, 5 * NS)
    assert (time.base_ns, time.lap_ns, time.at(NS, 0)) == (9, 1_500_000_000, 9 + NS // 2)
    with pytest.raises(ConfigError, match="start_s"):
        ReplayTime.of(ReplayOptions(path=tmp_path, start_s=2.0), reader, 0)

"""The kernel's inertial sensors on a recorded tree; buffered capture through a pipe in the place of the device."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.core.clock import monotonic_ns
from edge_sdk.core.errors import ConfigError, SensorUnavailable
from sensors.imu_iio import Element, IioImuDriver, devices, layout
from tests.helpers.detection import pasted
from tests.helpers.iio_tree import iio_tree

EXPECTED = [1.0, 2.0, 3.0, 0.0, 0.5, 0.6]  # (raw + offset) · scale of the tree


def driver(root: Path, **options: object) -> IioImuDriver:
    return IioImuDriver("imu", {"device": "virtual", "root": str(root), **options})


def test_files_in_si_units(tmp_path: Path) -> None:
    source = driver(iio_tree(tmp_path), buffered=False, rate_hz=50.0)
    source.open()
    chunks = [c for c in (source.read(0.2) for _ in range(5)) if c is not None]
    source.close()
    assert len(chunks) == 5
    assert chunks[0].data[0] == pytest.approx(EXPECTED)
    assert np.diff([c.t_ns for c in chunks]).mean() == pytest.approx(20e6, rel=0.3)
    assert (tmp_path / "sys/bus/iio/devices/iio:device0/sampling_frequency").read_text() == "50"


def test_a_device_is_found_by_name_or_number(tmp_path: Path) -> None:
    source = driver(iio_tree(tmp_path), device="iio:device0", buffered=False)
    source.open()
    assert source.read(0.2) is not None
    with pytest.raises(
        SensorUnavailable, match=r"no IIO device 'other'; here: virtual; set sensors\.imu\.options\.device"
    ):
        driver(tmp_path, device="other").open()


def test_buffered_capture_is_set_up_and_decoded(tmp_path: Path) -> None:
    root = iio_tree(tmp_path, buffered=True)
    pipe = os.open(root / "dev/iio:device0", os.O_RDWR)
    source = driver(root)
    source.open()
    base = monotonic_ns()
    scans = [
        struct.pack("<6H4xq", *(100 * (k + 1) << 4 | 0xF for k in range(6)), base + i * 10_000_000) for i in range(4)
    ]
    os.write(pipe, b"".join(scans)[:70])  # three scans of 24 bytes, less two bytes
    first = source.read(0.5)
    os.write(pipe, b"".join(scans)[70:])
    second = source.read(0.5)
    assert source.read(0.01) is None
    source.close()
    os.close(pipe)
    assert first is not None
    assert second is not None
    assert [len(first.data), len(second.data)] == [2, 2]
    assert first.data[0] == pytest.approx(EXPECTED)
    assert first.times_ns is not None
    assert first.times_ns == pytest.approx([base, base + 10_000_000], abs=1_000_000)
    assert np.diff(first.times_ns).tolist() == [10_000_000]
    folder = root / "sys/bus/iio/devices/iio:device0"
    assert (folder / "current_timestamp_clock").read_text() == "monotonic"
    assert (folder / "scan_elements/in_accel_x_en").read_text() == "1"
    assert (folder / "buffer/enable").read_text() == "0"  # given back


def test_a_device_that_goes_away(tmp_path: Path) -> None:
    root = iio_tree(tmp_path, buffered=True)
    pipe = os.open(root / "dev/iio:device0", os.O_RDWR)
    source = driver(root)
    source.open()
    os.close(pipe)
    with pytest.raises(SensorUnavailable, match="closed by the kernel"):
        source.read(0.5)
    source.close()


def test_a_device_without_a_buffer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SensorUnavailable, match="buffered = false needs no trigger"):
        driver(iio_tree(tmp_path)).open()


def test_a_file_that_holds_no_number(tmp_path: Path) -> None:
    root = iio_tree(tmp_path)
    (root / "sys/bus/iio/devices/iio:device0/in_accel_x_raw").write_text("busy\n")
    source = driver(root, buffered=False)
    source.open()
    with pytest.raises(SensorUnavailable, match="expected a number, found 'busy'"):
        source.read(0.1)


@given(
    bits=st.integers(1, 64), extra=st.integers(0, 63), storage=st.sampled_from([8, 16, 32, 64]), signed=st.booleans(),
    big=st.booleans(), data=st.data(),
)  # fmt: skip
def test_numbers_survive_packing(
    bits: int, extra: int, storage: int, signed: bool, big: bool, data: st.DataObject
) -> None:
    bits = min(bits, storage, 63 if not signed else 64)
    shift = min(extra, storage - bits)
    low = -(1 << bits - 1) if signed else 0
    value = data.draw(st.integers(low, low + (1 << bits) - 1))
    element = Element.parse("x", 0, f"{'be' if big else 'le'}:{'s' if signed else 'u'}{bits}/{storage}>>{shift}")
    word = ((value & ((1 << bits) - 1)) << shift).to_bytes(storage // 8, "big" if big else "little")
    assert element.decode(np.frombuffer(word, layout([element]))["x"]).tolist() == [value]


@pytest.mark.parametrize(
    "text", ["", "le:s16", "le:s12/24>>0", "le:s16/16X3>>0", "xe:s8/8>>0", "le:s16/16>>4", "le:s0/8>>0"]
)
def test_types_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigError, match="scan element in_accel_x"):
        Element.parse("in_accel_x", 0, text)


@given(st.text(max_size=30))
def test_any_type_is_read_or_refused(text: str) -> None:
    try:
        Element.parse("x", 0, text)
    except ConfigError:
        return


def test_elements_are_aligned_to_their_size() -> None:
    elements = [
        Element.parse("t", 2, "le:s64/64>>0"),
        Element.parse("a", 0, "le:s16/16>>0"),
        Element.parse("b", 1, "le:u32/32>>0"),
    ]
    scan = layout(elements)
    assert [scan.fields[n][1] for n in "abt"] == [0, 4, 8]
    assert scan.itemsize == 16


def test_devices_are_listed_by_name_with_a_modality_per_quantity(tmp_path: Path) -> None:
    (found,) = devices(iio_tree(tmp_path))
    assert (found.id, found.description) == ("virtual", "virtual: acc, gyro")
    assert pasted(found) == {"acc": ("", ("acc",)), "gyro": ("acc", ("gyro",))}

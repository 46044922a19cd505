"""A recorded tree of an IIO device: `root/sys/bus/iio/devices/iio:device0` and, for buffered capture, a pipe in dev."""

from __future__ import annotations

import os
from pathlib import Path

AXES = [f"in_{kind}_{axis}" for kind in ("accel", "anglvel") for axis in "xyz"]


def iio_tree(root: Path, *, buffered: bool = False) -> Path:
    """Writes the tree of a six-axis device called "virtual"; raw values are 100 … 600."""
    folder = root / "sys/bus/iio/devices/iio:device0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("virtual\n")
    (folder / "sampling_frequency").write_text("100\n")
    (folder / "in_accel_scale").write_text("0.01\n")
    (folder / "in_anglvel_scale").write_text("0.001\n")
    (folder / "in_anglvel_x_offset").write_text("-400\n")
    for i, axis in enumerate(AXES):
        (folder / f"{axis}_raw").write_text(f"{100 * (i + 1)}\n")
    if buffered:
        _add_buffer(root, folder)
    return root


def _add_buffer(root: Path, folder: Path) -> None:
    scan = folder / "scan_elements"
    for sub in ("scan_elements", "buffer", "trigger"):
        (folder / sub).mkdir()
    for i, name in enumerate([*AXES, "in_timestamp"]):
        (scan / f"{name}_en").write_text("0\n")
        (scan / f"{name}_index").write_text(f"{i}\n")
        (scan / f"{name}_type").write_text("le:s64/64>>0\n" if name == "in_timestamp" else "le:s12/16>>4\n")
    for name in ("buffer/enable", "buffer/length", "buffer/watermark", "current_timestamp_clock"):
        (folder / name).write_text("0\n")
    (root / "dev").mkdir()
    os.mkfifo(root / "dev/iio:device0")

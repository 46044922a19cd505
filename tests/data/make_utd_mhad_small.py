"""Reduces a few inertial recordings of UTD-MHAD to tests/data/utd_mhad_small.npz.

python tests/data/make_utd_mhad_small.py Inertial.zip tests/data/utd_mhad_small.npz
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from scipy.io import loadmat

RECORDINGS = ("a22_s1_t1", "a23_s5_t2", "a12_s3_t1", "a17_s8_t4")  # jog, walk (thigh); bowling, tennis serve (wrist)
STANDARD_GRAVITY = 9.80665  # m/s² per g
RATE_HZ = 50.0


def main(source: Path, target: Path) -> None:
    """Writes acc_<recording> (T, 3) m/s² and gyro_<recording> (T, 3) rad/s, float32, and rate_hz."""
    arrays = {"recordings": np.array(RECORDINGS), "rate_hz": np.array(RATE_HZ)}
    with zipfile.ZipFile(source) as archive:
        for name in RECORDINGS:
            samples = loadmat(io.BytesIO(archive.read(f"Inertial/{name}_inertial.mat")))["d_iner"]  # (T, 6) g, deg/s
            arrays[f"acc_{name}"] = (samples[:, :3] * STANDARD_GRAVITY).astype(np.float32)
            arrays[f"gyro_{name}"] = np.deg2rad(samples[:, 3:]).astype(np.float32)
    np.savez_compressed(target, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

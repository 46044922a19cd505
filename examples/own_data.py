"""Your own data in a federation: write an .npz file, then simulate with it.

    python examples/own_data.py

The file holds `x_<modality>` arrays, `y`, and optionally `subject`, `split`, `has_<modality>` and `rate_hz_<modality>`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from coordinator.cli import main


def write(path: Path) -> None:
    """Writes 400 rows of two modalities: a strong one, and a weak one that 20 % of the rows lack."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 400)
    strong = rng.normal(size=(4, 8))[y] * 2 + rng.normal(size=(400, 8))
    time = np.arange(50) / 50
    weak = np.sin(2 * np.pi * (y[:, None] + 1) * time)[:, None, :] + rng.normal(size=(400, 2, 50))
    np.savez(
        path, x_features=strong.astype(np.float32), x_motion=weak.astype(np.float32), rate_hz_motion=50.0,
        has_motion=rng.random(400) > 0.2, y=np.array(["sit", "stand", "walk", "run"])[y], subject=np.arange(400) % 10,
    )  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.npz"
        write(file)
        sys.exit(main(["simulate", "--dataset", str(file), "--method", "mba", "--devices", "4", "--updates", "20"]))

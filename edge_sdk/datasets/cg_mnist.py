"""CG-MNIST: every digit of MNIST twice, gray and in one colour that gives the label away in training, not in testing.

Sources: Kim et al., "Learning Not to Learn", CVPR 2019 (coloured digits); Wu et al., "Characterizing and Overcoming the
Greedy Nature of Learning in Multi-modal Deep Neural Networks", ICML 2022 (the pair); Fan et al., "Balanced Modality
Selection", ECCV 2024, arXiv:2401.00403 (BMSFed, whose table is compared with).

The colour branch is learnt fast and generalises badly: that is the point. Each image i gets one colour

    c_i ~ Normal(PALETTE[d_i], variance · I), clipped to [0, 1]
    d_i = label of i in training, uniform over 0 … 9 and independent of the label in testing
    colour image = gray · c_i, rounded to 8 bits as the published files are

and the draws depend on `seed` and i alone: `n` takes some of the images of the same set. The published arrays, and the
palette behind them, are not public as numbers. PALETTE is ours: the corners of the RGB cube without black and three
colours half-way between, all drawn in towards gray by 0.15, no two nearer than 0.35, twice the deviation at variance
0.03. The distance sets how blindly the colour is trusted; with this one a small CNN on both images gets 40 % right at
variance 0.03, near the published plain classifiers (42 % in BMSFed's table).

    gray    (1, 28, 28) in [0, 1]
    color   (3, 28, 28) in [0, 1]

    cg_mnist                    60,000 + 10,000 images, 0.9 GB
    cg_mnist:n=6000             6,000 training images and 1,000 test images, drawn by seed
    cg_mnist:variance=0.02      a stronger bias; 0.030 is what BMSFed's table used

Reads MNIST's four idx files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edge_sdk.core.records import Dataset, Float32, Int64
from edge_sdk.datasets import variants
from edge_sdk.datasets.mnist_files import CLASSES, SIZE, read_digits
from edge_sdk.datasets.rows import choose
from edge_sdk.datasets.variants import VariantOptions

# Mean colour of each digit, RGB in [0, 1].
PALETTE = (
    (0.85, 0.15, 0.15),  # 0 red
    (0.15, 0.85, 0.15),  # 1 green
    (0.15, 0.15, 0.85),  # 2 blue
    (0.85, 0.85, 0.15),  # 3 yellow
    (0.85, 0.15, 0.85),  # 4 magenta
    (0.15, 0.85, 0.85),  # 5 cyan
    (0.85, 0.85, 0.85),  # 6 white
    (0.85, 0.5, 0.15),  # 7 orange
    (0.5, 0.15, 0.85),  # 8 violet
    (0.15, 0.85, 0.5),  # 9 spring green
)
TEST_SHARE = 6  # training images per test image when only `n` is given, as in the whole set


class Options(VariantOptions):
    """How strong the bias is and how many images to take."""

    variance: float = Field(default=0.030, gt=0, le=1)  # of each colour channel
    n: int | None = Field(default=None, ge=10)  # training images; None: all
    test: int | None = Field(default=None, ge=10)  # test images; None: n / 6, or all
    partial: bool = False  # take MNIST files that hold fewer images than the official ones


def load(data: Path | None = None, *, variant: str = "", seed: int = 0) -> Dataset:
    """Returns training and test images, in the order of MNIST; the same seed gives the same colours and the same rows.

    Raises:
        DataError: an idx file is missing or malformed, or has fewer images than asked for.
    """
    options = variants.read("cg_mnist", variant, Options)
    counts = {"train": options.n, "test": options.test}
    if options.test is None and options.n is not None:
        counts["test"] = max(10, options.n // TEST_SHARE)
    sides = [
        _side(data, side, counts[side], options, np.random.default_rng([seed, i])) for i, side in enumerate(counts)
    ]
    sizes = [len(side.y) for side in sides]
    x = {
        "gray": np.empty((sum(sizes), 1, SIZE, SIZE), np.float32),
        "color": np.empty((sum(sizes), 3, SIZE, SIZE), np.float32),
    }
    at = 0
    for side in sides:
        x["gray"][at : at + len(side.y), 0] = side.images
        for channel in range(3):  # in place: copies would be as large as the result
            painted = x["color"][at : at + len(side.y), channel]
            np.multiply(side.images, side.tint[:, channel, None, None], out=painted)
            np.rint(painted, out=painted)
        at += len(side.y)
    for m in x:
        x[m] /= np.float32(255)
    return Dataset(
        name="cg_mnist",
        x=x,
        y=np.concatenate([side.y for side in sides]),
        classes=CLASSES,
        has={m: np.ones(sum(sizes), np.bool_) for m in x},
        split=np.repeat(("train", "test"), sizes),
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """Training or test images with their colours."""

    images: NDArray[np.uint8]  # (n, 28, 28)
    y: Int64  # (n,)
    tint: Float32  # (n, 3) in [0, 1]


def _side(data: Path | None, side: str, count: int | None, options: Options, rng: np.random.Generator) -> _Side:
    digits = read_digits(data, side, partial=options.partial)
    shown = digits.y if side == "train" else rng.integers(0, len(CLASSES), len(digits.y))
    tint = np.array(PALETTE)[shown] + np.sqrt(options.variance) * rng.standard_normal((len(shown), 3))
    tint = np.clip(tint, 0, 1).astype(np.float32)
    rows = choose(len(digits.y), count, rng, what=f"cg_mnist: {side} images")
    return _Side(digits.images[rows], digits.y[rows], tint[rows])


__all__ = ["PALETTE", "Options", "load"]

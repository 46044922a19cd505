"""CMU-MOSI: is an utterance of a video review positive? Text, audio and video features.

Source: Zadeh, Zellers, Pincus, Morency, "MOSI: Multimodal Corpus of Sentiment Intensity and Subjectivity Analysis in
Online Opinion Videos", arXiv:1606.06259; http://multicomp.cs.cmu.edu/resources/cmu-mosi-dataset/
Features: Poria et al., "Context-Dependent Sentiment Analysis in User-Generated Videos", ACL 2017; Mai et al., ACL 2019.

**The features of the training split flatter.** The 50 numbers per modality are hidden activations of uni-modal
recurrent networks that were trained on the training videos: training accuracy says nothing, judge on the test split
only. The modalities are very unequal, text strong, audio and video weak.

    text    (50,)
    audio   (50,); in the form `cmu_mosi:raw` (73,), acoustic features that no network was trained for
    video   (50,)

1,447 utterances of 62 videos train, 752 of 31 videos test. A video, nearly always its own speaker, is a subject.
Reads one .npz file with, per side of the split, `text_*`, `audio_*`, `video_*` (videos, utterances, 50) and `label_*`,
`mask_*` (videos, utterances); `audio73_*` for the raw form.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from edge_sdk.core.errors import DataError
from edge_sdk.core.records import Array, Dataset
from edge_sdk.datasets import variants
from edge_sdk.datasets.archive import check_finite, read_npz
from edge_sdk.datasets.variants import VariantOptions

log = logging.getLogger(__name__)

WHERE = "http://multicomp.cs.cmu.edu/resources/cmu-mosi-dataset/"
FEATURES = "https://github.com/TmacMai/multimodal-fusion (unimodal_mosi_2way.pickle)"
FILE = "mosi_utterance_features_2way.npz"
CLASSES = ("negative", "positive")
SIDES = ("train", "test")
PUBLISHED = {"train": 1447, "test": 752}  # utterances
FORMS = {
    "features": {"text": "text", "audio": "audio", "video": "video"},
    "raw": {"text": "text", "audio": "audio73", "video": "video"},
}  # modality → start of the array's name


class Options(VariantOptions):
    """Which audio features."""

    form: Literal["features", "raw"] = "features"


def load(data: Path | None = None, *, variant: str = "", seed: int = 0) -> Dataset:
    """Returns one row per utterance: training videos first, in the order of the file.

    Raises:
        DataError: the file is missing or malformed; names it, the array and where to get it.
    """
    names = FORMS[variants.read("cmu_mosi", variant, Options).form]
    if data is None:
        raise DataError(f"cmu_mosi: give {FILE} or its folder as --data; features from {FEATURES}, terms at {WHERE}")
    path = data / FILE if data.is_dir() else data
    if not path.exists():
        raise DataError(f"{path}: no such file; expected features made of those at {FEATURES}, terms at {WHERE}")
    arrays = read_npz(path)
    _check(path, arrays, names)
    present = {side: arrays[f"mask_{side}"].astype(bool) for side in SIDES}
    x = {}
    for m, name in names.items():
        x[m] = np.concatenate([arrays[f"{name}_{side}"][present[side]] for side in SIDES]).astype(np.float32)
        check_finite(x[m], f"{path}: {name}")
    videos = len(present["train"])
    subject = np.concatenate([np.nonzero(present["train"])[0], np.nonzero(present["test"])[0] + videos])
    y = np.concatenate([arrays[f"label_{side}"][present[side]] for side in SIDES]).astype(np.int64)
    return Dataset(
        name="cmu_mosi",
        x=x,
        y=y,
        classes=CLASSES,
        has={m: np.ones(len(y), np.bool_) for m in x},
        subject=subject.astype(np.int64),
        split=np.repeat(SIDES, [int(present[side].sum()) for side in SIDES]),
    )


def _check(path: Path, arrays: Mapping[str, Array], names: Mapping[str, str]) -> None:
    needed = [f"{name}_{side}" for side in SIDES for name in (*names.values(), "label", "mask")]
    if missing := [name for name in needed if name not in arrays]:
        raise DataError(f"{path}: expected an array {missing[0]}, found {', '.join(sorted(arrays))}")
    for side in SIDES:
        mask, label = arrays[f"mask_{side}"], arrays[f"label_{side}"]
        if mask.ndim != 2 or label.shape != mask.shape or not np.isin(mask, (0, 1)).all() or not mask.any():
            raise DataError(
                f"{path}: mask_{side} and label_{side}: expected (videos, utterances), the mask 0 or 1 and not empty, "
                f"found {mask.shape} and {label.shape}"
            )
        here = label[mask.astype(bool)]
        if not np.isin(here, (0, 1)).all():
            raise DataError(f"{path}: label_{side}: expected classes 0 and 1, found {np.unique(here).tolist()}")
        for name in names.values():
            shape = arrays[f"{name}_{side}"].shape
            if len(shape) != 3 or shape[:2] != mask.shape or shape[2] != arrays[f"{name}_train"].shape[2]:
                raise DataError(f"{path}: {name}_{side}: expected {mask.shape} utterances' features, found {shape}")
        if len(here) != PUBLISHED[side]:
            log.warning("%s: %d %s utterances; published: %d", path, len(here), side, PUBLISHED[side])


__all__ = ["CLASSES", "Options", "load"]
